"""What a chunk leaves in the KV memory: a block for each survivor, written by the clean pass."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.denoise import Denoiser
from runtime.lines import Ahead, Choice, Drawn, Line, rows_in
from runtime.plan import joined, plan_chunk
from runtime.settings import CHUNK_FRAMES
from runtime.types import Branch, ChunkPlan, Memory, Slot, take_rows


class Remembering:
    """Turns the parents' memories into the survivors'."""

    def __init__(self, denoiser: Denoiser, for_all: bool) -> None:
        """``for_all`` runs the clean pass for every candidate, as the released schedule does."""
        self.denoiser, self.for_all = denoiser, for_all

    def write(
        self,
        lines: Sequence[Line],
        drawn: Drawn,
        choices: Sequence[Choice],
        ahead: Ahead | None = None,
    ) -> dict[int, Memory]:
        """The memory of each kept row, by rows of the batch: its parent's, and a new block with the row's keys and values
        unless it is a last chunk, which nobody goes on from. The lines' histories let theirs go.

        ``ahead`` has the blocks of the kept rows already.
        """
        owners = _owners(lines, drawn)
        slots = self._slots(owners, drawn, choices, ahead)
        memories = {}
        for row in _kept(drawn, choices):
            memories[row] = drawn.branches[row].parent.memory
            owners[row].video.lease.hold(memories[row])
        for line in lines:
            for history in line.survivors:
                line.video.lease.drop(history.memory.slots)
        for row, memory in memories.items():
            if row in slots:
                owner = owners[row]
                remember = owner.video.recipe.keeper.remember
                memories[row] = remember(memory, slots[row], owner.index)
        return memories

    def _slots(
        self,
        owners: Sequence[Line],
        drawn: Drawn,
        choices: Sequence[Choice],
        ahead: Ahead | None,
    ) -> dict[int, Slot]:
        """The new blocks, written, by rows."""
        kept = _kept(drawn, choices)
        routes = {
            span.start + candidate.row: candidate.route
            for span, choice in zip(drawn.spans, choices, strict=True)
            for candidate in choice.candidates
        }
        rows = [row for row in (routes if self.for_all else kept) if _goes_on(owners[row])]
        written = dict(zip(ahead.rows, ahead.blocks, strict=True)) if ahead else {}
        slots: dict[int, Slot] = {}
        for row in rows:
            lease = owners[row].video.lease
            block = written[row] if row in written else lease.allocate()
            latents = drawn.latents[row].clone()  # or the whole batch would stay
            start_frame = owners[row].index * CHUNK_FRAMES
            slots[row] = Slot(block, start_frame, routes[row], latents)
            if row in written:
                lease.hold(Memory((slots[row],)))
        fresh = [row for row in rows if row not in written]
        if fresh:
            plan = joined([self._plan(owners[r], drawn.branches[r], slots[r]) for r in fresh])
            latents = take_rows(drawn.latents, fresh)
            self.denoiser.clean(plan, latents, [drawn.texts[row] for row in fresh])
        for row in slots.keys() - set(kept):
            owners[row].video.lease.drop([slots.pop(row)])
        return slots

    @staticmethod
    def _plan(owner: Line, branch: Branch, slot: Slot) -> ChunkPlan:
        return plan_chunk([branch], owner.index, owner.video.recipe.memory, [slot.block])


def _kept(drawn: Drawn, choices: Sequence[Choice]) -> list[int]:
    return rows_in(drawn.spans, [choice.kept for choice in choices])


def _goes_on(line: Line) -> bool:
    """Somebody will read what the chunk leaves."""
    recipe = line.video.recipe
    return line.index < recipe.chunks - 1 or recipe.memory.keep_last


def _owners(lines: Sequence[Line], drawn: Drawn) -> list[Line]:
    """Whose each row is."""
    return [
        line
        for line, span in zip(lines, drawn.spans, strict=True)
        for _ in range(span.start, span.stop)
    ]
