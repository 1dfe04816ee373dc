"""The recent frames of candidates as they lie in memory: copied when somebody picks some, and known to be the same where siblings share them.

Legend: B rows, T frames of a row, n picked frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """Chunks that histories hold, and each candidate's newest. At full size one copy of it is over a gigabyte."""

    newest: Tensor  # [B, T, 3, H, W]
    # Of each row, oldest first, each [T, 3, H, W]; rows have as many frames each. (): nothing came before.
    past: tuple[tuple[Tensor, ...], ...] = ()

    @property
    def frames(self) -> int:
        """Of a row."""
        return sum(self._lengths()) + self.newest.shape[1]

    def __len__(self) -> int:
        return len(self.newest)

    def __getitem__(self, rows: slice) -> Window:
        return Window(self.newest[rows], self.past[rows])

    def whole(self) -> Tensor:
        """All frames, [B, T, 3, H, W]."""
        if not self.frames - self.newest.shape[1]:
            return self.newest
        chunks = [
            chunk
            for past, newest in zip(self.past, self.newest, strict=True)
            for chunk in (*past, newest)
        ]
        return torch.cat(chunks).unflatten(0, (len(self), self.frames))

    def pick(self, frames: Sequence[int]) -> Tensor:
        """Some frames of every row, [B, n, 3, H, W]; nothing else is copied."""
        places = self._places(frames)
        chosen = []
        for row, newest in enumerate(self.newest):
            chunks = (*self.past[row], newest) if self.past else (newest,)
            chosen += [chunks[chunk][at : at + 1] for chunk, at in places]
        return torch.cat(chosen).unflatten(0, (len(self), len(places)))

    def twins(self, frames: Iterable[int]) -> tuple[tuple[int, ...], ...]:
        """For every row and each of ``frames`` the first row that holds the very same one there.

        A matter of whose tensor it is: no pixel is compared, so what merely looks alike is no twin.
        """
        chunks = [chunk for chunk, _ in self._places(frames)]
        first = [
            [next(row for row, other in enumerate(self.past) if other[place] is chunk) for place, chunk in enumerate(mine)]
            for mine in self.past
        ] or [[] for _ in self.newest]  # fmt: skip
        return tuple(
            tuple((*owners, row)[chunk] for chunk in chunks) for row, owners in enumerate(first)
        )

    def _lengths(self) -> list[int]:
        return [len(chunk) for chunk in self.past[0]] if self.past else []

    def _places(self, frames: Iterable[int]) -> list[tuple[int, int]]:
        """(chunk, frame of the chunk) of each; the newest is the last chunk."""
        lengths = (*self._lengths(), self.newest.shape[1])
        every = [(chunk, at) for chunk, length in enumerate(lengths) for at in range(length)]
        return [every[frame] for frame in frames]
