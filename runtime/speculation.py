"""Begins the next chunk before the rewards have spoken: a guess who will survive, and the work that follows from it.

The guess: the video reward arrives, every candidate's image reward is taken to be its parent's. If the same histories in
the same order survive, the next chunk's clean pass, noise and passes are done already; else they are forgotten. A guess
changes nothing that the histories at hand hold: it has references of its own, and merges into blocks of its own.

It pays where the image reward has time to spare beside the denoiser: on a GPU that it does not fill, or on another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from runtime.denoise import Denoiser
from runtime.drawing import Drawing
from runtime.lines import Ahead, Drawn, Line
from runtime.memory import Lease
from runtime.plan import plan_chunk
from runtime.recipe import Recipe
from runtime.score import Place, image_weight
from runtime.settings import CHUNK_FRAMES
from runtime.types import Candidate, Memory, Route, Scores, Slot, Trajectory, take_rows


class Speculation:
    """Guesses for one line; counts how often it is right."""

    def __init__(self, drawing: Drawing, denoiser: Denoiser) -> None:
        self.drawing, self.denoiser = drawing, denoiser
        self.tried = self.right = 0

    def begin(self, line: Line, drawn: Drawn, longs: Sequence[float], place: Place) -> Ahead:
        """The chunk after the one at ``place``, from the video reward of its candidates alone."""
        recipe, lease, index = line.video.recipe, line.video.lease, place.chunk
        rows = self.guess(recipe, drawn, longs, place)
        branches = [drawn.branches[row] for row in rows]
        blocks = []
        for branch in branches:
            lease.hold(branch.parent.memory)
            blocks.append(lease.allocate())
        plan = plan_chunk(branches, index, recipe.memory, tuple(blocks))
        texts = [drawn.texts[row] for row in rows]
        self.denoiser.clean(plan, take_rows(drawn.latents, rows), texts)
        likely = [
            Trajectory(
                memory=recipe.keeper.remember(
                    branch.parent.memory, Slot(block, index * CHUNK_FRAMES), index
                ),
                seed=branch.seed,
                seed_chunk=branch.seed_chunk,
                noise=drawn.noise[row],
            )
            for row, branch, block in zip(rows, branches, blocks, strict=True)
        ]
        likely = list(recipe.keeper.make_room(likely, lease, trial=True))
        after = replace(place, chunk=index + 1)
        next_drawn = self.drawing.draw([Line(line.video, tuple(likely), index + 1)], [after])
        memories = tuple(history.memory for history in likely)
        self.tried += 1
        return Ahead(rows, tuple(blocks), memories, next_drawn)

    @staticmethod
    def guess(
        recipe: Recipe, drawn: Drawn, longs: Sequence[float], place: Place
    ) -> tuple[int, ...]:
        """Who survives if every candidate's image reward is that of its parent's newest chunk.

        ``longs`` has a finite number.
        """
        weight = image_weight(place.chunk, place.chunks, recipe.settings.reward.tau)
        none = torch.empty(0)
        candidates = []
        for row, (branch, long) in enumerate(zip(drawn.branches, longs, strict=True)):
            short = branch.parent.shorts[-1] if branch.parent.shorts else 0.0
            scores = Scores(short, long, weight * short + (1 - weight) * long)
            candidates.append(Candidate(branch, row, none, none, scores, Route.DISCARD))
        return recipe.policy.select(candidates)

    def checked(self, ahead: Ahead, kept: Sequence[int], lease: Lease) -> Ahead | None:
        """``ahead`` if the rows that were ``kept``, best first, are those of the guess; else it is forgotten."""
        if tuple(kept) == ahead.rows:
            self.right += 1
            return ahead
        self.forget(ahead, lease)
        return None

    def forget(self, ahead: Ahead, lease: Lease) -> None:
        """Gives back what the guess holds."""
        for memory in ahead.memories:
            lease.drop(memory.slots)

    def adopt(self, line: Line) -> tuple[Line, Drawn]:
        """The line with room for the chunk that it has begun, and its candidates, now of the real histories."""
        ahead = line.ahead
        assert ahead is not None
        survivors = tuple(
            replace(history, memory=_routed(memory, history.memory))
            for history, memory in zip(line.survivors, ahead.memories, strict=True)
        )
        line.video.recipe.keeper.forget_shadows(line.survivors, survivors)
        for history in line.survivors:
            line.video.lease.drop(history.memory.slots)
        branches = tuple(
            replace(branch, parent=survivors[branch.rank]) for branch in ahead.drawn.branches
        )
        return Line(line.video, survivors, line.index), replace(ahead.drawn, branches=branches)


def _routed(memory: Memory, known: Memory) -> Memory:
    """``memory`` with what ``known`` says of the same blocks."""
    real = {slot.block: slot for slot in known.slots}
    sinks, window = (
        tuple(real.get(slot.block, slot) for slot in part) for part in (memory.sinks, memory.window)
    )
    return Memory(sinks, window)
