"""How exact a kernel must be: its error may be what plain torch's is in the same dtype, twice over."""

import torch


def assert_no_worse_than_torch(
    got: torch.Tensor, torch_same_dtype: torch.Tensor, exact: torch.Tensor, slack: float = 2.0
) -> None:
    """``exact`` is the float64 reference; one rounding step of the largest value is always allowed."""
    assert got.shape == exact.shape and got.dtype == torch_same_dtype.dtype
    assert not got.isnan().any(), "kernel produced NaN"
    error = (got.double() - exact).abs().max().item()
    budget = slack * (torch_same_dtype.double() - exact).abs().max().item()
    floor = torch.finfo(got.dtype).eps * exact.abs().max().item()
    assert error <= max(budget, floor), (
        f"max error {error:.3e} > allowed {max(budget, floor):.3e} for {got.dtype}"
    )
