"""Rows to 8-bit floats: the same bits from every implementation, and errors that say what is wanted."""

import pytest
import torch

from runtime.kernels import triton_lang
from runtime.kernels.fp8_quantize import (
    E4M3,
    LARGEST,
    WIDEST,
    fp8_quantize,
    fp8_quantize_reference,
)

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.skipif(
    not (GPU or triton_lang.INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1"
)
# The interpreter's bfloat16 is not to be trusted; a GPU before sm_89 has no 8-bit floats.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]


def normal(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def same_bits(got: torch.Tensor, want: torch.Tensor) -> bool:
    return got.dtype == want.dtype and torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 1000), (5, 1536), (2, 8960)], ids=str)
def test_the_kernel_gives_the_reference_s_bits(rows, width, dtype, by_rows):
    x = normal(rows, width, dtype=dtype) * torch.logspace(-3, 3, rows, device=DEVICE)[:, None]
    x = x.to(dtype)
    values, scale = fp8_quantize(x, by_rows, "triton")
    want_values, want_scale = fp8_quantize_reference(x, by_rows)
    assert torch.equal(scale, want_scale) and scale.shape == ((rows, 1) if by_rows else ())
    assert same_bits(values, want_values)


def test_a_half_goes_to_the_even_neighbour():
    """Every midpoint between two e4m3 numbers, and both sides of it; the last value makes the scale one."""
    numbers = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    numbers = numbers[torch.isfinite(numbers)].unique()
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, middles * (1 + 2**-20), middles * (1 - 2**-20)])
    x = torch.cat([x.clamp(-LARGEST, LARGEST), torch.tensor([LARGEST])])[None].to(DEVICE)
    values, scale = fp8_quantize(x, True, "triton")
    assert scale.item() == 1.0
    assert same_bits(values, x.to(E4M3)) and same_bits(fp8_quantize_reference(x)[0], x.to(E4M3))
    assert (values[0, : len(numbers)].float().cpu() == numbers).all()


def test_rows_may_lie_apart_and_nothing_between_them_counts():
    wide = normal(5, 4096)
    x = wide[:, :1000]
    wide[:, 1000:] = float("nan")
    got, want = fp8_quantize(x, True, "triton"), fp8_quantize_reference(x.contiguous())
    assert same_bits(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_zeros_and_the_smallest_numbers_do_not_divide_by_zero(impl):
    x = torch.zeros(3, 64, device=DEVICE)
    x[1, 5] = 1e-30
    x[2, 5] = -(2.0**-120)
    values, scale = fp8_quantize(x, True, impl)
    assert not values.float().any() and torch.isfinite(scale).all() and (scale > 0).all()


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "tensor"])
def test_the_largest_value_is_kept_to_one_rounding(by_rows):
    x = normal(7, 300)
    values, scale = fp8_quantize(x, by_rows, "triton")
    back = values.float() * scale
    largest = x.abs().amax(1 if by_rows else None)
    assert ((back.abs().amax(1 if by_rows else None) - largest).abs() <= 2**-22 * largest).all()
    assert ((back - x).abs() <= 2**-4 * x.abs() + 2**-9 * scale).all()


def test_rows_too_wide_for_the_kernel_are_left_to_torch():
    x = normal(1, WIDEST + 1)
    assert same_bits(fp8_quantize(x, True)[0], fp8_quantize_reference(x)[0])
    with pytest.raises(ValueError, match=f"x: want rows of at most {WIDEST}, got {WIDEST + 1}"):
        fp8_quantize(x, True, "triton")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: normal(3), r"x: want shape \[M, K\], got \[3\]"),
        (lambda: normal(0, 4), r"x: want at least one element, got \[0, 4\]"),
        (lambda: normal(4, 6).t(), r"x: want its last 1 axes dense"),
        (lambda: normal(4, 4).double(), r"takes bfloat16, float16, float32, got torch.float64"),
    ],
)
def test_the_launcher_says_what_it_wants(make, message):
    with pytest.raises(ValueError, match=message):
        fp8_quantize(make(), True, "triton")


@pytest.mark.gpu
def test_rounding_never_waits_for_the_gpu():
    x = normal(64, 1536, dtype=torch.bfloat16)
    fp8_quantize(x, True, "triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        fp8_quantize(x, True, "triton")
        fp8_quantize(x, False, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
