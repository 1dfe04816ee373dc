"""Norm and rotate queries and keys, and write them with the values to where attention reads them: one pass over memory.

    q', k' = R(position) (x / rms(x) * weight)      rms over all heads at once: sqrt(mean(x^2) + 1e-6)
    v'     = v

R turns adjacent pairs (2j, 2j+1) of every head by the angles of the token's frame, row and column (``rotary.py``).

Shapes   q, k, v         [B, S, E], last axis dense, any other strides: three slices of one fused projection will do.
         norms           two weights [E], of q and of k.
         positions       ``Positions`` of S tokens, frames int64 [B or 1, F]; E = heads * head_dim.
         result          q', k', v' [B, S, H, D]. Fresh q' and k', and v as a view, unless ``into`` names a place.
         into            ``Destination``: q, k, v [B, S, H, D] with dense heads, any other strides; or q and two planes
                         [N, S, H, D] of a pool and ``blocks`` [B] int32: row b is written to block blocks[b].
         One of float32, bfloat16, float16 for all; the reference takes float64 too.
Math     float32, rounded once on store. Angles are exact for any frame in int64.
Source   Wan 2.1, self attention: RMSNorm over the full width, then 3-axis rotary positions.
Raises   ValueError for a wrong shape, dtype, device or layout, and for an input that wants a gradient (the reference
         has one). Block ids are not range-checked: they live on the device. A place written to is an input itself
         (q' may be q) or does not overlap with any.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.kernels import check, tuning
from runtime.kernels.build import Build, pointer
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.layout import Key, addresses, key, layouts
from runtime.kernels.native import extension
from runtime.kernels.rotary import Positions, rotate, turn_rates
from runtime.kernels.triton_lang import jit, tl, triton
from runtime.kernels.tuning import Config

EPS = 1e-6
FLOATS = (*NARROW, torch.float64)
SPACE: list[Config] = [{"num_warps": warps, "num_stages": 1} for warps in (1, 2, 4, 8)]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where q, k and v of a layer go; without ``blocks`` row b of the batch goes to row b."""

    q: Tensor  # [B, S, H, D]
    k: Tensor  # [B, S, H, D], or a plane [N, S, H, D] of a pool
    v: Tensor  # as k
    blocks: Tensor | None = None  # [B] int32


def rms_norm_reference(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., E] times weight [E] over its root mean square, in at least float32."""
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    return y.to(x.dtype) * weight


def qk_norm_rope_store_reference(
    q: Tensor, k: Tensor, v: Tensor, norms: tuple[Tensor, Tensor], positions: Positions
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain-torch meaning of the op without a destination; runs anywhere, in any float dtype, with gradients."""
    q, k, v = (
        x.unflatten(-1, (-1, positions.head_dim))
        for x in (rms_norm_reference(q, norms[0]), rms_norm_reference(k, norms[1]), v)
    )
    cos, sin = positions.cos_sin
    return rotate(q, cos, sin), rotate(k, cos, sin), v


@jit
def _cos_sin(turn):
    """cos and sin of an angle in 2^-64 turns: whole quarters by integers, series for the rest, in [-pi/4, pi/4]."""
    word = (turn >> 32).to(tl.int32)
    quadrant = (word + (1 << 29)) >> 30
    t = (word - (quadrant << 30)).to(tl.float32) * 1.4629180792671596e-9  # 2 pi / 2^32
    z = t * t
    s = t + t * z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * (1 / 362880))))
    c = 1 + z * (-1 / 2 + z * (1 / 24 + z * (-1 / 720 + z * (1 / 40320 - z * (1 / 3628800)))))
    odd = (quadrant & 1) != 0
    x, y = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((quadrant + 1) & 2) != 0, -x, x), tl.where((quadrant & 2) != 0, -y, y)


@jit
def _normed(x, weight, E: tl.constexpr):
    """x [H, D] float32 over its root mean square, times weight."""
    square = tl.sum(tl.sum(x * x, axis=1), axis=0)
    return x * tl.rsqrt(square / E + 1e-6) * weight.to(tl.float32)


