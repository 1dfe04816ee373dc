"""Rotary positions of video tokens: where each token stands, and by how much its pairs turn. Nothing is looked up.

    pair j of an axis with m pairs turns by  position * 10000^(-j/m)  radians
    head dim D has D/2 pairs: time, row, column in this order, rows and columns D/2 // 3 each (128 -> 22, 21, 21)

The reference computes angles in float64. Kernels count turns in 64-bit fixed point: a rate is a whole number of 2^-64
turns, its product with the frame index wraps around exactly as angles do, and the top 32 bits are the angle, from -pi
to pi in steps of 1.5e-9. So frame 10^9 is as exact as frame 1, without a table of positions and without a limit.
"""

import functools
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

BASE = 10000
TWO_PI = Decimal("6.28318530717958647692528676655900576839433879875021")


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a forward stand: latent frames by absolute index, a grid of patches in each.

    frames [B or 1, F] int64 on the model's device, so that a captured graph can be told of the next chunk;
    tokens are ordered frame, row, column. ``dtype`` is the one that the reference rotates in.
    """

    frames: Tensor
    rows: int
    columns: int
    head_dim: int
    dtype: torch.dtype = torch.float32

    @property
    def tokens(self) -> int:
        return self.frames.shape[1] * self.rows * self.columns

    @cached_property
    def cos_sin(self) -> tuple[Tensor, Tensor]:
        """For the reference: each [B or 1, S, D / 2] in ``dtype``; made once, at the first layer that asks."""
        angles = rope_angles(self.frames, self.rows, self.columns, self.head_dim)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def rope_split(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs per axis (time, row, column); 128 -> (22, 21, 21)."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def axis_rates(pairs: int, device: torch.device | str = "cpu") -> Tensor:
    """Rotation per unit of position, [pairs] float64."""
    return torch.pow(float(BASE), -torch.arange(pairs, dtype=torch.float64, device=device) / pairs)


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


@functools.cache
def turn_rates(head_dim: int, device: torch.device) -> Tensor:
    """Turns per unit of position in 2^-64 turns, [D / 2] int64: a constant of the model, kept per device."""
    rates = [turn_rate(j, pairs) for pairs in rope_split(head_dim) for j in range(pairs)]
    return torch.tensor(rates, dtype=torch.int64).to(device)


def turn_rate(pair: int, pairs: int) -> int:
    """10000^(-pair/pairs) / 2 pi in whole 2^-64 turns, correctly rounded."""
    with localcontext() as context:
        context.prec = 50
        turns = Decimal(BASE) ** (Decimal(-pair) / pairs) / TWO_PI
        return round(Fraction(turns) * 2**64)
