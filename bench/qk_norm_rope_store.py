"""Time the norm, rotation and store of q, k and v: python -m runtime.bench.qk_norm_rope_store"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch

from runtime.bench.op import Case, main
from runtime.bench.tune import Tunable, rounding
from runtime.kernels.dispatch import implementation
from runtime.kernels.qk_norm_rope_store import (
    SPACE,
    Destination,
    qk_norm_rope_store,
    qk_norm_rope_store_reference,
)
from runtime.kernels.rotary import Positions

SIZES = {"embedded": [(1, 4, 4, 6, 32), (4, 4, 4, 6, 32)], "full": [(1, 30, 52, 12, 128)]}
START, FRAMES = 117, 3  # chunk 39


def cases(device: torch.device, shape: str) -> Iterator[Case]:
    gpu = device.type == "cuda"
    impls = ["torch", implementation("auto", device)]
    more = [(B, 30, 52, 12, 128) for B in (4, 8)] if gpu and shape == "full" else []
    for dtype in (torch.bfloat16,) if gpu else (torch.float32, torch.bfloat16):
        for B, rows, columns, H, D in SIZES[shape] + more:
            S = FRAMES * rows * columns
            source = torch.Generator(device).manual_seed(0)
            made = {"generator": source, "device": device}
            q, k, v = torch.randn(B, S, 3 * H * D, **made).to(dtype).split(H * D, -1)
            norms = tuple(torch.randn(2, H * D, **made).to(dtype))
            frames = START + torch.arange(FRAMES, device=device)[None]
            positions = Positions(frames, rows, columns, D)
            exact = qk_norm_rope_store_reference(
                *(t.double() for t in (q, k, v)),
                tuple(w.double() for w in norms),
                Positions(frames, rows, columns, D, torch.float64),
            )
            into = Destination(*torch.empty(3, B, S, H, D, dtype=dtype, device=device))
            run = partial(qk_norm_rope_store, q, k, v, norms, positions, into)
            yield Case(
                "qk_norm_rope_store",
                f"B={B} S={S} H={H} D={D}",
                dtype,
                {impl: partial(run, impl=impl) for impl in impls},
                {impl: _error(run(impl=impl), exact) for impl in impls},
                moved_bytes=6 * into.q.nbytes,
            )


def tunables(device: torch.device) -> Iterator[Tunable]:
    """The widths that a launch asks for."""
    for size in SIZES:
        B, rows, columns, H, D = SIZES[size][-1]
        qkv = torch.randn(B, FRAMES * rows * columns, 3 * H * D, device=device).bfloat16()
        parts = qkv.split(H * D, -1)
        norms = tuple(torch.randn(2, H * D, device=device).bfloat16())
        frames = START + torch.arange(FRAMES, device=device)[None]
        wide = tuple(part.double() for part in parts), tuple(norm.double() for norm in norms)
        exact = qk_norm_rope_store_reference(
            *wide[0], wide[1], Positions(frames, rows, columns, D, torch.float64)
        )
        positions = Positions(frames, rows, columns, D)
        into = Destination(*torch.empty(3, B, len(qkv[0]), H, D, device=device).bfloat16())
        yield Tunable(
            {"width": H * D},
            SPACE,
            partial(qk_norm_rope_store, *parts, norms, positions, into, "triton"),
            partial(_error, exact=exact),
            rounding(exact),
        )


def _error(got: tuple[torch.Tensor, ...], exact: tuple[torch.Tensor, ...]) -> float:
    return max((g.double() - e).abs().max().item() for g, e in zip(got, exact, strict=True))


if __name__ == "__main__":
    sys.exit(main("qk_norm_rope_store", cases, __doc__ or ""))
