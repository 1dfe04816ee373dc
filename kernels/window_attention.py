"""Attention of a chunk's queries to sink blocks, window blocks and the chunk itself, without copying the context.

    out[b, s, h] = sum_t softmax_t(q[b, s, h] . k[t] / sqrt(D)) v[t]
    t runs over the tokens of blocks table[b, 0], ..., table[b, counts[b] - 1] and over the row's own keys, unmasked

Keys come rotated. A block may be moved in time before it is used: q . R(d) k = R(-d) q . k, so with ``turn`` the queries
are turned back by the block's shift d, temporal pairs (2j, 2j+1) only (see ``ema_merge``), and the keys stay as they are.

Shapes   q, own_k, own_v  [B, S, H, D], contiguous. S tokens of a chunk, H heads, D in 32, 64, 128.
         keys, values     [N, S, H, D], one layer's plane of the pool; last three axes dense, any stride between blocks.
         table            [B, C] int32 block ids in any order, beyond counts[b] anything; C may be 0.
         counts           [B] int32 in 0..C, read on the device: a captured graph serves every length.
         turn             cos and sin [B, C, D / 2] float32 of ``turn_of``, or None.
         out              [B, S, H, D] as q; lse [B, H, S] float32, natural log-sum-exp of the scaled scores, or None.
Dtypes   float32, float16, bfloat16, one for all but table, counts, turn and lse; the reference takes float64 too.
Math     Scores and softmax in float32 with exp2, weights rounded to the dtype of v before they meet it. Float32 products
         are three TF32 products each, about as exact as float32. Weights of keys that score -inf are 0; a query that
         only meets such keys gets 0 and lse -inf.
Launch   One program per BLOCK_M queries, head and row. At full size 37 tiles x 12 heads x B rows is 444 B programs, 3.4 B
         waves on 132 multiprocessors, so the keys are not split over programs. Rows run fastest, then tiles, then heads:
         a wave works on one or two heads of all rows, whose keys and values take 4680 x 128 x 2 x 2 B = 2.4 MB a block
         and head. Four siblings that share 8 blocks keep 8 + 4 own ones, 29 MB, in the 50 MB of an H100's L2; with heads
         fastest a wave would touch 12 heads, 345 MB.
Source   Online softmax: Milakov and Gimelshein 2018; its tiling: Dao, FlashAttention-2, 2023.
Raises   ValueError for shapes, dtypes, layouts or devices. Ids and counts are not range-checked: they live on the device.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.kernels import check, tuning
from runtime.kernels import window_attention_triton as kernels
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.triton_lang import triton
from runtime.kernels.tuning import Config
from runtime.kernels.window_attention_triton import OP, SPACE, builds

__all__ = [
    "SPACE",
    "BlockContext",
    "builds",
    "implementation",
    "turn_of",
    "window_attention",
    "window_attention_reference",
]

OFFERS = {"triton": NARROW}
HEAD_DIMS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class BlockContext:
    """What the rows of a batch see besides themselves: one layer of the pool, and which of its blocks."""

    keys: Tensor  # [N, S, H, D]
    values: Tensor  # [N, S, H, D]
    table: Tensor  # [B, C] int32
    counts: Tensor  # [B] int32
    turn: tuple[Tensor, Tensor] | None = None  # cos and sin [B, C, D / 2] float32


def turn_of(shifts: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin [B, C, D / 2] float32 that move blocks by ``shifts`` [B, C] frames; angles in float64.

    Pairs of the spatial axes stay. Made once per chunk, used by every layer and pass.
    """
    pairs = head_dim // 2
    temporal = pairs - 2 * (pairs // 3)
    exponents = torch.arange(pairs, dtype=torch.float64, device=shifts.device) / -temporal
    rates = torch.where(exponents > -1, 10000.0**exponents, 0.0)
    angles = shifts.double()[..., None] * rates
    return angles.cos().float(), angles.sin().float()


def window_attention_reference(
    q: Tensor, own_k: Tensor, own_v: Tensor, context: BlockContext
) -> tuple[Tensor, Tensor]:
    """The plain-torch meaning of the op -> out [B, S, H, D] and lse [B, H, S]; any device, never waits for it."""
    B, S, H, D = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    table, C = context.table.long(), context.table.shape[1]
    seen = torch.arange(C, device=q.device) < context.counts[:, None]  # [B, C]
    block_q = q[:, None].expand(B, C, S, H, D)
    if context.turn is not None:
        block_q = _turned_back(block_q, context.turn)
    keys, values = (
        torch.where(seen[:, :, None, None, None], pool[torch.where(seen, table, 0)], 0)
        for pool in (context.keys, context.values)
    )  # [B, C, S, H, D]
    far = torch.einsum("bcshd,bcthd->bhsct", block_q, keys)
    far = far.to(wide).masked_fill(~seen[:, None, None, :, None], -math.inf).flatten(3)
    near = torch.einsum("bshd,bthd->bhst", q, own_k).to(wide)
    scores = torch.cat([far, near], -1) / math.sqrt(D)  # [B, H, S, (C + 1) * S]
    lse = scores.logsumexp(-1)
    weights = (scores - torch.where(lse == -math.inf, 0, lse)[..., None]).exp().to(q.dtype)
    everything = torch.cat([values.flatten(1, 2), own_v], 1)  # [B, (C + 1) * S, H, D]
    return torch.einsum("bhst,bthd->bshd", weights, everything), lse


def _turned_back(q: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """q [B, C, S, H, D] by the opposite of each block's angles."""
    wide = torch.promote_types(q.dtype, torch.float32)
    cos, sin = (part[:, :, None, None].to(wide) for part in turn)
    even, odd = q.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos + odd * sin, odd * cos - even * sin], -1)
    return turned.flatten(-2).to(q.dtype)


