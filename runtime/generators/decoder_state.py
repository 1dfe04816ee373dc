"""What a causal decoder remembers of one or more videos: a value, so that candidates share and fork it for free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecoderState:
    """What the decoder must remember between two pieces of a video; never written to once made."""

    caches: tuple[Tensor, ...]  # each [B, C, frames, H, W] at its layer's width and size

    @property
    def batch(self) -> int:
        """Rows held."""
        return self.caches[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return sum(cache.nbytes for cache in self.caches)

    def rows(self, index: Sequence[int]) -> DecoderState:
        """Rows by host integers, repeats allowed (siblings of one parent). IndexError outside."""
        if list(index) == list(range(self.batch)):
            return self
        if not index:
            raise ValueError("index: want at least one row, got none")
        # Slices, not a tensor of indices: uploading one would wait for the device.
        picks = [range(self.batch)[row] for row in index]
        return DecoderState(
            tuple(torch.cat([cache[row : row + 1] for row in picks]) for cache in self.caches)
        )

    @staticmethod
    def stack(states: Sequence[DecoderState]) -> DecoderState:
        """The rows of all ``states`` in order. ValueError unless of one decoder and frame size."""
        if not states:
            raise ValueError("states: want at least one decoder state, got none")
        shapes = [[list(cache.shape[1:]) for cache in state.caches] for state in states]
        for number, other in enumerate(shapes):
            if other != shapes[0]:
                raise ValueError(
                    f"states[{number}]: want caches shaped as those of states[0], got others; "
                    f"stack only states of one decoder at one frame size"
                )
        if len(states) == 1:
            return states[0]
        columns = zip(*(state.caches for state in states), strict=True)
        return DecoderState(tuple(torch.cat(column) for column in columns))
