"""Rotary tables of Qwen2-VL, made once per size and kept: two axes for its patches, one for its tokens.

Legend: N rows, S tokens, P patches of a picture, H heads, D head dim.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

PATCH_THETA = 10_000.0
TABLE_STEP = 1024  # positions
MERGE = 2  # patches a side that become one token


class Turn(NamedTuple):
    """By how much every position turns its D channels: cosines and sines, each [S, D], the first half of the sines negative."""

    cos: Tensor
    sin: Tensor

    def rows(self, index: Tensor) -> Turn:
        """The turns of some positions."""
        return Turn(self.cos.index_select(0, index), self.sin.index_select(0, index))

    def after(self, count: int) -> Turn:
        """The turns of all positions but the first ``count``."""
        return Turn(self.cos[count:], self.sin[count:])


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """x [N, H, S, D], channel i paired with channel i + D / 2, turned in the precision of the table -> x's dtype."""
    partners = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * turn.cos, partners, turn.sin).to(x.dtype)


def token_turns(
    length: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> Turn:
    """Positions 0 to ``length`` on one axis, as these rewards were trained; rounded to ``dtype`` as published."""
    whole = _token_table(-(-length // TABLE_STEP) * TABLE_STEP, head_dim, theta, dtype, device)
    return Turn(whole.cos[:length], whole.sin[:length])


@functools.cache
def _token_table(
    length: int, head_dim: int, theta: float, dtype: torch.dtype, device: torch.device
) -> Turn:
    """Kept for good, as a captured graph holds its addresses; few lengths, so that prompts do not fill the memory."""
    return _turn(_angles(torch.arange(length, device=device), head_dim, theta), dtype)


@functools.cache
def patch_turns(rows: int, columns: int, head_dim: int, device: torch.device) -> Turn:
    """Half the pairs turn with a patch's row, half with its column; float32. Patches in the order of their 2 x 2 groups."""
    down = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    across = torch.arange(columns, device=device)[None].expand(rows, columns)
    half = torch.cat(
        [_angles(_grouped(axis), head_dim // 2, PATCH_THETA) for axis in (down, across)], 1
    )  # [P, D / 2]
    return _turn(half, torch.float32)


def _turn(angles: Tensor, dtype: torch.dtype) -> Turn:
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return Turn(torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1))


def _angles(positions: Tensor, channels: int, theta: float) -> Tensor:
    """positions [S] -> [S, channels / 2] float32."""
    steps = torch.arange(0, channels, 2, device=positions.device, dtype=torch.float32)
    return positions.float()[:, None] / theta ** (steps / channels)


def _grouped(grid: Tensor) -> Tensor:
    """[rows, columns] -> [rows * columns], the four patches of a merged token next to each other."""
    rows, columns = grid.shape
    groups = grid.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE)
    return groups.permute(0, 2, 1, 3).flatten()
