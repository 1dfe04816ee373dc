"""The norms of a block of the DiT with the residual sum before them: one pass over memory each.

    adaln                 LN(x) * (1 + scale) + shift
    gated_residual        x' = x + gate * y
    residual_adaln        x' = x + gate * y, then adaln of x'
    residual_layer_norm   x' = x + gate * y, then LN(x') * weight + bias

LN has no affine part of its own: (x - mean) / sqrt(variance + 1e-6) over the last axis.

Shapes   x, y                [B, S, E], last axis dense, any other strides; S = F * P tokens, frame by frame.
         gate, scale, shift  [B or 1, F, 1, E], last axis dense: one vector for each frame. ``gate`` may be None: one.
         weight, bias        [E].
         results             [B, S, E]: normed, x', or (x', normed). Fresh, but that x' goes ``into`` a dense tensor
                             where one is given; it may be x itself, which saves a third of the writes.
         One of float32, bfloat16, float16 for all; the reference takes float64 too.
Math     float32; x' is rounded once, normed from what was stored, and rounded once.
Source   Wan 2.1, attention blocks with adaptive layer norm.
Raises   ValueError for a wrong shape, dtype, device or layout, and for an input that wants a gradient (the reference
         has one).
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.kernels import check, tuning
from runtime.kernels.build import Build, pointer
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.layout import Key, addresses, key, layouts
from runtime.kernels.native import extension
from runtime.kernels.triton_lang import jit, tl, triton
from runtime.kernels.tuning import Config

EPS = 1e-6
SPACE: list[Config] = [
    {"TOKENS": tokens, "num_warps": warps, "num_stages": 1}
    for tokens, warps in ((1, 2), (1, 4), (1, 8), (2, 4), (2, 8), (4, 8))
]


def adaln_reference(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The plain-torch meaning of ``adaln``; runs anywhere, in any float dtype, with gradients."""
    frames = F.layer_norm(x, x.shape[-1:], eps=EPS).unflatten(1, (scale.shape[1], -1))
    return (frames * (1 + scale) + shift).flatten(1, 2)  # [B, F, P, E] -> [B, S, E]


