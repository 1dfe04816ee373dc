"""Times self attention of candidates that share their parents' blocks: gathered context against blocks in place.

    python -m runtime.bench.window_attention --shapes full

Rows called "sdpa", "cudnn", "fa2", ... attend over a context that was gathered before the clock began; "sdpa+gather" pays
for the gather too, as the first pass of every chunk does for each layer; "triton" never gathers. All of them write or
read the chunk's own keys as a pass does. Two histories of C blocks each are the parents; rows take turns in having them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from runtime.attention import Attend, Attention, GatheredAttention, build_attention
from runtime.bench.op import Case, main
from runtime.bench.tune import Tunable, rounding
from runtime.buffers import DevicePlan, PlanBuffers
from runtime.kernels.window_attention import BlockContext, window_attention
from runtime.kernels.window_attention_triton import SPACE
from runtime.types import ChunkPlan

OP = "window_attention"
FORCED = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
NAMED = ("varlen", "fa2", "fa3", "fa4", "triton")


def cases(device: torch.device, size: str) -> Iterator[Case]:
    """B candidates, C blocks of context, S tokens of a chunk, H heads, D head dim."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    if size == "embedded":
        for blocks in (1, 4, 8):
            yield _case(device, dtype, (4, blocks, 48, 6, 32))
    elif gpu:
        for rows, blocks in [*((4, c) for c in range(1, 9)), (1, 8), (2, 8), (8, 8)]:
            yield _case(device, dtype, (rows, blocks, 4_680, 12, 128))
    else:  # two of the twelve heads and a short context: the whole would take minutes
        yield _case(device, dtype, (1, 1, 4_680, 2, 128))


def _problem(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]
) -> tuple[Tensor, DevicePlan, Tensor]:
    """A layer's keys and values [2, N, S, H, D], which blocks each row sees, and q, k, v [3, B, S, H, D]."""
    rows, blocks, tokens, heads, head_dim = sizes
    source = torch.Generator(device).manual_seed(0)
    parents = min(rows, 2)
    shape = (2, parents * blocks, tokens, heads, head_dim)
    kv = torch.randn(shape, generator=source, device=device).to(dtype)
    qkv = torch.randn(3, rows, *shape[2:], generator=source, device=device).to(dtype)
    histories = [tuple(range(p * blocks, (p + 1) * blocks)) for p in range(parents)]
    seen = tuple(histories[row * parents // rows] for row in range(rows))
    zeros = (0,) * rows
    plan = ChunkPlan(zeros, seen, tuple((0,) * blocks for _ in seen), zeros, zeros)
    return kv, PlanBuffers(shape[1], 1, device).upload(plan), qkv


def _case(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> Case:
    rows, blocks, tokens, heads, head_dim = sizes
    kv, plan, (q, k, v) = _problem(device, dtype, sizes)
    runs = {
        name: partial(attend, 0, q, k, v) for name, attend in _attentions(kv, plan, q, k, v).items()
    }
    sample = _sample(kv, plan, q, k, v)
    return Case(
        op=OP,
        shape=f"B={rows} C={blocks} S={tokens} H={heads} D={head_dim}",
        dtype=dtype,
        runs=runs,
        errors={name: sample(run()) for name, run in runs.items()},
        moved_bytes=kv.nbytes + 4 * q.nbytes,
        flops=4 * rows * heads * tokens * (1 + blocks) * tokens * head_dim,
    )


def tunables(device: torch.device) -> Iterator[Tunable]:
    """Through descriptors and by pointers, at the head dims of both models; four candidates of two parents."""
    for tokens, heads, head_dim in ((48, 6, 32), (4_680, 12, 128)):
        case = _problem(device, torch.bfloat16, (4, 3, tokens, heads, head_dim))
        kv, plan, (q, k, v) = case
        table = torch.tensor(plan.host.blocks, dtype=torch.int32, device=device)
        counts = torch.full((len(q),), table.shape[1], dtype=torch.int32, device=device)
        context = BlockContext(*kv, table, counts)
        for form, descriptors in (("descriptors", 1), ("pointers", 0)):
            space = [config for config in SPACE if config["DESCRIPTORS"] == descriptors]
            fits = [c for c in space if not descriptors or c["BLOCK_M"] <= tokens]
            if fits:
                yield Tunable(
                    {"form": form, "width": "half", "head_dim": head_dim, "tokens": tokens},
                    fits,
                    lambda config, args=(q, k, v, context): window_attention(
                        *args, impl="triton", config=config
                    ),
                    _sample(*case[:2], q, k, v),
                    rounding(v),
                )


def _attentions(kv: Tensor, plan: DevicePlan, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Attend]:
    """What runs on this machine, ready to attend; the first is the baseline."""
    attentions: dict[str, Attention] = {"sdpa": build_attention("sdpa", kv)}
    attentions |= {n: GatheredAttention(n, kv, _forced(b)) for n, b in FORCED.items() if kv.is_cuda}
    for name in NAMED if kv.is_cuda else ("reference",) if kv.shape[2] < 1_000 else ():
        try:
            attentions[name] = build_attention(name, kv)
        except (ImportError, RuntimeError, ValueError):
            continue
    ready: dict[str, Attend] = {}
    for name, attention in attentions.items():
        attend = attention.context(plan)
        try:
            attend(0, q, k, v)
        except RuntimeError:
            if name not in FORCED:  # a backend that this torch or this GPU lacks
                raise
            continue
        ready[name] = attend
    again = build_attention("sdpa", kv)
    ready["sdpa+gather"] = lambda *args: again.context(plan)(*args)
    return ready


def _forced(backend: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return dense


def _sample(
    kv: Tensor, plan: DevicePlan, q: Tensor, k: Tensor, v: Tensor
) -> Callable[[Tensor], float]:
    """The largest error of some queries against float64: first and last row and head, the last queries of the chunk."""
    last = slice(max(q.shape[1] - 256, 0), None)
    places = {(row, head) for row in (0, len(q) - 1) for head in (0, q.shape[2] - 1)}
    exact = {}
    for row, head in places:
        blocks = list(plan.host.blocks[row])
        keys, values = (
            torch.cat([*pool[blocks, :, head], own[row, :, head]]).double()
            for pool, own in ((kv[0], k), (kv[1], v))
        )
        scores = q[row, last, head].double() @ keys.T / math.sqrt(q.shape[-1])
        exact[row, head] = scores.softmax(-1) @ values

    def error(out: Tensor) -> float:
        return max(
            float((out[row, last, head].double() - want).abs().max())
            for (row, head), want in exact.items()
        )

    return error


if __name__ == "__main__":
    raise SystemExit(main(OP, cases, __doc__ or ""))
