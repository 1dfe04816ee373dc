"""Time the noise of a chunk, drawn and blended in one step: python -m runtime.bench.slerp_noise

``randn`` is what one writes without this project: torch's own generator, one per row for the seed, and the blend in eager
torch. Its values are others, so it has no error; a row does not know its batch there either, but its device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from runtime.bench.op import Case, main
from runtime.bench.tune import Tunable, rounding
from runtime.kernels import slerp_noise as ops
from runtime.kernels.dispatch import implementation
from runtime.kernels.philox import normal, streams

BETA, PARENTS = -0.1, 2
SIZES = {  # candidates, chunk
    "embedded": [(4, (3, 12, 8, 8))],
    "full": [(4, (3, 16, 60, 104))],
}
LARGE = (
    8,
    (3, 16, 240, 416),
)  # sixteen times the latents of a chunk: as long as a copy that memory bounds
Step = Callable[..., Tensor]


def cases(device: torch.device, shape: str) -> Iterator[Case]:
    gpu = device.type == "cuda"
    impls = ["torch", implementation("auto", device)]
    sizes = SIZES[shape] + ([(8, (3, 16, 60, 104)), LARGE] if gpu and shape == "full" else [])
    for dtype in (torch.float32, torch.bfloat16):
        for rows, chunk in sizes:
            for name, step, plain, reads in _steps(rows, chunk, device, dtype):
                exact = step(torch.float64, impl="torch")
                runs = {impl: partial(step, dtype, impl=impl) for impl in impls}
                errors = {impl: _error(run(), exact) for impl, run in runs.items()}
                out = rows * math.prod(chunk)
                yield Case(
                    name,
                    f"B={rows} {'x'.join(map(str, chunk))}",
                    dtype,
                    runs | {"randn": plain},
                    errors | {"randn": math.nan},
                    moved_bytes=(reads * math.prod(chunk) + out) * dtype.itemsize,
                )


def _steps(
    rows: int, chunk: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Step, Callable[[], Tensor], int]]:
    """Name; the step in any dtype; what one writes without it; rows that must be read."""
    seeds, chunks = list(range(rows)), [1] * rows
    table = streams(seeds, chunks, 0, device)
    index = torch.arange(rows, dtype=torch.int32, device=device) % PARENTS
    sigma = torch.full((rows,), 0.625, device=device)
    previous = normal(range(PARENTS), [0] * PARENTS, 0, chunk, device, dtype)
    x0 = normal(range(rows), [9] * rows, 0, chunk, device, dtype)
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def fresh() -> Tensor:
        options = {"device": device, "dtype": dtype}
        return torch.stack([torch.randn(chunk, generator=g, **options) for g in generators])

    def blend(mode: str, wide: torch.dtype, **how: Any) -> Tensor:
        return ops.slerp_noise(previous.to(wide), index, table, BETA, mode, **how)

    def plain_blend() -> Tensor:
        return ops.blend_reference(previous[index.long()], fresh(), BETA)

    def plain_slerp() -> Tensor:
        return ops.slerp_reference(previous[index.long()], fresh(), BETA)

    def again(wide: torch.dtype, **how: Any) -> Tensor:
        return ops.renoise(x0.to(wide), table, sigma, **how)

    def plain_renoise() -> Tensor:
        return ops.renoise_reference(x0, fresh(), 0.625)

    yield "slerp_noise blend", partial(blend, "blend"), plain_blend, PARENTS
    yield "slerp_noise slerp", partial(blend, "slerp"), plain_slerp, 2 * PARENTS
    yield "renoise", again, plain_renoise, rows


def _error(got: Tensor, exact: Tensor) -> float:
    return (got.double() - exact).abs().max().item()


def tunables(device: torch.device) -> Iterator[Tunable]:
    """The row lengths that a launch asks for; the blend in bfloat16 decides, for nothing hides its instructions."""
    for rows, chunk in (*SIZES["embedded"], *SIZES["full"], LARGE):
        _, step, _, _ = next(_steps(rows, chunk, device, torch.bfloat16))
        exact = step(torch.float64, impl="torch")
        yield Tunable(
            {"elements": math.prod(chunk)},
            ops.SPACE,
            lambda config, step=step: step(torch.bfloat16, impl="triton", config=config),
            partial(_error, exact=exact),
            rounding(exact),
        )


if __name__ == "__main__":
    sys.exit(main("slerp_noise", cases, __doc__ or ""))
