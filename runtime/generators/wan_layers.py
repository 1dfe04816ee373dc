"""The pieces of the causal Wan DiT: rotary positions, norms, attention projections and one block.

Legend: B rows, F latent frames, P patches (tokens) of a frame, S = F * P tokens, H heads, D head dim, E = H * D.
Nothing here knows how keys are cached: self attention is handed to a ``SelfAttention`` callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6

# (layer index, q, k, v) -> out, all [B, S, H, D]; q and k come rotated. The callable decides what else q may see.
SelfAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# (layer index, rotated k, v), both [B, S, H, D]
KVStore = Callable[[int, Tensor, Tensor], None]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which norms, angles and modulation are computed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., E] times weight [E] over its root mean square, in at least float32."""
    y = x.to(wide(x.dtype))
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS)
    return y.to(x.dtype) * weight


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without affine part over the last axis."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def sinusoid(timestep: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding [cos | sin] in float64, returned as ``dtype``. timestep [...] -> [..., dim]."""
    half = dim // 2
    rates = torch.pow(
        10000.0, -torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    )
    angles = timestep.double()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


def rope_split(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs per axis (time, row, column); 128 -> (22, 21, 21)."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def axis_rates(pairs: int, device: torch.device | str = "cpu") -> Tensor:
    """Rotation per unit of position, [pairs] float64."""
    return torch.pow(10000.0, -torch.arange(pairs, dtype=torch.float64, device=device) / pairs)


def rope_angles(frames: Tensor, rows: int, columns: int, head_dim: int) -> Tensor:
    """Angles of every token of every frame, from positions alone: no table, no length limit.

    frames [B, F] (absolute latent frame indices, any integer or float dtype) -> [B, F * rows * columns, head_dim / 2]
    float64, token order frame, row, column; pair order time, row, column.
    """
    time_pairs, row_pairs, column_pairs = rope_split(head_dim)
    device, (batch, count) = frames.device, frames.shape
    shape = (batch, count, rows, columns)
    time = frames.double()[:, :, None] * axis_rates(time_pairs, device)
    row = torch.arange(rows, device=device).double()[:, None] * axis_rates(row_pairs, device)
    column = torch.arange(columns, device=device).double()[:, None] * axis_rates(
        column_pairs, device
    )
    angles = torch.cat(
        [
            time[:, :, None, None].expand(*shape, -1),
            row[None, None, :, None].expand(*shape, -1),
            column[None, None, None].expand(*shape, -1),
        ],
        dim=-1,
    )
    return angles.reshape(batch, count * rows * columns, head_dim // 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent pairs (2j, 2j+1) of the last axis. x [B, S, H, D], cos and sin [B or 1, S, D / 2]."""
    even, odd = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)  # each [B, S, H, D / 2]
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm over all heads at once, as Wan normalises q and k."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Projections(nn.Module):
    """The q, k, v, o linears and the two norms that self and cross attention share by name."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
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

    def cross_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompt, once per prompt. text [B, L, E] -> each [B, L, H, D]."""
        a = self.cross_attn
        return a.split(a.norm_k(a.k(text))), a.split(a.v(text))

    def qkv(self, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q and k, and v, of normalised tokens y [B, S, E]; each [B, S, H, D]."""
        a = self.self_attn
        q, k = a.split(a.norm_q(a.q(y))), a.split(a.norm_k(a.k(y)))
        return rotate(q, cos, sin), rotate(k, cos, sin), a.split(a.v(y))

    def modulated(self, x: Tensor, e0: Tensor) -> list[Tensor]:
        """The six modulation vectors per token frame: e0 [B, F, 6, E] -> six [B, F, 1, E] in x's dtype."""
        m = (self.modulation + e0).to(x.dtype)
        return list(m.unsqueeze(3).unbind(2))


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LN(x) * (1 + scale) + shift with one scale and shift per frame. x [B, S, E], scale [B, F, 1, E] -> [B, S, E]."""
    frames = layer_norm(x).unflatten(1, (scale.shape[1], -1))  # [B, F, P, E]
    return (frames * (1 + scale) + shift).flatten(1, 2)


def gate(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """x + scale * y with one scale per frame."""
    return x + (y.unflatten(1, (scale.shape[1], -1)) * scale).flatten(1, 2)
