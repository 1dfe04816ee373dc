"""The pieces of the causal Wan DiT: attention projections and one block, made of the kernels that run it.

Legend: B rows, F latent frames, P patches (tokens) of a frame, S = F * P tokens, H heads, D head dim, E = H * D.
Nothing here knows how keys are cached: self attention is handed to a ``SelfAttention`` callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.kernels.qk_norm_rope_store import (
    EPS,
    Destination,
    qk_norm_rope_store,
    rms_norm,
    rms_norm_reference,
)
from runtime.kernels.rotary import Positions

# (layer index, q, k, v) -> out, all [B, S, H, D]; q and k come rotated. The callable decides what else q may see.
SelfAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# (layer index, rotated k, v), both [B, S, H, D]
KVStore = Callable[[int, Tensor, Tensor], None]
# layer index -> where its q, k and v are written
Destinations = Callable[[int], Destination]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which norms, angles and modulation are computed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def sinusoid(timestep: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding [cos | sin] in float64, returned as ``dtype``. timestep [...] -> [..., dim]."""
    half = dim // 2
    rates = torch.pow(
        10000.0, -torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    )
    angles = timestep.double()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over all heads at once, as Wan normalises q and k."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm_reference(x, self.weight)


class Projections(nn.Module):
    """The q, k, v, o linears and the two norms that self and cross attention share by name."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Any: "linears.py" may put products of another form in their places
        self.q: Any
        self.k: Any
        self.v: Any
        self.o: Any
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim), RMSNorm(dim)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention with scale 1/sqrt(D). q [B, S, H, D], k and v [B, T, H, D] -> [B, S, H, D]."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class Block(nn.Module):
    """Modulated self attention, cross attention to the prompt, modulated feed-forward (ALGORITHM: model, step 4)."""

    def __init__(self, dim: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = Projections(dim, heads)
        self.cross_attn = Projections(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))
        self.joined: tuple[Tensor, Tensor] | None = None
        self.product: nn.Module | None = None  # of q, k and v at once, where ``linears.py`` put one

    @torch.no_grad()
    def join_(self) -> None:
        """Lay the weights of q, k and v side by side, so that one product makes all three. Names and values stay."""
        if self.product is not None:
            return  # they are one already
        a = self.self_attn
        linears = a.q, a.k, a.v
        weight, bias = (
            torch.cat([getattr(linear, part) for linear in linears]) for part in ("weight", "bias")
        )
        for linear, w, b in zip(linears, weight.chunk(3), bias.chunk(3), strict=True):
            linear.weight.data, linear.bias.data = w, b
        self.joined = weight, bias

    def projected(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of y before norm and rotation, each [B, S, E]; slices of one tensor where weights are joined."""
        if self.product is not None:
            q, k, v = self.product(y).chunk(3, -1)
            return q, k, v
        a = self.self_attn
        # A module that was moved to another device or dtype has weights of its own again.
        joined = self.joined
        if joined and joined[0].data_ptr() == a.q.weight.data_ptr() and not torch.is_grad_enabled():
            q, k, v = F.linear(y, *joined).chunk(3, -1)
            return q, k, v
        return a.q(y), a.k(y), a.v(y)

    def cross_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt, once per prompt. text [B, L, E] -> each [B, L, H, D]."""
        a = self.cross_attn
        return a.split(a.norm_k(a.k(text))), a.split(a.v(text))

    def qkv(
        self, y: Tensor, positions: Positions, into: Destination | None, ops: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q and k, and v, of normalised tokens y [B, S, E]; each [B, S, H, D]."""
        a = self.self_attn
        norms = a.norm_q.weight, a.norm_k.weight
        return qk_norm_rope_store(*self.projected(y), norms, positions, into, ops)

    def cross(self, y: Tensor, key: Tensor, value: Tensor, ops: str) -> Tensor:
        """Cross attention of normalised tokens y [B, S, E] to the prompt's keys and values [B or 1, L, H, D]."""
        a = self.cross_attn
        q = a.split(rms_norm(a.q(y), a.norm_q.weight, ops))
        key, value = (t.expand(len(y), -1, -1, -1) for t in (key, value))
        return a.o(dense_attention(q, key, value).flatten(2))

    def modulated(self, dtype: torch.dtype, e0: Tensor) -> list[Tensor]:
        """The six modulation vectors per token frame: e0 [B, F, 6, E] -> six [B, F, 1, E] in ``dtype``."""
        m = (self.modulation + e0).to(dtype)
        return list(m.unsqueeze(3).unbind(2))
