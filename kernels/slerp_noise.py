"""Blend parents' noise with fresh noise so that chunks flow into each other and each stays standard normal.

    blend    x[b] = beta * p + sqrt(1 - beta^2) * e                       p = previous[parents[b]], e = draw of streams[b]
    slerp    x[b] = (sin((1 - t) a) * p / |p| + sin(t a) * e / |e|) / sin(a) * length
             a = angle(p, e), t = acos(beta) / (pi / 2), length = beta^2 |p| + (1 - beta^2) |e|
    renoise  x[b] = (1 - sigma[b]) * x0[b] + sigma[b] * e

For independent draws in high dimension a is pi / 2 and the first two are the same; where p and e are correlated only
``slerp`` keeps the norm. Parallel vectors (a = 0) have no plane to turn in: the direction stays p's. Anti-parallel ones
(a = pi) have no unique plane: the result is the blend, brought to ``length``, and where the blend vanishes p's direction
again. The draw is made where it is used; no tensor of fresh noise exists.

Shapes   previous  [N, ...] float32, bfloat16 or float16, contiguous; a row is one vector.
         parents   [B] int32, contiguous, or None: row b blends with previous[b].
         streams   [B, 3] int64, contiguous: which draw each row takes, see ``philox.streams``.
         x0        [B, ...] as ``previous``. sigma [B] float32, contiguous.
         out       [B, ...] of the input's dtype, contiguous; new unless given. It may be x0, never ``previous``.
Math     float32 in the order written, rounded once on store; slerp's angle, from float64 dot products, in float64.
         torch and C++ agree bit for bit in blend and renoise, and in slerp up to its last bit: C++ weighs in float64.
         Triton rounds slerp's weights to float32, fuses multiply and add, and draws within 2 units in the last place
         (see ``philox_triton``). float64 only in torch. No value knows its batch or thread, in blend and renoise nor its block.
Cost     Triton, counted in the code of the default form for sm_90: 63 instructions an element, of which 29 float32, 11
         logic, 6 additions and 5 wide multiplications of integers; 55 in longer tiles. An H100 issues 128 a clock and SM
         and, at the published 3.0 TB/s and 1.755 GHz, copies 13 bytes in the same time. So float32 (8 bytes: 0.62 clocks to
         move, 0.49 to issue) is bound by memory, bfloat16 (0.31 to move) by issuing unless siblings find their parent in L2.
         slerp draws twice and reads twice. These are counts; no GPU has timed them yet.
Source   Stream-T1, noise propagation; Shoemake, "Animating rotation with quaternion curves", 1985; re-noising of
         few-step flow matching as in Self-Forcing.
Raises   ValueError for shapes, dtypes or devices that do not fit and beta outside [-1, 1]. ``parents`` are checked on the
         CPU only: on a GPU that would wait for it. sigma is not checked.
"""

import math
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.kernels import check, tuning
from runtime.kernels.build import Build, pointer
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.native import extension
from runtime.kernels.philox import draw_reference, elements_of, grid
from runtime.kernels.slerp_noise_triton import dots_kernel, mix_kernel, turn_kernel
from runtime.kernels.tuning import Config

__all__ = [
    "blend_reference",
    "renoise",
    "renoise_reference",
    "slerp_noise",
    "slerp_noise_reference",
    "slerp_reference",
]

MODES = ("blend", "slerp")
TURN = {"TILES": 32, "num_warps": 1}  # one program a row, a few microseconds: nothing to tune
_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in NARROW}
_TYPES = {
    **{"parents": "*i32", "streams": "*i64", "weights": "*fp32", "partials": "*fp64"},
    **dict.fromkeys(["keep", "fresh", "beta", "beta_low"], "fp32"),
    **dict.fromkeys(["elements", "tiles"], "i32"),
}
SPACE: list[Config] = [
    {"BLOCK": block, "num_warps": warps}
    for block, warps in ((256, 4), (256, 8), (512, 4), (512, 8), (1024, 4), (1024, 8), (2048, 8))
]


PARALLEL = 1e-4  # sin(angle) below which two vectors span no plane


def _check(prev: Tensor, eps: Tensor, beta: float) -> None:
    if prev.shape != eps.shape:
        raise ValueError(f"eps: want the shape of prev {list(prev.shape)}, got {list(eps.shape)}")
    if not -1.0 <= beta <= 1.0:
        raise ValueError(f"beta: want a value in [-1, 1], got {beta}")


def blend_reference(prev: Tensor, eps: Tensor, beta: float) -> Tensor:
    """The paper's formula, element by element."""
    _check(prev, eps, beta)
    return beta * prev + math.sqrt(1.0 - beta * beta) * eps


