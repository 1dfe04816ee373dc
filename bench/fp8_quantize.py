"""Time the rounding of activations to 8-bit floats: python -m runtime.bench.fp8_quantize"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch

from runtime.bench.op import Case, main
from runtime.bench.tune import Tunable
from runtime.kernels import fp8_quantize as ops
from runtime.kernels.dispatch import implementation

# M, K: tokens of one chunk for a block's two widths
SIZES = {"embedded": [(48, 192), (48, 768)], "full": [(4680, 1536), (4680, 8960)]}


def cases(device: torch.device, shape: str) -> Iterator[Case]:
    gpu = device.type == "cuda"
    impls = dict.fromkeys(["torch", implementation("auto", device, torch.bfloat16, ops.OFFERS)])
    sizes = SIZES[shape] + ([(4 * 4680, 1536), (4 * 4680, 8960)] if gpu and shape == "full" else [])
    for M, K in sizes:
        x = _inputs(M, K, device)
        for name, by_rows in (("fp8_quantize rows", True), ("fp8_quantize tensor", False)):
            exact = ops.fp8_quantize_reference(x.double(), by_rows)
            runs = {impl: partial(ops.fp8_quantize, x, by_rows, impl) for impl in impls}
            errors = {impl: _error(run(), exact) for impl, run in runs.items()}
            moved = (
                x.nbytes + M * K + 4 * (M if by_rows else 1)
            )  # x read, values and scales written
            yield Case(name, f"M={M} K={K}", x.dtype, runs, errors, moved_bytes=moved)


def tunables(device: torch.device) -> Iterator[Tunable]:
    """The widths of a block, by rows; the embedded model's first, which the interpreter can afford."""
    for M, K in [SIZES["embedded"][-1], *SIZES["full"]]:
        x = _inputs(M, K, device)
        exact = ops.fp8_quantize_reference(x)
        yield Tunable(
            {"width": K},
            ops.SPACE,
            partial(ops.fp8_quantize, x, True, "triton"),
            partial(_error, exact=exact),
            0.0,  # the same bits
        )


def _inputs(M: int, K: int, device: torch.device) -> torch.Tensor:
    source = torch.Generator(device).manual_seed(0)
    return torch.randn(M, K, generator=source, device=device).bfloat16()


def _error(
    got: tuple[torch.Tensor, torch.Tensor], exact: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Of what comes back after scaling, against the reference's rounding."""
    (values, scale), (want, own) = got, exact
    return (values.double() * scale.double() - want.double() * own.double()).abs().max().item()


if __name__ == "__main__":
    sys.exit(main("fp8_quantize", cases, __doc__ or ""))
