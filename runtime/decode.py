"""Latents to frames, two ways: streamed on from each history's own state, or cold from an empty one as released.

Rewards may be shown what a faster decoder makes of the latents; the viewer always gets the frames of the real one.

Legend: B rows, F latent frames of a chunk, T pixel frames, K survivors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from runtime.graph import GraphRunner
from runtime.portions import Portions
from runtime.types import Branch, Decoder, Shown, row_ranges, take_rows
from runtime.window import Window

Part = TypeVar("Part")
Litters = Sequence[range]


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest chunk of every candidate as the rewards see it, and the states after it of what decoded it, by the rows
    that were decoded together (none when cold): put into one they would lie twice in memory."""

    frames: Tensor  # [B, T, 3, H, W]
    states: tuple[tuple[range, Any], ...] = ()

    def state(self, row: int, decoder: Decoder) -> Any:
        """The state of one row."""
        rows, state = next(part for part in self.states if row in part[0])
        return decoder.rows(state, [row - rows.start])


class Recorded:
    """A decoder whose work on a batch is recorded when it is small: a replay saves launches and costs copies of the state.

    A full-size picture's state is 1.8 GB and its launches are nothing beside its work: it is called.
    """

    SMALL_BYTES = 256 << 20  # of a batch's state

    def __init__(self, decoder: Any, mode: str) -> None:
        self.decoder = decoder
        self.mode = mode
        self.graphs: GraphRunner | None = None  # for the device that the first latents lie on

    @staticmethod
    def over(decoder: Decoder, mode: str) -> Decoder:
        """The decoder, recorded if ``mode`` asks for it and it can be a step from tensors to tensors."""
        step = getattr(decoder, "step", None)
        return decoder if mode == "off" or step is None else Recorded(decoder, mode)

    def decode(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is None or state.nbytes > self.SMALL_BYTES:
            return self.decoder.decode(latents, state)
        if self.graphs is None:
            self.graphs = GraphRunner(self.mode, latents.device)
        key = ("decode", tuple(latents.shape))
        made = self.graphs.run(key, self._step, (latents, *state.caches))
        frames, *caches = (tensor.clone() for tensor in made)
        return frames, type(state)(tuple(caches))

    def _step(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        return self.decoder.step(latents, caches)

    def rows(self, state: Any, rows: Sequence[int]) -> Any:
        return self.decoder.rows(state, rows)

    def stack(self, states: Sequence[Any]) -> Any:
        return self.decoder.stack(states)


class Decoding:
    """Decodes candidates for the rewards and survivors for the viewer; streamed by one decoder it does both at once."""

    def __init__(
        self,
        decoder: Decoder,
        cold: bool,
        batch_rows: int = 0,
        scoring: Decoder | None = None,
        graphs: str = "off",
        alone: bool = False,
    ) -> None:
        """``scoring`` decodes for the rewards; None: the decoder itself. ``graphs`` as ``GraphRunner`` has modes.

        ``alone``: what is kept and not decoded yet is decoded row by row. Everywhere ``litters`` are rows that are decoded
        with nobody else; (): with whoever fits.
        """
        self.decoder = Recorded.over(decoder, graphs)
        self.scoring = Recorded.over(scoring, graphs) if scoring else None
        self.cold = cold
        advice = "lower run.decoder_rows or set run.decoder_tile"
        self.portions = Portions(batch_rows, "decode", advice)
        self.alone = alone

    def newest(self, branches: Sequence[Branch], latents: Tensor, litters: Litters = ()) -> Newest:
        """The newest chunk as the image reward sees it. latents [B, F, C, h, w]."""
        if self.cold:
            return Newest(self._cold(latents, litters))
        if self.scoring:
            past = [branch.parent.scoring for branch in branches]
            return Newest(*self._stream(self.scoring, past, latents, litters))
        return Newest(*self._stream(self.decoder, _states(branches), latents, litters))

    def preview(self, latents: Tensor, litters: Litters = ()) -> Tensor:
        """One frame of every row, [B, 1, 3, H, W]: its last latent frame as if a video began with it. A twelfth of the
        work of a chunk, to judge what is not finished. latents [B, F, C, h, w]."""
        return self._cold(latents[:, -1:], litters)

    def windows(
        self,
        branches: Sequence[Branch],
        spans: Sequence[slice],
        latents: Tensor,
        newest: Newest,
        chunks: Sequence[int],
        litters: Litters = (),
    ) -> list[Window]:
        """The recent window as the video reward sees it, for the rows of each span: at most ``chunks`` of them, and no
        longer than its video's scene."""
        if self.cold:
            return [
                self._cold_windows(branches[s], latents[s], most - 1, within(s, litters))
                for s, most in zip(spans, chunks, strict=True)
            ]
        return [
            Window(newest.frames[s], tuple(_last(b.parent.frames, most - 1) for b in branches[s]))
            for s, most in zip(spans, chunks, strict=True)
        ]

    def _cold_windows(
        self, branches: Sequence[Branch], latents: Tensor, past: int, litters: Litters
    ) -> Window:
        cold = partial(self._cold_window, branches, latents, past)
        return Window(torch.cat(self._parts(latents, cold, litters)))

    def shown(
        self, branches: Sequence[Branch], latents: Tensor, newest: Newest, kept: Sequence[int]
    ) -> list[Shown]:
        """Each kept row's chunk as the video will show it."""
        if not kept:
            return []
        if not self.cold and self.scoring is None:
            return [
                Shown(frames, frames, newest.state(row, self.decoder), None)
                for row in kept
                for frames in [newest.frames[row]]
            ]
        parents = _states([branches[row] for row in kept])
        litters = row_ranges(len(kept), 1) if self.alone else ()
        real = Newest(*self._stream(self.decoder, parents, take_rows(latents, kept), litters))
        states = [real.state(place, self.decoder) for place in range(len(kept))]
        if self.cold or self.scoring is None:
            return [
                Shown(one, one, after, None) for one, after in zip(real.frames, states, strict=True)
            ]
        return [
            Shown(one, newest.frames[row], after, newest.state(row, self.scoring))
            for row, one, after in zip(kept, real.frames, states, strict=True)
        ]

    def _stream(
        self, decoder: Decoder, past: Sequence[Any], latents: Tensor, litters: Litters
    ) -> tuple[Tensor, tuple[tuple[range, Any], ...]]:
        """Frames of rows that go on from states ``past``, and the states after them by rows."""

        def part(rows: range) -> tuple[Tensor, tuple[range, Any]]:
            parents = decoder.stack([past[row] for row in rows])
            newest, state = decoder.decode(latents[rows.start : rows.stop], parents)
            return newest, (rows, state)

        frames, states = zip(*self._parts(latents, part, litters), strict=True)
        return torch.cat(frames), states

    def _cold(self, latents: Tensor, litters: Litters) -> Tensor:
        decoder = self.scoring or self.decoder

        def part(rows: range) -> Tensor:
            return decoder.decode(latents[rows.start : rows.stop], None)[0]

        return torch.cat(self._parts(latents, part, litters))

    def _cold_window(
        self, branches: Sequence[Branch], latents: Tensor, past: int, rows: range
    ) -> Tensor:
        decoder = self.scoring or self.decoder
        before = [_last(branches[row].parent.latents, past) for row in rows]
        chunks = [torch.stack(column) for column in zip(*before, strict=True)]
        frames, state = [], None
        for chunk in [*chunks, latents[rows.start : rows.stop]]:
            decoded, state = decoder.decode(chunk, state)
            frames.append(decoded)
        return torch.cat(frames, dim=1)

    def _parts(
        self, latents: Tensor, work: Callable[[range], Part], litters: Litters
    ) -> list[Part]:
        """What ``work`` makes of the rows, by those that are decoded together."""
        made: list[Part] = []
        for rows in litters or [range(len(latents))]:
            self.portions.run(rows, latents.device, lambda part: made.append(work(part)))
        return made


def within(span: slice, litters: Litters) -> list[range]:
    """The litters of a span, counted from its first row."""
    first = span.start or 0
    mine = [rows for rows in litters if span.start <= rows.start < span.stop]
    return [range(rows.start - first, rows.stop - first) for rows in mine]


def _states(branches: Sequence[Branch]) -> list[Any]:
    return [branch.parent.decoder for branch in branches]


def _last(values: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return values[-count:] if count else ()
