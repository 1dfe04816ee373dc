"""Latents to frames, two ways: streamed on from each history's own state, or cold from an empty one as released.

Legend: B rows, F latent frames of a chunk, T pixel frames, K survivors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.types import Branch, Decoder, row_ranges


@dataclass(frozen=True, slots=True)
class Newest:
    """The decoded newest chunk of every candidate, and the decoder states after it (None when decoded cold)."""

    frames: Tensor  # [B, T, 3, H, W]
    state: Any


class Decoding:
    """Decodes candidates for the rewards and survivors for the viewer; streamed decoding does both at once."""

    def __init__(
        self, decoder: Decoder, window_chunks: int, cold: bool, batch_rows: int = 0
    ) -> None:
        self.decoder = decoder
        self.window_chunks = window_chunks
        self.cold = cold
        self.batch_rows = batch_rows

    def newest(self, branches: Sequence[Branch], latents: Tensor) -> Newest:
        """The newest chunk as the image reward sees it. latents [B, F, C, h, w]."""
        if self.cold:
            parts = [
                self.decoder.decode(latents[r.start : r.stop], None)[0]
                for r in self._batches(latents)
            ]
            return Newest(torch.cat(parts), None)
        return Newest(*self._stream(branches, latents))

    def window(self, branches: Sequence[Branch], latents: Tensor, newest: Newest) -> Tensor:
        """The recent window as the video reward sees it, [B, T, 3, H, W]."""
        past = self.window_chunks - 1
        if not self.cold:
            rows = [
                torch.cat([*_last(branch.parent.frames, past), frames])
                for branch, frames in zip(branches, newest.frames, strict=True)
            ]
            return torch.stack(rows)
        return torch.cat(
            [self._cold_window(branches, latents, rows) for rows in self._batches(latents)]
        )

    def shown(
        self, branches: Sequence[Branch], latents: Tensor, newest: Newest, kept: Sequence[int]
    ) -> tuple[list[Tensor], list[Any]]:
        """Frames and decoder state of each kept row, as the video will show them."""
        if not self.cold:
            return [newest.frames[row] for row in kept], [
                self.decoder.rows(newest.state, [row]) for row in kept
            ]
        frames, state = self._stream([branches[row] for row in kept], latents[list(kept)])
        return list(frames), [self.decoder.rows(state, [row]) for row in range(len(kept))]

    def _stream(self, branches: Sequence[Branch], latents: Tensor) -> tuple[Tensor, Any]:
        frames, states = [], []
        for rows in self._batches(latents):
            parents = self.decoder.stack([branches[row].parent.decoder for row in rows])
            newest, state = self.decoder.decode(latents[rows.start : rows.stop], parents)
            frames.append(newest)
            states.append(state)
        return torch.cat(frames), self.decoder.stack(states)

    def _cold_window(self, branches: Sequence[Branch], latents: Tensor, rows: range) -> Tensor:
        past = [_last(branches[row].parent.latents, self.window_chunks - 1) for row in rows]
        chunks = [torch.stack(column) for column in zip(*past, strict=True)]
        frames, state = [], None
        for chunk in [*chunks, latents[rows.start : rows.stop]]:
            decoded, state = self.decoder.decode(chunk, state)
            frames.append(decoded)
        return torch.cat(frames, dim=1)

    def _batches(self, latents: Tensor) -> list[range]:
        return row_ranges(len(latents), self.batch_rows)


def _last(values: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return values[-count:] if count else ()