def slerp_reference(prev: Tensor, eps: Tensor, beta: float) -> Tensor:
    """Spherical interpolation with the true angle of each row."""
    _check(prev, eps, beta)
    p, e = prev.double().flatten(1), eps.double().flatten(1)
    p_norm, e_norm = p.norm(dim=1, keepdim=True), e.norm(dim=1, keepdim=True)
    tiny = torch.finfo(torch.float64).tiny
    u, w = p / p_norm.clamp_min(tiny), e / e_norm.clamp_min(tiny)  # [B, E]
    angle = torch.arccos((u * w).sum(1, keepdim=True).clamp(-1, 1))
    turn = math.acos(beta) / (math.pi / 2)
    sine = angle.sin()
    spans = sine > PARALLEL
    safe = torch.where(spans, sine, 1.0)
    mixed = (((1 - turn) * angle).sin() * u + (turn * angle).sin() * w) / safe
    flatly = beta * u + math.sqrt(1.0 - beta * beta) * w
    size = flatly.norm(dim=1, keepdim=True)
    flatly = torch.where((size > PARALLEL) & (angle > 1), flatly / size.clamp_min(tiny), u)
    length = beta * beta * p_norm + (1.0 - beta * beta) * e_norm
    out = torch.where(spans, mixed, flatly) * length
    return out.to(prev.dtype).reshape(prev.shape)


def renoise_reference(x0: Tensor, eps: Tensor, sigma: float | Tensor) -> Tensor:
    """Noise ``x0`` to level ``sigma``, in x0's dtype; a tensor sigma has x0's rank."""
    return (1 - sigma) * x0 + sigma * eps