def window_attention(
    q: Tensor,
    own_k: Tensor,
    own_v: Tensor,
    context: BlockContext,
    *,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    impl: str = "auto",
    config: Config | None = None,
) -> Tensor:
    """Attention of q [B, S, H, D] to its context and itself; see the module docstring for shapes, dtypes and errors.

    ``out`` and ``lse`` are written where given. ``config`` overrides the tuned launch configuration.
    """
    impl = implementation(impl, q.device, q.dtype, OFFERS)
    _check(q, own_k, own_v, context, out, lse)
    if impl == "torch":
        result, logs = window_attention_reference(q, own_k, own_v, context)
        if lse is not None:
            lse.copy_(logs)
        return result if out is None else out.copy_(result)
    check.no_gradient(impl, q, own_k, own_v, context.keys, context.values)
    if q.shape[-1] not in HEAD_DIMS:
        raise ValueError(f"q: impl='triton' takes head dims 32, 64 and 128, got {q.shape[-1]}")
    out = torch.empty_like(q) if out is None else out
    if q.numel():
        config = dict(config or _config(q, own_k, own_v, context, out))
        launch = _by_descriptor if config.pop("DESCRIPTORS", 0) else _by_pointer
        launch(q, own_k, own_v, context, out, lse, config)
    return out


