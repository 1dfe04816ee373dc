"""Candidates' frames on their way to the ranks that judge them.

A rater keeps the frames of the survivors that it judged, so the newest chunk is all that travels: but for histories whose
rater changed, which bring their window along, and for rewards that see cold decodes, of which every chunk makes new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.judging import Question
from runtime.packing import Packed
from runtime.ranks.deal import Deal
from runtime.window import Window

Past = tuple[Tensor, ...]  # of one history, oldest first, each [T, 3, H, W]


@dataclass(frozen=True, slots=True)
class Clips:
    """Some rows as rewards see them, by their numbers among all; and the past of histories that come anew."""

    newest: Mapping[int, Tensor]  # each [T, 3, H, W]
    cold: Mapping[int, Tensor]  # the window, where it is decoded anew; {} where frames are streamed
    past: Mapping[int, Past]  # by the places of the histories

    def packed(self) -> Packed:
        """Every tensor as it lies, one that histories share once."""
        tensors = {f"newest.{row}": one for row, one in self.newest.items()}
        tensors |= {f"cold.{row}": one for row, one in self.cold.items()}
        names: dict[int, str] = {}
        for past in self.past.values():
            for one in past:
                tensors[names.setdefault(id(one), f"past.{len(names)}")] = one
        past_names = {str(at): [names[id(x)] for x in past] for at, past in self.past.items()}
        return Packed({"past": past_names}, tensors)

    @staticmethod
    def unpacked(packed: Packed) -> Clips:
        tensors = packed.tensors

        def by_row(kind: str) -> dict[int, Tensor]:
            names = [name for name in tensors if name.startswith(f"{kind}.")]
            return {int(name.partition(".")[2]): tensors[name] for name in names}

        past = {
            int(at): tuple(tensors[name] for name in names)
            for at, names in packed.tree["past"].items()
        }
        return Clips(by_row("newest"), by_row("cold"), past)


def clips_for(
    rater: int, deal: Deal, rows: Sequence[int], question: Question, cold: bool
) -> Clips | None:
    """What ``rater`` needs of a maker's ``rows``, which ``question`` is about, in order; None for nothing."""
    mine = [(at, row) for at, row in enumerate(rows) if deal.raters[row] == rater]
    if not mine:
        return None
    frames, window = question.frames, question.window
    return Clips(
        {row: frames[at] for at, row in mine},
        {row: window.newest[at] for at, row in mine} if cold else {},
        {
            deal.branches[row].rank: window.past[at]
            for at, row in mine
            if deal.branches[row].rank in deal.unseen and not cold
        },
    )


def assembled(
    clips: Sequence[Clips], deal: Deal, rows: Sequence[int], held: Mapping[int, Past]
) -> tuple[Tensor, Window]:
    """The newest frames [B, T, 3, H, W] of a rater's ``rows`` and their window, by what it was sent and what it ``held``."""
    newest = {row: one for part in clips for row, one in part.newest.items()}
    cold = {row: one for part in clips for row, one in part.cold.items()}
    past = dict(held) | {at: one for part in clips for at, one in part.past.items()}
    frames = torch.stack([newest[row] for row in rows])
    if cold:
        return frames, Window(torch.stack([cold[row] for row in rows]))
    return frames, Window(frames, tuple(past.get(deal.branches[row].rank, ()) for row in rows))