def slerp_noise_reference(
    previous: Tensor, parents: Tensor | None, streams: Tensor, beta: float, mode: str = "blend"
) -> Tensor:
    """The plain-torch meaning of ``slerp_noise``; on any device that has float64."""
    chosen = previous if parents is None else previous[parents.long()]
    wide = chosen.to(torch.promote_types(previous.dtype, torch.float32))
    fresh = draw_reference(streams, elements_of(previous.shape[1:])).view(wide.shape)
    mix = slerp_reference if mode == "slerp" else blend_reference
    return mix(wide, fresh.to(wide.dtype), beta).to(previous.dtype)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The tensors of one call after they have been checked."""

    out: Tensor
    previous: Tensor
    parents: Tensor | None
    streams: Tensor
    elements: int  # of a row

    @property
    def addresses(self) -> tuple[int, int]:
        return self.previous.data_ptr(), 0 if self.parents is None else self.parents.data_ptr()


def slerp_noise(
    previous: Tensor,
    parents: Tensor | None,
    streams: Tensor,
    beta: float,
    mode: str = "blend",
    *,
    impl: str = "auto",
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """Initial noise of a batch, [B, ...]; see the module docstring for shapes, dtypes and errors."""
    impl = implementation(impl, previous.device, previous.dtype)
    if mode not in MODES:
        raise ValueError(f"mode: want one of {', '.join(MODES)}, got {mode!r}")
    if not -1.0 <= beta <= 1.0:
        raise ValueError(f"beta: want a value in [-1, 1], got {beta}")
    rows = _check_rows("previous", previous, parents, streams, out)
    out = rows.out
    if not out.numel():
        return out
    if out.data_ptr() == previous.data_ptr():
        raise ValueError("out: want memory of its own, got previous's, which siblings still read")
    if impl == "torch":
        out.copy_(slerp_noise_reference(previous, parents, streams, beta, mode))
    elif impl == "triton":
        weights = _launch_turn(rows, beta, config) if mode == "slerp" else None
        _launch_mix(rows, mode, weights, config, beta)
    else:
        sizes = len(out), len(previous), rows.elements
        turns, threads = mode == "slerp", torch.get_num_threads()
        extension().slerp_noise(*_target(rows), rows.addresses, sizes, beta, turns, threads)
    return out


def renoise(
    x0: Tensor,
    streams: Tensor,
    sigma: Tensor,
    *,
    impl: str = "auto",
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """Clean latents at noise level sigma, [B, ...]; see the module docstring for shapes, dtypes and errors."""
    impl = implementation(impl, x0.device, x0.dtype)
    rows = _check_rows("x0", x0, None, streams, out)
    out = rows.out
    check.dtype("sigma", sigma, torch.float32)
    check.shape("sigma", sigma, [len(x0)])
    check.contiguous("sigma", sigma)
    check.same_device("sigma", sigma, x0)
    if not out.numel():
        return out
    if impl == "torch":
        wide = torch.promote_types(x0.dtype, torch.float32)
        fresh = draw_reference(streams, rows.elements).view(x0.shape).to(wide)
        level = sigma.to(wide).view(-1, *[1] * (x0.dim() - 1))
        out.copy_(renoise_reference(x0.to(wide), fresh, level))
    elif impl == "triton":
        _launch_mix(rows, "renoise", sigma, config)
    else:
        sizes, threads = (len(out), rows.elements), torch.get_num_threads()
        extension().renoise(*_target(rows), x0.data_ptr(), sigma.data_ptr(), sizes, threads)
    return out


def _target(rows: _Rows) -> tuple[int, str, int]:
    return rows.out.data_ptr(), _NAMES[rows.out.dtype], rows.streams.data_ptr()


def _launch_mix(
    rows: _Rows, mode: str, weights: Tensor | None, config: Config | None, beta: float = 0.0
) -> None:
    config = config or _config(rows.elements)
    tensors = rows.out, rows.previous, rows.parents, rows.streams, weights
    numbers = beta, math.sqrt(1.0 - beta * beta), rows.elements
    programs = grid(rows.elements, len(rows.out), config)
    mix_kernel[programs](*tensors, *numbers, MODE=mode, **config)


def _launch_turn(rows: _Rows, beta: float, config: Config | None) -> Tensor:
    """The weights [B, 2] float32 of parents and draws for a slerp."""
    config = config or _config(rows.elements)
    tiles, count = grid(rows.elements, len(rows.out), config)
    partials = torch.empty(count, tiles, 3, dtype=torch.float64, device=rows.out.device)
    weights = torch.empty(count, 2, dtype=torch.float32, device=rows.out.device)
    tensors = partials, rows.previous, rows.parents, rows.streams
    dots_kernel[tiles, count](*tensors, rows.elements, **config)
    (high,) = struct.unpack("f", struct.pack("f", beta))
    numbers = tiles, high, beta - high
    turn_kernel[(count,)](weights, partials, *numbers, PARALLEL=PARALLEL, **TURN)
    return weights


def _config(elements: int) -> Config:
    return tuning.nearest("slerp_noise", {"elements": elements}, tuning.gpu_name())


def _check_rows(
    name: str, previous: Tensor, parents: Tensor | None, streams: Tensor, out: Tensor | None
) -> _Rows:
    """Check what the two launchers share and make ``out`` if there is none."""
    if not previous.dim():
        raise ValueError(f"{name}: want shape [rows, ...], got []")
    check.contiguous(name, previous)
    B = len(previous)
    if parents is not None:
        check.dtype("parents", parents, torch.int32)
        check.shape("parents", parents, ["B"])
        check.contiguous("parents", parents)
        check.same_device("parents", parents, previous)
        B = len(parents)
    check.dtype("streams", streams, torch.int64)
    check.shape("streams", streams, [B, 3])
    check.contiguous("streams", streams)
    check.same_device("streams", streams, previous)
    shape = B, *previous.shape[1:]
    if out is None:
        out = torch.empty(shape, dtype=previous.dtype, device=previous.device)
    else:
        check.dtype("out", out, previous.dtype)
        check.shape("out", out, shape)
        check.contiguous("out", out)
        check.same_device("out", out, previous)
    return _Rows(out, previous, parents, streams, elements_of(shape[1:]))


def builds() -> Iterator[Build]:
    """Every form of the kernels that a launch could ask for, rows long enough to be aligned."""
    no_index: dict[str, Any] = {"parents": None}
    forms: list[tuple[str, Any, dict[str, Any]]] = [
        ("blend", mix_kernel, {"MODE": "blend", "weights": None}),
        ("blend without index", mix_kernel, {"MODE": "blend", "weights": None, **no_index}),
        ("slerp", mix_kernel, {"MODE": "slerp"}),
        ("renoise", mix_kernel, {"MODE": "renoise", **no_index}),
        ("dots", dots_kernel, {}),
        ("dots without index", dots_kernel, no_index),
    ]
    for config in tuning.shipped("slerp_noise"):
        for dtype in sorted(NARROW, key=str):
            for name, kernel, form in forms:
                label = f"slerp_noise {name} {dtype} {config}"
                fixed = {**form, "BLOCK": config["BLOCK"]}
                yield _build(label, kernel, dtype, fixed, config["num_warps"])
                if name == "renoise":  # a later pass of an odd number of rows: 24 bytes each
                    odd = f"{label}, odd rows"
                    yield _build(odd, kernel, dtype, fixed, config["num_warps"], {"streams"})
    fixed = {"PARALLEL": PARALLEL, "TILES": TURN["TILES"]}
    yield _build("slerp_noise turn", turn_kernel, torch.float32, fixed, TURN["num_warps"])


def _build(
    label: str,
    kernel: Any,
    dtype: torch.dtype,
    fixed: dict[str, Any],
    warps: int,
    anywhere: Collection[str] = (),
) -> Build:
    """``anywhere``: pointers that need not be multiples of 16."""
    types = {"out": pointer(dtype), "previous": pointer(dtype), **_TYPES}
    signature = {name: types[name] for name in kernel.arg_names if name not in fixed}
    aligned = {name for name, kind in signature.items() if kind[0] == "*" or name == "elements"}
    return Build(label, kernel, signature, fixed, warps, aligned=frozenset(aligned - {*anywhere}))
