"""Times ``ema_merge``: every storage, on the embedded model's block and on the full-size one.

    python -m runtime.bench.ema_merge                         # tests first, then the table
    python -m runtime.bench.ema_merge --plot ema_merge.png

The merge is in place on a scratch pool: the sink that a run reads is its own last result, which costs the same. Errors
come from a first merge of fresh values. On the CPU the full-size block has 1 of its 30 layers: plain torch
would take minutes for all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch

from runtime.bench.op import Case, implementations, main
from runtime.bench.tune import Tunable, rounding
from runtime.kernels.ema_merge import STORAGES, Ema, ema_merge_, ema_merge_reference
from runtime.kernels.ema_merge_triton import SPACE
from runtime.kernels.tuning import Config

BLOCKS = {"embedded": (12, 48, 6, 32), "full": (60, 4680, 12, 128)}  # P, S, H, D
CPU_PLANES = 2
FORMS = ((torch.float32, "once"), *((torch.bfloat16, storage) for storage in STORAGES))
SHIFT = -9


def cases(device: torch.device, size: str) -> Iterator[Case]:
    planes, *rest = BLOCKS[size]
    if size == "full" and device.type == "cpu":
        planes = CPU_PLANES
    impls = implementations(device)
    for dtype, storage in FORMS:
        yield case((planes, *rest), dtype, Ema(0.999, SHIFT, storage, 42), impls, device)


def case(
    shape: tuple[int, ...], dtype: torch.dtype, how: Ema, impls: list[str], device: torch.device
) -> Case:
    pool = torch.randn(shape[0], 2, *shape[1:], device=device).to(dtype)  # sink, evicted
    shadowed = how.storage == "fp32_shadow"
    shadow = torch.empty(shape, dtype=torch.float32, device=device) if shadowed else None
    first = pool[:, 0].clone()
    errors = {}
    for impl in impls:
        pool[:, 0].copy_(first)
        ema_merge_(pool[:, 0], pool[:, 0], pool[:, 1], how, shadow_out=shadow, impl=impl)
        errors[impl] = largest_error(pool, first, how)
    merge = partial(
        ema_merge_, pool[:, 0], pool[:, 0], pool[:, 1], how, shadow_in=shadow, shadow_out=shadow
    )
    # Evicted and sink are read and the sink written; with a shadow that is read in the sink's stead.
    item = dtype.itemsize
    moved = (2 * item + 8 if shadowed else 3 * item) * first.numel()
    name = "P={} S={} H={} D={} {}".format(*shape, how.storage)
    runs = {impl: partial(merge, impl=impl) for impl in impls}
    return Case("ema_merge", name, dtype, runs, errors, moved_bytes=moved)


def tunables(device: torch.device) -> Iterator[Tunable]:
    """The plane sizes that a launch asks for. Not in place, so that every launch reads the same sink."""
    how = Ema(0.999, SHIFT, "once", 42)
    for planes, *rest in BLOCKS.values():
        pool = torch.randn(planes, 3, *rest, device=device).half()
        out, sink, evicted = pool.unbind(1)

        def run(config: Config, out=out, sink=sink, evicted=evicted) -> torch.Tensor:
            ema_merge_(out, sink, evicted, how, impl="triton", config=config)
            return out

        exact = ema_merge_reference(sink[::planes], evicted[::planes], how)  # one plane of keys
        yield Tunable(
            {"elements": out[0].numel()},
            SPACE,
            run,
            lambda got, exact=exact, step=planes: float((got[::step] - exact).abs().max()),
            rounding(exact, torch.float16),
        )


def largest_error(pool: torch.Tensor, first: torch.Tensor, how: Ema) -> float:
    """Against the reference in float64, a pair of planes at a time."""
    exact, worst, half = Ema(how.alpha, how.shift_frames), 0.0, len(pool) // 2
    for layer in range(half):
        planes = [layer, half + layer]
        want = ema_merge_reference(first[planes].double(), pool[planes, 1].double(), exact)
        worst = max(worst, (pool[planes, 0].double() - want).abs().max().item())
    return worst


if __name__ == "__main__":
    sys.exit(main("ema_merge", cases, __doc__.split("\n")[0]))
