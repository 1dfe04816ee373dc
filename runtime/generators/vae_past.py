"""What causal layers saw before, for one walk through a network: of the whole picture, or of one tile of it.

Features are ``[B, C, T, H, W]``: B rows, C channels, T frames, H by W positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Activation(Protocol):
    """What happens to features on their way into a convolution."""

    def __call__(self, x: Tensor) -> Tensor:
        """A new tensor of the same shape."""
        ...

    def into(self, x: Tensor, out: Tensor) -> None:
        """The same, written to ``out``."""
        ...


class Past:
    """The past of every layer, handed out and collected in the order the layers ask.

    ``caches`` None starts a sequence. ``kept`` collects a new past and leaves the given one alone; with ``keep`` False it
    stays empty, which is what training wants. ``plain`` keeps every step an operation of its own, which gradients need
    and the benchmark's baseline is.
    """

    def __init__(
        self, caches: Sequence[Tensor] | None = None, *, keep: bool = False, plain: bool = False
    ) -> None:
        self.fresh = caches is None
        self.plain = plain
        self.kept: list[Tensor] = []
        self._keep = keep
        self._caches: Iterator[Tensor] = iter(caches or ())

    def extend(self, x: Tensor, frames: int, activation: Activation | None = None) -> Tensor:
        """Put the last ``frames`` frames (at the start zeros) before x [B, C, T, H, W], T >= 0, activated if asked."""
        before = None if self.fresh else self._next(x)
        if self.plain:
            x = activation(x) if activation else x
            if before is None:
                before = x.new_zeros(_resized(x, frames))
            extended = torch.cat([before, x], dim=2)  # [B, C, frames + T, H, W]
        else:
            extended = room(_resized(x, frames + x.shape[2]), x)
            head, tail = extended[:, :, :frames], extended[:, :, frames:]
            if before is None:
                head.zero_()
            else:
                head.copy_(before)
            if activation is None:
                tail.copy_(x)
            else:
                activation.into(x, tail)
        self.store(extended, frames)
        return extended

    def store(self, x: Tensor, frames: int) -> None:
        """Keep a copy of the last ``frames`` frames of x; a view would hold all of x in memory."""
        if self._keep:
            self._put(x[:, :, x.shape[2] - frames :])

    def rest(self) -> tuple[list[Tensor] | None, bool, list[Tensor]]:
        """What another walk needs to go on from here: caches not yet asked for, whether to keep, and where."""
        return None if self.fresh else list(self._caches), self._keep, self.kept

    def _next(self, x: Tensor) -> Tensor:
        return next(self._caches)

    def _put(self, newest: Tensor) -> None:
        self.kept.append(newest.clone())


@dataclass(frozen=True, slots=True)
class Span:
    """Positions ``low`` to ``high`` of an axis of ``size``, all in one unit."""

    low: int
    high: int
    size: int

    def scaled(self, factor: int) -> Span:
        return Span(self.low * factor, self.high * factor, self.size * factor)

    def widened(self, halo: int) -> Span:
        """With ``halo`` positions more on both sides, as far as the axis goes."""
        return Span(max(0, self.low - halo), min(self.size, self.high + halo), self.size)


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the picture, in latent positions times ``scale``."""

    rows: Span
    columns: Span

    def scaled(self, factor: int) -> Tile:
        return Tile(self.rows.scaled(factor), self.columns.scaled(factor))

    def widened(self, halo: int) -> Tile:
        return Tile(self.rows.widened(halo), self.columns.widened(halo))

    def cut(self, x: Tensor, held: Tile | None = None) -> Tensor:
        """The tile's part of x [..., H, W], which holds the whole picture or, if given, the tile ``held``."""
        top, left = (held.rows.low, held.columns.low) if held else (0, 0)
        rows = slice(self.rows.low - top, self.rows.high - top)
        return x[..., rows, self.columns.low - left : self.columns.high - left]


def tiles(height: int, width: int, side: int) -> Iterator[Tile]:
    """Rectangles of at most ``side`` positions a side that cover height x width once."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield Tile(
                Span(top, min(top + side, height), height),
                Span(left, min(left + side, width), width),
            )


class TilePast(Past):
    """The past of one tile: reads its part of the picture's caches, halo included, and writes its part of the new ones.

    ``held`` is the tile with the halo that the features carry now, ``inner`` without; whoever walks keeps both current.
    """

    held: Tile
    inner: Tile

    def __init__(self, caches: Sequence[Tensor] | None, kept: list[Tensor], keep: bool) -> None:
        """``kept`` holds the new caches of the picture: room made by its first tile, filled by all."""
        super().__init__(caches, keep=keep)
        self.kept = kept
        self._place = 0

    def advance(self, x: Tensor, factor: int, halo: int) -> Tensor:
        """After a layer that enlarged by ``factor``: x with no more than the ``halo`` that the next one needs."""
        self.inner, before = self.inner.scaled(factor), self.held.scaled(factor)
        self.held = self.inner.widened(halo)
        return self.held.cut(x, before)

    def _next(self, x: Tensor) -> Tensor:
        return self.held.cut(next(self._caches))

    def _put(self, newest: Tensor) -> None:
        if self._place == len(self.kept):
            size = (*newest.shape[:3], self.inner.rows.size, self.inner.columns.size)
            self.kept.append(room(size, newest))
        part = self.inner.cut(newest, self.held)
        self.inner.cut(self.kept[self._place]).copy_(part)
        self._place += 1


def layout(x: Tensor) -> torch.memory_format:
    """How x [B, C, T, H, W] lies in memory: channels last, or else in the order of its axes."""
    last = x.stride(1) == 1 and x.shape[1] > 1
    return torch.channels_last_3d if last else torch.contiguous_format


def room(shape: tuple[int, ...], x: Tensor) -> Tensor:
    """Memory for [B, C, T, H, W] of x's dtype and layout, not yet written."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))


def _resized(x: Tensor, frames: int) -> tuple[int, ...]:
    return (*x.shape[:2], frames, *x.shape[3:])
