"""Self attention of a chunk to its context: every implementation behind one call, chosen by name.

    attention = build_attention("triton", pool.kv)    once, probes what the name needs
    context = attention.context(plan)                 once per chunk and batch; a plan that is on the device
    out = context(layer, q, k, v)                     in every layer of every pass

"triton" reads blocks where they lie; "sdpa", "varlen", "fa2", "fa3" and "fa4" gather the context once per chunk into a
buffer that is kept, and each pass rewrites only its own place in it, best by writing k and v there at once
(``context.destinations``); "reference" is plain torch and slow.

Legend: B rows of a batch, S tokens of a chunk, H heads, D head dim, N blocks in the pool, P = 2 * layers planes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from runtime.attention.libraries import Dense, library
from runtime.buffers import DevicePlan, PlanBuffers
from runtime.kernels import triton_lang
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.ema_merge import shift_keys
from runtime.kernels.qk_norm_rope_store import Destination
from runtime.kernels.window_attention import (
    HEAD_DIMS,
    OFFERS,
    BlockContext,
    turn_of,
    window_attention,
)
from runtime.settings import ATTENTIONS
from runtime.types import ChunkPlan

# (layer, q, k, v) -> out, all [B, S, H, D], contiguous; q and k come rotated
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True, slots=True)
class Context:
    """What the queries of one batch see. Called as ``Attend``."""

    attend: Attend
    # layer -> where its q, k and v are best written; None: anywhere. What lies there already is not copied.
    destinations: Callable[[int], Destination] | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(layer, q, k, v)


class Attention(Protocol):
    """One implementation over one pool. ``name`` is what really runs, never "auto"."""

    name: str
    fixed: (
        bool  # its contexts read the plan at fixed addresses: a captured graph serves every chunk
    )

    def context(self, plan: DevicePlan) -> Context:
        """What the batch of ``plan`` sees; good until the next call of ``context``."""
        ...


def build_attention(name: str, kv: Tensor) -> Attention:
    """The attention called ``name`` over a pool's kv [P, N, S, H, D].

    Raises ValueError for an unknown name or a pool that it does not take, RuntimeError for what is not installed or
    does not compute what the reference does.
    """
    if name not in ATTENTIONS:
        raise ValueError(f"run.attention: want one of {', '.join(ATTENTIONS)}, got {name!r}")
    if name == "auto":
        name = _best(kv)
    if name == "reference":
        return BlockAttention(name, kv, "torch")
    if name == "sdpa":
        return GatheredAttention(name, kv, sdpa)
    make = _maker(name, kv)
    if kv.is_cuda:  # machine code that another compiler or another project made for this GPU
        _check_numbers(make, kv)
    return make(kv)


def _maker(name: str, kv: Tensor) -> Callable[[Tensor], Attention]:
    """What builds the attention called ``name`` over a pool like kv."""
    if name == "triton":
        impl = _takes_triton(kv)
        return lambda pool: BlockAttention(name, pool, impl)
    _takes_half_on_gpu(name, kv)
    if name == "varlen":
        return lambda pool: VarlenAttention(name, pool)
    dense = library(name)
    return lambda pool: GatheredAttention(name, pool, dense)


def _best(kv: Tensor) -> str:
    fits = kv.is_cuda and kv.dtype in NARROW and kv.shape[-1] in HEAD_DIMS
    return "triton" if fits and triton_lang.AVAILABLE else "sdpa"


class BlockAttention:
    """Block ids instead of a copy: the kernel reads the pool."""

    fixed = True

    def __init__(self, name: str, kv: Tensor, impl: str) -> None:
        self.name = name
        self.kv = kv
        self.impl = impl
        self.layers = kv.shape[0] // 2
        self.turns: dict[int, tuple[Tensor, Tensor]] = {}  # by rows
        self.fresh = kv.new_empty(3, 0, *kv.shape[2:])

    def context(self, plan: DevicePlan) -> Context:
        turn = None
        if any(map(any, plan.host.shifts)):
            made = turn_of(plan.shifts, self.kv.shape[-1])
            turn = self.turns.setdefault(plan.host.rows, made)
            for kept, fresh in zip(turn, made, strict=True):
                kept.copy_(fresh)
        own = self._own(plan.host.rows)
        return Context(partial(self._attend, plan.table, plan.counts, turn), lambda layer: own)

    def _own(self, rows: int) -> Destination:
        """Where any layer's q, k and v go: a layer is done with them before the next one writes."""
        if self.fresh.shape[1] < rows:
            self.fresh = self.kv.new_empty(3, rows, *self.kv.shape[2:])
        return Destination(*self.fresh[:, :rows])

    def _attend(
        self,
        table: Tensor,
        counts: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        keys, values = self.kv[layer], self.kv[self.layers + layer]
        context = BlockContext(keys, values, table, counts, turn)
        return window_attention(q, k, v, context, impl=self.impl)


def _pinned(host: Tensor, kv: Tensor) -> Tensor:
    """From pageable memory the copy to a GPU would make the host wait."""
    return host.pin_memory() if kv.is_cuda else host


class GatheredAttention:
    """The context copied from the pool once per chunk, for functions that want each row's keys in one piece.

    A row is laid out [own chunk | context blocks]: the own part sits at a fixed place however long the context is.
    """

    fixed = False

    def __init__(self, name: str, kv: Tensor, dense: Dense) -> None:
        self.name = name
        self.kv = kv
        self.dense = dense
        self.memory = kv.new_empty(0)

    def context(self, plan: DevicePlan) -> Context:
        planes, _, tokens, heads, head_dim = self.kv.shape
        host = plan.host
        longest = 1 + max(map(len, host.blocks))
        shape = (2, planes // 2, host.rows, longest * tokens, heads, head_dim)
        keys, values = self._room(shape)  # each [layers, B, S + T, H, D]
        for row in range(host.rows):
            place = slice(tokens, None)
            _gather(self.kv, host, row, keys[:, row, place], values[:, row, place])
        spans = list(_equal_runs([*map(len, host.blocks)]))
        own = keys[:, :, :tokens], values[:, :, :tokens]
        queries = self.kv.new_empty(host.rows, tokens, heads, head_dim)
        return Context(
            partial(self._attend, keys, values, spans),
            lambda layer: Destination(queries, own[0][layer], own[1][layer]),
        )

    def _room(self, shape: tuple[int, ...]) -> Tensor:
        """Memory of this shape, the same as long as it is enough."""
        elements = torch.Size(shape).numel()
        if elements > self.memory.numel():
            self.memory = self.kv.new_empty(0)  # the old one goes before the new one comes
            self.memory = self.kv.new_empty(elements)
        return self.memory[:elements].view(shape)

    def _attend(
        self,
        keys: Tensor,
        values: Tensor,
        spans: Sequence[tuple[int, int, int]],
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        tokens = q.shape[1]
        for own, fresh in ((keys[layer, :, :tokens], k), (values[layer, :, :tokens], v)):
            if own.data_ptr() != fresh.data_ptr():
                own.copy_(fresh)
        out = torch.empty_like(q)
        for first, last, blocks in spans:
            rows, length = slice(first, last), (1 + blocks) * tokens
            out[rows] = self.dense(
                q[rows], keys[layer, rows, :length], values[layer, rows, :length]
            )
        return out


def _gather(kv: Tensor, plan: ChunkPlan, row: int, keys: Tensor, values: Tensor) -> None:
    """One row's blocks in order, keys moved in time, into keys and values [layers, at least T, H, D]."""
    layers, tokens = kv.shape[0] // 2, kv.shape[2]
    for place, (block, shift) in enumerate(zip(plan.blocks[row], plan.shifts[row], strict=True)):
        span = slice(place * tokens, (place + 1) * tokens)
        keys[:, span] = shift_keys(kv[:layers, block], shift)
        values[:, span] = kv[layers:, block]


def _equal_runs(values: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbours with the same value, as (first, past last, value)."""
    first = 0
    for value, run in groupby(values):
        last = first + len(list(run))
        yield first, last, value
        first = last


class VarlenAttention(GatheredAttention):
    """torch's variable-length kernel: rows of any length in one launch, bit-equal however they are batched.

    Its own block table wants pages of a multiple of 256 tokens, a chunk has 4,680: the context is gathered, without gaps.
    """

    def __init__(self, name: str, kv: Tensor) -> None:
        super().__init__(name, kv, sdpa)
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError as error:
            raise RuntimeError("run.attention='varlen': needs torch 2.10 or later") from error
        known = inspect.signature(varlen_attn).parameters
        options = {"num_splits": 1} if "num_splits" in known else {}
        self.call: Callable[..., Tensor] = partial(cast(Any, varlen_attn), **options)

    def context(self, plan: DevicePlan) -> Context:
        planes, _, tokens, heads, head_dim = self.kv.shape
        lengths = [(1 + len(row)) * tokens for row in plan.host.blocks]
        ends = list(accumulate(lengths, initial=0))
        keys, values = self._room((2, planes // 2, ends[-1], heads, head_dim))
        for row, first in enumerate(ends[:-1]):
            place = slice(first + tokens, ends[row + 1])
            _gather(self.kv, plan.host, row, keys[:, place], values[:, place])
        queries = range(0, (plan.host.rows + 1) * tokens, tokens)
        bounds = torch.tensor([[*queries], ends], dtype=torch.int32)
        q_ends, k_ends = _pinned(bounds, self.kv).to(self.kv.device, non_blocking=True)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for row, first in enumerate(ends[:-1]):
                keys[layer, first : first + tokens] = k[row]
                values[layer, first : first + tokens] = v[row]
            out = self.call(
                q.flatten(0, 1), keys[layer], values[layer], q_ends, k_ends, tokens, max(lengths)
            )
            return out.view_as(q)

        return Context(attend)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention; on a GPU the fastest of its backends that takes these tensors, cuDNN first."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if q.is_cuda:
        with sdpa_kernel(FASTEST_FIRST, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _takes_triton(kv: Tensor) -> str:
    if kv.shape[-1] not in HEAD_DIMS:
        known = ", ".join(map(str, HEAD_DIMS))
        raise ValueError(
            f"run.attention='triton': takes head dims {known}, got {kv.shape[-1]}; use 'sdpa'"
        )
    return implementation("triton", kv.device, kv.dtype, OFFERS)


def _takes_half_on_gpu(name: str, kv: Tensor) -> None:
    if not kv.is_cuda or kv.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"run.attention={name!r}: takes float16 and bfloat16 on a GPU, got {kv.dtype} on {kv.device}; use 'sdpa'"
        )


def _check_numbers(make: Callable[[Tensor], Attention], kv: Tensor) -> None:
    """A small ragged case against float64, once, when the engine is built: at most twice the error of torch's own."""
    source = torch.Generator(kv.device).manual_seed(0)
    tokens, (heads, head_dim) = 200, kv.shape[-2:]
    nothing = (0, 0, 0)
    host = ChunkPlan(nothing, ((2, 0), (1,), ()), ((0, 0), (0,), ()), nothing, nothing)
    plan = PlanBuffers(3, 1, kv.device).upload(host)
    shape = (2, 3, tokens, heads, head_dim)
    small = torch.randn(shape, generator=source, device=kv.device).to(kv.dtype)
    qkv = torch.randn(3, *shape[1:], generator=source, device=kv.device).to(kv.dtype)
    attention = make(small)
    exact = BlockAttention("reference", small.double(), "torch").context(plan)(0, *qkv.double())
    error, plain = (
        float((one.context(plan)(0, *qkv).double() - exact).abs().max())
        for one in (attention, GatheredAttention("sdpa", small, sdpa))
    )
    allowed = max(2 * plain, torch.finfo(kv.dtype).eps * float(exact.abs().max()))
    if not error <= allowed:
        raise RuntimeError(
            f"run.attention={attention.name!r}: its result is off by {error:.1e}, allowed {allowed:.1e} for "
            f"{kv.dtype}; use 'sdpa'"
        )