def _check(
    q: Tensor,
    own_k: Tensor,
    own_v: Tensor,
    context: BlockContext,
    out: Tensor | None,
    lse: Tensor | None,
) -> None:
    check.shape("q", q, ["B", "S", "H", "D"])
    B, S, H, D = q.shape
    named = {"q": q, "own_k": own_k, "own_v": own_v} | ({} if out is None else {"out": out})
    for name, tensor in named.items():
        check.shape(name, tensor, q.shape)
        check.contiguous(name, tensor)
    pool = {"keys": context.keys, "values": context.values}
    for name, tensor in pool.items():
        check.shape(name, tensor, ["N", S, H, D])
        check.dense_rows(name, tensor, 3)
    for name, tensor in (named | pool).items():
        check.dtype(name, tensor, q.dtype)
        check.same_device(name, tensor, q)
    if context.keys.stride(0) != context.values.stride(0):
        raise ValueError(
            f"values: want its blocks {context.keys.stride(0)} elements apart as those of keys, "
            f"got {context.values.stride(0)}"
        )
    if S * H * D >= 2**31:
        raise ValueError(f"q: want less than 2^31 elements a row, got {S * H * D}")
    check.shape("table", context.table, [B, "C"])
    C = context.table.shape[1]
    tables: list[tuple[str, Tensor, list[int], torch.dtype]] = [
        ("table", context.table, [B, C], torch.int32),
        ("counts", context.counts, [B], torch.int32),
    ]
    if lse is not None:
        tables.append(("lse", lse, [B, H, S], torch.float32))
    for name, part in zip(("cos", "sin"), context.turn or (), strict=False):
        tables.append((name, part, [B, C, D // 2], torch.float32))
    for name, tensor, shape, dtype in tables:
        check.shape(name, tensor, shape)
        check.dtype(name, tensor, dtype)
        check.contiguous(name, tensor)
        check.same_device(name, tensor, q)


def _config(q: Tensor, own_k: Tensor, own_v: Tensor, context: BlockContext, out: Tensor) -> Config:
    """The tuned configuration: through descriptors where the GPU and the tensors allow them."""
    shape: dict[str, int | str] = {
        "width": "half" if q.dtype.itemsize == 2 else "single",
        "head_dim": q.shape[-1],
        "tokens": q.shape[1],
    }
    gpu = tuning.gpu_name(q.device if q.is_cuda else None)
    if context.turn is None and q.dtype.itemsize == 2 and _has_copy_engine(q.device):
        config = tuning.nearest(OP, {**shape, "form": "descriptors"}, gpu)
        if max(config["BLOCK_M"], config["BLOCK_N"]) <= q.shape[1] and not _unreachable(
            q, own_k, own_v, context, out
        ):
            return config
    form = "pointers" if context.turn is None else "turned"
    return tuning.nearest(OP, {**shape, "form": form}, gpu)


@functools.cache
def _has_copy_engine(device: torch.device) -> bool:
    """Tensor descriptors in hardware, and the shared memory that their configurations use."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)


def _unreachable(
    q: Tensor, own_k: Tensor, own_v: Tensor, context: BlockContext, out: Tensor
) -> str:
    """Why descriptors cannot describe these tensors; empty when they can."""
    keys, values = context.keys, context.values
    if not (keys.is_contiguous() and values.is_contiguous()):
        return "want the blocks of keys and values side by side"
    if any(t.data_ptr() % 16 for t in (q, own_k, own_v, keys, values, out)):
        return "want every tensor at a multiple of 16 bytes"
    _, S, H, D = q.shape
    token_bytes = H * D * q.element_size()
    for own, pool in ((own_k, keys), (own_v, values)):
        apart = abs(own.data_ptr() - pool.data_ptr()) // token_bytes
        if apart + max(len(own), len(pool)) * S >= 2**31 - 1:
            return "want the chunk's own keys within 2^31 tokens of the pool in memory"
    return ""


def _by_pointer(
    q: Tensor, own_k: Tensor, own_v: Tensor, context: BlockContext,
    out: Tensor, lse: Tensor | None, config: Config,
) -> None:  # fmt: skip
    B, S, H, D = q.shape
    cos, sin = context.turn or (context.counts, context.counts)
    config.pop("SPECIALISE", None)
    kernels.pointer_kernel[B, triton.cdiv(S, config["BLOCK_M"]), H](
        q, own_k, own_v, context.keys, context.values, context.table, context.counts, cos, sin, out,
        context.counts if lse is None else lse,
        S, _scale(D), context.keys.stride(0), context.table.shape[1],
        HEAD_DIM=D, TURN=context.turn is not None, LSE=lse is not None, PRECISION=kernels.precision(q.dtype),
        **config,
    )  # fmt: skip


def _by_descriptor(
    q: Tensor, own_k: Tensor, own_v: Tensor, context: BlockContext,
    out: Tensor, lse: Tensor | None, config: Config,
) -> None:  # fmt: skip
    B, S, H, D = q.shape
    tiles = max(config["BLOCK_M"], config["BLOCK_N"])
    reason = _unreachable(q, own_k, own_v, context, out)
    if context.turn is not None or tiles > S or reason:
        raise ValueError(
            "config: DESCRIPTORS=1 takes no turn and at least as many tokens as a tile has "
            f"({tiles}), got {S}; {reason or 'use DESCRIPTORS=0'}"
        )
    triton.set_allocator(_descriptor_memory)
    config["SPECIALISE"] = bool(config.get("SPECIALISE", 0))  # type: ignore[assignment]
    kernels.descriptor_kernel[B, triton.cdiv(S, config["BLOCK_M"]), H](
        q, own_k, own_v, context.keys, context.values, context.table, context.counts, out,
        context.counts if lse is None else lse, S, _scale(D), context.table.shape[1], B,
        HEAD_DIM=D, LSE=lse is not None, PRECISION=kernels.precision(q.dtype), **config,
    )  # fmt: skip


def _descriptor_memory(size: int, alignment: int, stream: int | None) -> Tensor:
    """Where a launch writes its descriptors; from torch's allocator, so a graph capture keeps it."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _scale(head_dim: int) -> float:
    return math.log2(math.e) / math.sqrt(head_dim)
