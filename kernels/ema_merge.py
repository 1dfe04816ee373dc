"""Fold an evicted KV block into a sink block, keys turned to the sink's place in time first.

    k[out] <- alpha * k[sink] + (1 - alpha) * R(shift) k[evicted]      shift = sink start - evicted start, in frames
    v[out] <- alpha * v[sink] + (1 - alpha) * v[evicted]

R(d) rotates every temporal pair (2j, 2j+1), j < m, by d * 10000^(-j/m), with m = p - 2 * (p // 3) of the p = D / 2 pairs:
keys are kept rotated at the frame they were born at, so an evicted key must be moved to where the sink lies before the
two can be averaged. ``out`` may be the sink itself or another block. All layers go in one launch.

In bfloat16 0.999 * x rounds back to x, so how the result is stored decides whether anything moves at all:

    "once"         rounded once, to nearest. All that float32 and float64 need.
    "fp32_shadow"  bfloat16, float16. ``shadow_out`` gets the float32 result, ``out`` its rounding; the next merge starts
                   from the shadow (``shadow_in``), so roundings never add up. The default of fidelity "paper".
    "stochastic"   bfloat16. Rounded up or down with the probability that makes the mean exact, by 16 bits of Philox for
                   each element; see ``stochastic_reference``. Costs no memory; right on average, not in each element.
    "released"     rounded after each of the three operations, and after the turn, as the released code does: after 100
                   merges of the embedded model's chunks 20 % of the way is gone (``bench/ema_drift.py``). In float32 the
                   same bits as "once".

Shapes   out, sink, evicted      [P, S, H, D] float32, bfloat16 or float16 (float64: impl="torch"). P = 2 * layers: keys
                                 then values; S tokens, H heads, D head dim. A plane lies dense, planes may be any
                                 stride apart: ``pool[:, block]``. ``out`` overlaps neither ``evicted`` nor part of ``sink``.
         shadow_in, shadow_out   [P, S, H, D] float32 or None; may be the same.
Math     float32 (float64 for float64), every operation rounded by itself in the order written, cos and sin from float64
         angles on the host: all implementations give the same bits. A NaN stays a NaN of any kind.
Source   Stream-T1, memory sinking.
Raises   ValueError for shapes, dtypes, layouts or devices that do not fit, a storage that the dtype has no use for, and
         sizes that an implementation does not take; RuntimeError for one that is not there.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.kernels import check, tuning
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.ema_merge_triton import SPACE, STREAM, builds, ema_merge_kernel
from runtime.kernels.native import extension
from runtime.kernels.philox import philox_words_reference

__all__ = [
    "OFFERS",
    "SPACE",
    "STORAGES",
    "STREAM",
    "Ema",
    "builds",
    "ema_merge_",
    "ema_merge_reference",
    "shift_keys",
    "stochastic_reference",
    "temporal_turn",
]

STORAGES: Mapping[str, frozenset[torch.dtype]] = {  # storage -> dtypes that have a use for it
    "once": NARROW | {torch.float64},
    "fp32_shadow": frozenset({torch.bfloat16, torch.float16}),
    "stochastic": frozenset({torch.bfloat16}),
    "released": NARROW | {torch.float64},
}
OFFERS = dict.fromkeys(("native", "triton", "cuda"), NARROW)
MAX_ELEMENTS = 1 << 30  # of a plane: offsets inside one are 32-bit numbers
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_LOW = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Ema:
    """What a merge does to the numbers. ``seed`` and ``step`` choose the bits of the stochastic rounding."""

    alpha: float  # weight of the sink
    shift_frames: float  # sink start minus evicted start
    storage: str = "once"
    seed: int = 0  # in [0, 2^64)
    step: int = 0  # in [0, 2^32); another one for every merge of a seed

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha: want a value in [0, 1], got {self.alpha}")
        if not math.isfinite(self.shift_frames):
            raise ValueError(f"shift_frames: want a finite number, got {self.shift_frames}")
        if self.storage not in STORAGES:
            raise ValueError(f"storage: want one of {', '.join(STORAGES)}, got {self.storage!r}")
        for name, bits in (("seed", 64), ("step", 32)):
            if not 0 <= getattr(self, name) < 1 << bits:
                got = getattr(self, name)
                raise ValueError(f"{name}: want a whole number in [0, 2^{bits}), got {got}")


@functools.lru_cache(maxsize=256)
def temporal_turn(
    shift_frames: float, head_dim: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """cos and sin of the temporal pairs' angles, in float64; no pairs for no shift.

    A shift of 100,000 frames is exact to 2e-11 rad.
    """
    pairs = head_dim // 2
    temporal = pairs - 2 * (pairs // 3) if shift_frames else 0
    angles = [shift_frames * 10000.0 ** (-j / temporal) for j in range(temporal)]
    return tuple(map(math.cos, angles)), tuple(map(math.sin, angles))


def shift_keys(keys: Tensor, shift_frames: float) -> Tensor:
    """Rotated keys [..., D] as if born ``shift_frames`` later; computed in at least float32, returned in their dtype."""
    cos, sin = temporal_turn(shift_frames, keys.shape[-1])
    if not cos:
        return keys
    dtype = torch.promote_types(keys.dtype, torch.float32)
    cosine, sine = _upload((*cos, *sin), dtype, keys.device).chunk(2)
    moving, staying = keys[..., : 2 * len(cos)], keys[..., 2 * len(cos) :]
    even, odd = moving.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return torch.cat([turned.flatten(-2).to(keys.dtype), staying], dim=-1)


def _upload(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A few numbers from the host, without waiting for the device: a pageable copy would."""
    host = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def ema_merge_reference(
    sink: Tensor, evicted: Tensor, how: Ema, shadow: Tensor | None = None
) -> Tensor:
    """The plain meaning of the op, on any device: the merged block before it is stored, in float32 or wider; for storage
    "released" in the cache's dtype. ``shadow`` is what the sink was before it was rounded. Nothing is modified."""
    layers, alpha, rest = sink.shape[0] // 2, how.alpha, 1 - how.alpha
    released = how.storage == "released"
    dtype = sink.dtype if released else torch.promote_types(sink.dtype, torch.float32)
    old, new = (sink if shadow is None else shadow).to(dtype), evicted.to(dtype)
    moved = torch.cat([shift_keys(new[:layers], how.shift_frames), new[layers:]])
    return alpha * old + rest * moved


