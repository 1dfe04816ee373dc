"""Blend a parent's noise with fresh noise so that chunks flow into each other and each stays standard normal.

    blend   x = beta * prev + sqrt(1 - beta^2) * eps
    slerp   x = (sin((1 - t) a) * u_prev + sin(t a) * u_eps) / sin(a) * |.|,   a = angle(prev, eps), t = acos(beta) / (pi / 2)

For independent draws in high dimension a is pi / 2 and both are the same; where prev and eps are correlated only ``slerp``
keeps the norm: u_* are unit vectors and the length is interpolated between |prev| and |eps| with weight beta^2.
Parallel vectors (a = 0) have no plane to turn in: the direction stays prev's. Anti-parallel ones (a = pi) have no unique
plane: the result is the blend, brought to the interpolated length, and where the blend vanishes prev's direction again.

Shapes   prev, eps  [B, ...] same shape, float32 or wider; a row is one vector. Result the same.
Math     blend in the tensors' dtype; slerp's dot products and norms in float64.
Source   Stream-T1, noise propagation; Shoemake, "Animating rotation with quaternion curves", 1985.
Raises   ValueError for different shapes or beta outside [-1, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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


__all__ = ["blend_reference", "slerp_reference"]