@jit
def _rotated(x, cos, sin, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    """Adjacent pairs of x [H, D] turned; both members of a pair lie in the registers of one thread."""
    even, odd = tl.split(tl.reshape(x, [BLOCK_H, BLOCK_D // 2, 2]))
    turned = tl.join(even * cos - odd * sin, odd * cos + even * sin)
    return tl.reshape(turned, [BLOCK_H, BLOCK_D])


# One program is one token: its q, k and v are loaded before anything is computed, so that all of its reads are in
# flight together. Eight neighbouring values of a head are one thread's: 16-byte accesses in the narrow dtypes.
@jit
def _qk_norm_rope_store_kernel(
    q, k, v, norm_q, norm_k, rates, frames, out_q, out_k, out_v, blocks,
    q_b, q_s, k_b, k_s, v_b, v_s, to_q_b, to_q_s, to_k_b, to_k_s, to_v_b, to_v_s,
    frames_b, patches, columns,
    H: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
    ROTATE: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    s, b = token.to(tl.int64), tl.program_id(1).to(tl.int64)
    head, d = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_D)[None, :]
    offs, mask = head * D + d, (head < H) & (d < D)
    row = b
    if BLOCKS:
        row = tl.load(blocks + b).to(tl.int64)
    query = tl.load(q + b * q_b + s * q_s + offs, mask=mask, other=0.0)
    weight = tl.load(norm_q + offs, mask=mask, other=0.0)
    if KEYS:
        key = tl.load(k + b * k_b + s * k_s + offs, mask=mask, other=0.0)
        key_weight = tl.load(norm_k + offs, mask=mask, other=0.0)
    if VALUES:
        value = tl.load(v + b * v_b + s * v_s + offs, mask=mask, other=0.0)
        tl.store(out_v + row * to_v_b + s * to_v_s + offs, value, mask=mask)
    query = _normed(query.to(tl.float32), weight, H * D)
    if ROTATE:
        pair = tl.arange(0, BLOCK_D // 2)
        side: tl.constexpr = D // 2 // 3
        time: tl.constexpr = D // 2 - 2 * side
        patch = token % patches
        frame = tl.load(frames + b * frames_b + token // patches)
        place = tl.where(pair < time + side, patch // columns, patch % columns)
        rate = tl.load(rates + pair, mask=pair < D // 2, other=0)
        cos, sin = _cos_sin(tl.where(pair < time, frame, place) * rate)
        cos, sin = cos[None, :], sin[None, :]
        query = _rotated(query, cos, sin, BLOCK_H, BLOCK_D)
    tl.store(out_q + b * to_q_b + s * to_q_s + offs, query.to(out_q.dtype.element_ty), mask=mask)
    if KEYS:
        key = _normed(key.to(tl.float32), key_weight, H * D)
        if ROTATE:
            key = _rotated(key, cos, sin, BLOCK_H, BLOCK_D)
        at = out_k + row * to_k_b + s * to_k_s + offs
        tl.store(at, key.to(out_k.dtype.element_ty), mask=mask)


def qk_norm_rope_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    norms: tuple[Tensor, Tensor],
    positions: Positions,
    into: Destination | None = None,
    impl: str = "auto",
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """q', k', v' [B, S, H, D], or the places of ``into``; see the module docstring for shapes, dtypes and errors."""
    impl = implementation(impl, q.device, q.dtype)
    if impl == "torch" and into is None:
        return qk_norm_rope_store_reference(q, k, v, norms, positions)
    check.no_gradient(impl, q, k, v, *norms)
    to = (None, None, None, None) if into is None else (into.q, into.k, into.v, into.blocks)
    inputs, frames = (q, k, v, *norms), positions.frames
    grid = (positions.rows, positions.columns, positions.head_dim)
    plan = _plan(impl, key(*inputs, frames, *to), grid)
    if impl == "torch" and into is not None:
        _copy(qk_norm_rope_store_reference(q, k, v, norms, positions), into)
        return into.q, into.k, into.v
    rates = turn_rates(positions.head_dim, q.device)
    if into is not None:
        plan.run((*inputs, rates, frames, *to), config)
        return into.q, into.k, into.v
    new_q, new_k = q.new_empty(plan.sizes), q.new_empty(plan.sizes)
    plan.run((*inputs, rates, frames, new_q, new_k, None, None), config)
    return new_q, new_k, v.unflatten(-1, plan.sizes[2:])


def rms_norm(x: Tensor, weight: Tensor, impl: str = "auto", config: Config | None = None) -> Tensor:
    """x [B, S, E] normed and weighted as queries are, without a rotation -> [B, S, E]."""
    impl = implementation(impl, x.device, x.dtype)
    if impl == "torch":
        return rms_norm_reference(x, weight)
    check.no_gradient(impl, x, weight)
    inputs = (x, None, None, weight, None)
    plan = _plan(impl, key(*inputs, *[None] * 5), None)
    out = x.new_empty(x.shape)
    plan.run((*inputs, None, None, out, None, None, None), config)
    return out


@dataclass(frozen=True, slots=True)
class _Plan:
    """A launch but for its addresses, which come in the order of the kernel's arguments. None is what is not there."""

    sizes: tuple[int, int, int, int]  # B, S, H, D
    steps: tuple[int, ...]  # of q, k, v and where they go: batch and token
    grid: tuple[int, int, int]  # batch stride of the frames, patches of a frame, columns
    native: Any  # the extension's plan

    def run(self, tensors: Sequence[Tensor | None], config: Config | None) -> None:
        if 0 in self.sizes:
            return
        if self.native is None:
            return self._triton(tensors, config)
        q, k, v, norm_q, norm_k, rates, frames, to_q, to_k, to_v, blocks = addresses(*tensors)
        from_v = v if to_v else 0
        to, norms, threads = (to_q, to_k, to_v), (norm_q, norm_k), torch.get_num_threads()
        self.native((q, k, from_v), to, norms, rates, frames, blocks, threads)

    def _triton(self, tensors: Sequence[Tensor | None], config: Config | None) -> None:
        B, S, H, D = self.sizes
        config = config or tuning.nearest("qk_norm_rope_store", {"width": H * D}, tuning.gpu_name())
        q, k, rates, to_v, blocks = (tensors[i] for i in (0, 1, 5, 9, 10))
        _qk_norm_rope_store_kernel[(S, B)](
            *(q if t is None else t for t in tensors),  # q stands for what is never touched
            *self.steps, *self.grid,
            H=H, D=D, BLOCK_H=triton.next_power_of_2(H), BLOCK_D=triton.next_power_of_2(D),
            ROTATE=rates is not None, KEYS=k is not None, VALUES=to_v is not None,
            BLOCKS=blocks is not None, **config,
        )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _plan(impl: str, of: Key, grid: tuple[int, int, int] | None) -> _Plan:
    """``grid`` is rows, columns and head dim of a rotation."""
    q, k, v, norm_q, norm_k, frames, to_q, to_k, to_v, blocks = layouts(of)
    check.shape("q", q, ["B", "S", "E"])
    B, S, E = q.shape
    for name, x in (("q", q), ("k", k), ("v", v), ("norm_q", norm_q), ("norm_k", norm_k)):
        if x is not None:
            check.shape(name, x, [B, S, E] if name in "qkv" else [E])
            _check_like(name, x, q, FLOATS)
            check.dense_rows(name, x, 1)
    rows, columns, D = grid or (1, 1, E)
    frames_step = 0
    if grid is not None:
        _check_positions(frames, q, grid)
        frames_step = frames.steps(0)[0]
    sizes = (B, S, E // D, D)
    if to_q is not None:
        _check_destination((to_q, to_k, to_v), blocks, q, sizes)
    steps: list[int] = []
    for x in (q, k, v, to_q, to_k, to_v):
        if x is None:  # fresh, or not there
            steps += [S * E, E]
        else:
            steps += x.strides[:2]
    native = None
    if impl == "native" and 0 not in sizes:
        name = str(q.dtype).removeprefix("torch.")
        native = extension().QKNormRopeStore(steps, (rows, columns), frames_step, sizes, name)
    return _Plan(sizes, tuple(steps), (frames_step, rows * columns, columns), native)


def _check_like(name: str, x: Any, q: Any, dtypes: Sequence[torch.dtype] = ()) -> None:
    check.dtype(name, x, dtypes or q.dtype)
    check.dtype(name, x, q.dtype)
    check.same_device(name, x, q)


def _check_positions(frames: Any, q: Any, grid: tuple[int, int, int]) -> None:
    (B, S, E), (rows, columns, D) = q.shape, grid
    check.shape(
        "positions.frames", frames, [1 if len(frames.shape) and frames.shape[0] == 1 else B, "F"]
    )
    check.dtype("positions.frames", frames, torch.int64)
    check.dense_rows("positions.frames", frames, 1)
    check.same_device("positions.frames", frames, q)
    if D < 6 or D % 2 or E % D:
        raise ValueError(f"positions.head_dim: want an even divisor of {E}, at least 6, got {D}")
    if frames.shape[1] * rows * columns != S:
        raise ValueError(
            f"positions: want {S} tokens as q has, got {frames.shape[1]} frames of {rows} x {columns}"
        )


def _check_destination(to: Sequence[Any], blocks: Any, q: Any, sizes: Sequence[int]) -> None:
    for name, place in zip("qkv", to, strict=True):
        paged = blocks is not None and name != "q"
        check.shape(f"into.{name}", place, ["N" if paged else sizes[0], *sizes[1:]])
        check.dense_rows(f"into.{name}", place, 2)
        _check_like(f"into.{name}", place, q)
    if blocks is not None:
        check.shape("into.blocks", blocks, sizes[:1])
        check.dtype("into.blocks", blocks, torch.int32)
        check.contiguous("into.blocks", blocks)
        check.same_device("into.blocks", blocks, q)


def _copy(made: tuple[Tensor, Tensor, Tensor], into: Destination) -> None:
    """The reference's way to a destination."""
    into.q.copy_(made[0])
    for x, to in zip(made[1:], (into.k, into.v), strict=True):
        if into.blocks is None:
            to.copy_(x)
        else:
            to[into.blocks.long()] = x


def builds() -> Iterator[Build]:
    """Every form that a launch at full size could ask for; float16 and float32 only as the model's own layers do."""
    forms: dict[str, dict[str, int]] = {
        "q k": {"KEYS": True},
        "q k v": {"KEYS": True, "VALUES": True},
        "q k v to blocks": {"KEYS": True, "VALUES": True, "BLOCKS": True},
        "q without positions": {"ROTATE": False, "H": 1, "D": 1536, "BLOCK_H": 1, "BLOCK_D": 2048},
    }
    sizes = {"H": 12, "D": 128, "BLOCK_H": 16, "BLOCK_D": 128}
    flags = {"ROTATE": True, "KEYS": False, "VALUES": False, "BLOCKS": False}
    tensors = ["q", "k", "v", "norm_q", "norm_k", "out_q", "out_k", "out_v"]
    steps = [f"{to}{x}_{axis}" for to in ("", "to_") for x in "qkv" for axis in "bs"]
    for dtype in sorted(NARROW, key=str):
        for label, form in forms.items():
            if dtype != torch.bfloat16 and label != "q k v":
                continue
            for config in tuning.shipped("qk_norm_rope_store"):
                constants = {**sizes, **flags, **form}
                # What is not there has q in its place, and q's type.
                blocks = torch.int32 if constants["BLOCKS"] else dtype
                angles = torch.int64 if constants["ROTATE"] else dtype
                yield Build(
                    f"qk_norm_rope_store {dtype} {label} {config}",
                    _qk_norm_rope_store_kernel,
                    {
                        **dict.fromkeys(tensors, pointer(dtype)),
                        "blocks": pointer(blocks),
                        **dict.fromkeys(("rates", "frames"), pointer(angles)),
                        **dict.fromkeys([*steps, "frames_b", "patches", "columns"], "i32"),
                    },
                    constants,
                    config["num_warps"],
                    config["num_stages"],
                    frozenset([*tensors, *steps, "blocks", "rates", "frames"]),
                )