def stochastic_reference(mixed: Tensor, seed: int, step: int) -> Tensor:
    """mixed [P, S, H, D] float32 -> bfloat16: its bit pattern plus 16 random bits, then cut off below the upper 16.

    Element e of plane p takes 16 bits, the lower first, of word (e mod 8) // 2 of Philox4x32-10((e // 8, p, step, STREAM),
    seed): the same bits whatever the grid or the threads.
    """
    planes, elements = mixed.shape[0], mixed[0].numel()
    octet = torch.arange(-(-elements // 8), device=mixed.device).expand(planes, -1)
    plane = torch.arange(planes, device=mixed.device)[:, None].expand_as(octet)
    fixed = [torch.full_like(octet, word) for word in (step, STREAM)]
    key = torch.stack([torch.full_like(octet, word) for word in (seed & _LOW, seed >> 32)], -1)
    words = philox_words_reference(torch.stack([octet, plane, *fixed], -1), key)
    random = torch.stack([words & 0xFFFF, words >> 16], -1).flatten(1)[:, :elements]
    bits = mixed.contiguous().view(torch.int32) + random.view(mixed.shape).to(torch.int32)
    cut = ((bits >> 16) << 16).view(torch.float32)
    return torch.where(mixed.isnan(), mixed, cut).to(torch.bfloat16)


def ema_merge_(
    out: Tensor,
    sink: Tensor,
    evicted: Tensor,
    how: Ema,
    *,
    shadow_in: Tensor | None = None,
    shadow_out: Tensor | None = None,
    impl: str = "auto",
    config: tuning.Config | None = None,
) -> None:
    """Write the EMA of ``sink`` and ``evicted`` into ``out``; see the module for shapes, storages and errors."""
    impl = implementation(impl, out.device, out.dtype, OFFERS)
    _check(out, sink, evicted, how, (shadow_in, shadow_out))
    check.no_gradient(impl, out, sink, evicted)
    if impl == "torch":
        mixed = ema_merge_reference(sink, evicted, how, shadow_in)
        if shadow_out is not None:
            shadow_out.copy_(mixed)
        stochastic = how.storage == "stochastic"
        out.copy_(stochastic_reference(mixed, how.seed, how.step) if stochastic else mixed)
    elif not out.numel():
        return
    elif out.numel() > MAX_ELEMENTS * len(out) or out.shape[-1] > 256:
        raise ValueError(
            f"impl={impl!r}: want heads of at most 256 and planes of at most {MAX_ELEMENTS} elements, got "
            f"{list(out.shape)}; use impl='torch'"
        )
    elif impl == "triton":
        _launch_triton(out, sink, evicted, how, (shadow_in, shadow_out), config)
    else:
        _launch_compiled(impl, (out, sink, evicted, shadow_in, shadow_out), how)


def _launch_compiled(impl: str, tensors: tuple[Tensor | None, ...], how: Ema) -> None:
    module, out = extension(impl), tensors[0]
    assert out is not None
    merge = module.EmaMerge(
        [0 if tensor is None else tensor.data_ptr() for tensor in tensors],
        [0 if tensor is None else tensor.stride(0) for tensor in tensors],
        (len(out), out.numel() // len(out), out.shape[-1]),
        _NAMES[out.dtype],
        how.storage,
        how.alpha,
        *temporal_turn(how.shift_frames, out.shape[-1]),
        (how.seed & _LOW, how.seed >> 32, how.step),
    )
    if impl == "native":
        module.ema_merge(merge, torch.get_num_threads())
        return
    with torch.cuda.device(out.device):
        module.ema_merge_cuda(merge, torch.cuda.current_stream().cuda_stream)


def _launch_triton(
    out: Tensor,
    sink: Tensor,
    evicted: Tensor,
    how: Ema,
    shadows: tuple[Tensor | None, Tensor | None],
    config: tuning.Config | None,
) -> None:
    planes, elements, head_dim = len(out), out.numel() // len(out), out.shape[-1]
    gpu = tuning.gpu_name() if out.is_cuda else "default"
    chosen = config or tuning.nearest("ema_merge", {"elements": elements}, gpu)
    cos, sin = temporal_turn(how.shift_frames, head_dim)
    ema_merge_kernel[(-(-elements // chosen["BLOCK"]), planes)](
        out,
        sink,
        evicted,
        *shadows,
        _upload((*cos, *sin) or (0.0,), torch.float32, out.device),
        *(tensor.stride(0) for tensor in (out, sink, evicted)),
        *(0 if shadow is None else shadow.stride(0) for shadow in shadows),
        elements,
        planes // 2,
        head_dim // 2,
        len(cos),
        how.alpha,
        1 - how.alpha,
        *(_signed(word) for word in (how.seed & _LOW, how.seed >> 32, how.step)),
        STORAGE="once" if out.dtype == torch.float32 else how.storage,
        STREAM=STREAM,
        enable_fp_fusion=False,
        **chosen,
    )


def _signed(word: int) -> int:
    """A 32-bit word as the number that Triton passes as one of 32 bits."""
    return word - (1 << 32) if word >> 31 else word


def _check(
    out: Tensor,
    sink: Tensor,
    evicted: Tensor,
    how: Ema,
    shadows: tuple[Tensor | None, Tensor | None],
) -> None:
    if out.dim() != 4 or out.shape[0] % 2 or out.shape[-1] % 2:
        raise ValueError(f"out: want shape [2 * layers, S, H, even D], got {list(out.shape)}")
    if out.dtype not in STORAGES[how.storage]:
        names = ", ".join(sorted(str(t).removeprefix("torch.") for t in STORAGES[how.storage]))
        raise ValueError(
            f"storage={how.storage!r} is for {names}, got {out.dtype}; use storage='once'"
        )
    heads, head_dim = out.shape[2:]
    dense = (heads * head_dim, head_dim, 1)
    _check_like(out, dense, out.dtype, out=out, sink=sink, evicted=evicted)
    if shadows != (None, None):
        _check_like(out, dense, torch.float32, shadow_in=shadows[0], shadow_out=shadows[1])
    if (how.storage == "fp32_shadow") != (shadows[1] is not None) or (
        shadows[0] is not None and shadows[1] is None
    ):
        raise ValueError("shadow_out: want one with storage='fp32_shadow', and shadows only there")
    if out.numel() and evicted.data_ptr() in (out.data_ptr(), sink.data_ptr()):
        raise ValueError("evicted: want another block than out and sink")


def _check_like(
    like: Tensor, dense: tuple[int, ...], dtype: torch.dtype, **tensors: Tensor | None
) -> None:
    """Shape, dtype, device and layout; the slow sentences are only asked for when something is wrong or unusual."""
    wanted = (like.shape, dtype, like.device, dense)
    for name, tensor in tensors.items():
        if tensor is not None:
            got = (tensor.shape, tensor.dtype, tensor.device, tensor.stride()[1:])
            if got != wanted:
                check.shape(name, tensor, like.shape)
                check.dtype(name, tensor, dtype)
                check.same_device(name, tensor, like)
                check.dense_rows(name, tensor, 3)