def gated_residual_reference(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """The plain-torch meaning of ``gated_residual``."""
    if gate is None:
        return x + y
    return x + (y.unflatten(1, (gate.shape[1], -1)) * gate).flatten(1, 2)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LN(x) * weight + bias."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


# One program is TOKENS tokens of one frame, so that the frame's vectors are read once for all of them. Every value is
# read before the first sum and kept in registers; eight neighbours are one thread's: 16-byte accesses in the narrow
# dtypes.
@jit
def _adaln_kernel(
    x, y, gate, scale, shift, total, out,
    x_b, x_s, y_b, y_s, gate_b, gate_f, scale_b, scale_f, shift_b, shift_f, P,
    E: tl.constexpr, BLOCK_E: tl.constexpr, TOKENS: tl.constexpr, RESIDUAL: tl.constexpr,
    GATED: tl.constexpr, NORM: tl.constexpr, ONE_PLUS: tl.constexpr,
):  # fmt: skip
    frame, b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    e = tl.arange(0, BLOCK_E)[None, :]
    mask = (token < P) & (e < E)
    s = frame * P + token
    here = (b * tl.num_programs(1) * P + s) * E + e
    value = tl.load(x + b * x_b + s * x_s + e, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        added = tl.load(y + b * y_b + s * y_s + e, mask=mask, other=0.0).to(tl.float32)
        if GATED:
            open = tl.load(gate + b * gate_b + frame * gate_f + e, mask=e < E, other=0.0)
            added *= open.to(tl.float32)
        rounded = (value + added).to(total.dtype.element_ty)
        tl.store(total + here, rounded, mask=mask)
        value = rounded.to(tl.float32)
    if NORM:
        factor = tl.load(scale + b * scale_b + frame * scale_f + e, mask=e < E, other=0.0)
        offset = tl.load(shift + b * shift_b + frame * shift_f + e, mask=e < E, other=0.0)
        factor = factor.to(tl.float32)
        if ONE_PLUS:
            factor += 1.0
        centred = value - tl.sum(value, axis=1)[:, None] / E
        centred = tl.where(e < E, centred, 0.0)
        variance = tl.sum(centred * centred, axis=1)[:, None] / E
        normed = centred * tl.rsqrt(variance + 1e-6) * factor + offset.to(tl.float32)
        tl.store(out + here, normed.to(out.dtype.element_ty), mask=mask)


def adaln(
    x: Tensor, scale: Tensor, shift: Tensor, impl: str = "auto", config: Config | None = None
) -> Tensor:
    """LN(x) * (1 + scale) + shift with one scale and shift for each frame -> [B, S, E]."""
    impl = implementation(impl, x.device, x.dtype)
    if impl == "torch":
        return adaln_reference(x, scale, shift)
    return _run(impl, (x, None, None, scale, shift), config)[1]


def gated_residual(
    x: Tensor, y: Tensor, gate: Tensor | None, impl: str = "auto", config: Config | None = None
) -> Tensor:
    """x + gate * y with one gate for each frame -> [B, S, E]."""
    impl = implementation(impl, x.device, x.dtype)
    if impl == "torch":
        return gated_residual_reference(x, y, gate)
    return _run(impl, (x, y, gate, None, None), config)[0]


def residual_adaln(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    impl: str = "auto",
    config: Config | None = None,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x' = x + gate * y and LN(x') * (1 + scale) + shift -> both [B, S, E]."""
    impl = implementation(impl, x.device, x.dtype)
    if impl == "torch":
        x = _placed(gated_residual_reference(x, y, gate), into)
        return x, adaln_reference(x, scale, shift)
    return _run(impl, (x, y, gate, scale, shift), config, into=into)


def residual_layer_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    impl: str = "auto",
    config: Config | None = None,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x' = x + gate * y and LN(x') * weight + bias -> both [B, S, E]."""
    impl = implementation(impl, x.device, x.dtype)
    if impl == "torch":
        x = _placed(gated_residual_reference(x, y, gate), into)
        return x, layer_norm_reference(x, weight, bias)
    return _run(impl, (x, y, gate, weight, bias), config, True, into)


def _placed(total: Tensor, into: Tensor | None) -> Tensor:
    return total if into is None else into.copy_(total)


Inputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _run(
    impl: str,
    inputs: Inputs,
    config: Config | None,
    affine: bool = False,
    into: Tensor | None = None,
) -> tuple[Any, Any]:
    """x' and the norm of x, y, gate, scale and shift: a residual sum if there is y, a norm if there is a scale."""
    check.no_gradient(impl, *[t for t in inputs if t is not None])
    plan = _plan(impl, key(*inputs), affine)
    x, y, _, scale, _ = inputs
    total: Tensor | None = into
    if into is not None:
        check.shape("into", into, x.shape)
        check.dtype("into", into, x.dtype)
        check.contiguous("into", into)
    elif y is not None:
        total = torch.empty_like(x, memory_format=torch.contiguous_format)
    out = None if scale is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    if not x.numel():
        return total, out
    if impl == "native":
        plan.native(*addresses(*inputs, total, out), torch.get_num_threads())
    else:
        plan.triton((*inputs, total, out), config)
    return total, out


@dataclass(frozen=True, slots=True)
class _Plan:
    """A launch but for its addresses. Strides are x's, y's, gate's, scale's and shift's, two each."""

    sizes: tuple[int, int, int, int]  # B, F, P, E
    steps: tuple[int, ...]
    forms: dict[str, bool]
    native: Any  # the extension's plan

    def triton(self, tensors: Sequence[Tensor | None], config: Config | None) -> None:
        B, frames, P, E = self.sizes
        config = config or tuning.nearest("adaln", {"width": E}, tuning.gpu_name())
        anything = tensors[0]  # stands for what is not there and is never touched
        _adaln_kernel[(triton.cdiv(P, config["TOKENS"]), frames, B)](
            *(anything if t is None else t for t in tensors),
            *self.steps,
            P,
            E=E,
            BLOCK_E=triton.next_power_of_2(E),
            **self.forms,
            **config,
        )


@functools.lru_cache(maxsize=1024)
def _plan(impl: str, of: Key, affine: bool) -> _Plan:
    x, y, gate, scale, shift = inputs = layouts(of)
    per_frame = gate if scale is None or affine else scale
    frames = 1 if per_frame is None or per_frame.dim() < 2 else per_frame.shape[1]
    check.shape("x", x, ["B", "S", "E"])
    B, S, E = x.shape
    if frames < 1 or S % frames:
        raise ValueError(f"x: want tokens of {frames} equal frames, got {S}")
    names = ("x", "y", "gate", *(("weight", "bias") if affine else ("scale", "shift")))
    steps: list[int] = []
    for name, t in zip(names, inputs, strict=True):
        if t is None:
            steps += [0, 0]
            continue
        vector = (
            [E]
            if name in ("weight", "bias")
            else [B if len(t.shape) and t.shape[0] != 1 else 1, frames, 1, E]
        )
        check.shape(name, t, [B, S, E] if name in ("x", "y") else vector)
        check.dtype(name, t, x.dtype)
        check.dense_rows(name, t, 1)
        check.same_device(name, t, x)
        steps += [0, 0] if t.dim() == 1 else t.steps(0, 1)
    forms = {
        "RESIDUAL": y is not None,
        "GATED": gate is not None,
        "NORM": scale is not None,
        "ONE_PLUS": not affine,
    }
    sizes = (B, frames, S // frames, E)
    native = None
    if impl == "native" and x.numel():
        native = extension().Adaln(steps, sizes, not affine, str(x.dtype).removeprefix("torch."))
    return _Plan(sizes, tuple(steps), forms, native)


def builds() -> Iterator[Build]:
    """Every form that a launch at full size could ask for; float16 and float32 only in the form with everything."""
    forms: dict[str, dict[str, int]] = {
        "adaln": {"RESIDUAL": False, "GATED": False},
        "gated_residual": {"NORM": False},
        "residual_adaln gated": {},
        "residual_adaln": {"GATED": False},
        "residual_layer_norm gated": {"ONE_PLUS": False},
    }
    flags = {"RESIDUAL": True, "GATED": True, "NORM": True, "ONE_PLUS": True}
    tensors = ["x", "y", "gate", "scale", "shift", "total", "out"]
    steps = [f"{t}_{axis}" for t in "xy" for axis in "bs"]
    steps += [f"{t}_{axis}" for t in ("gate", "scale", "shift") for axis in "bf"]
    for dtype in sorted(NARROW, key=str):
        for label, form in forms.items():
            if dtype != torch.bfloat16 and label != "residual_adaln gated":
                continue
            for config in tuning.shipped("adaln"):
                sizes = {"E": 1536, "BLOCK_E": 2048, "TOKENS": config["TOKENS"]}
                yield Build(
                    f"adaln {dtype} {label} {config}",
                    _adaln_kernel,
                    {
                        **dict.fromkeys(tensors, pointer(dtype)),
                        **dict.fromkeys([*steps, "P"], "i32"),
                    },
                    {**sizes, **flags, **form},
                    config["num_warps"],
                    config["num_stages"],
                    frozenset([*tensors, *steps]),
                )
