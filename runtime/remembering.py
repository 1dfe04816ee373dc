"""What a chunk leaves in the KV memory: a block for each survivor, written by the clean pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.denoise import Denoiser
from runtime.lines import Drawn, Line
from runtime.memory import Lease, MemoryKeeper
from runtime.plan import plan_chunk
from runtime.settings import CHUNK_FRAMES, MemorySettings
from runtime.types import Memory, Route, Scores, Slot, take_rows


class Remembering:
    """Turns the parents' memories into the survivors'."""

    def __init__(
        self, settings: MemorySettings, denoiser: Denoiser, keeper: MemoryKeeper, for_all: bool
    ) -> None:
        """``for_all`` runs the clean pass for every candidate, as the released schedule does."""
        self.settings, self.denoiser, self.keeper = settings, denoiser, keeper
        self.for_all = for_all

    def inherit(self, lines: Sequence[Line], drawn: Drawn, kept: Sequence[int]) -> list[Memory]:
        """The parents' memory of each kept row, held; the lines' histories let theirs go."""
        leases = _leases(lines, drawn)
        memories = [drawn.branches[row].parent.memory for row in kept]
        for row, memory in zip(kept, memories, strict=True):
            leases[row].hold(memory)
        for line in lines:
            for history in line.survivors:
                line.video.lease.drop(history.memory.slots)
        return memories

    def write(
        self,
        lines: Sequence[Line],
        drawn: Drawn,
        verdicts: Sequence[tuple[Scores, Route]],
        kept: Sequence[int],
        index: int,
        written: Mapping[int, int],
    ) -> list[Slot]:
        """A block with the keys and values of each kept row of chunk ``index``.

        ``written`` has the blocks of rows whose clean pass was run before, each held by somebody.
        """
        leases = _leases(lines, drawn)
        rows = range(len(drawn.branches)) if self.for_all else kept
        slots: dict[int, Slot] = {}
        for row in rows:
            block = written[row] if row in written else leases[row].allocate()
            latents = drawn.latents[row].clone()  # or the whole batch would stay
            slots[row] = Slot(block, index * CHUNK_FRAMES, verdicts[row][1], latents)
            if row in written:
                leases[row].hold(Memory((slots[row],)))
        fresh = [row for row in rows if row not in written]
        if fresh:
            branches, targets = [drawn.branches[r] for r in fresh], [slots[r].block for r in fresh]
            plan = plan_chunk(branches, index, self.settings, targets)
            latents = take_rows(drawn.latents, fresh)
            self.denoiser.clean(plan, latents, [drawn.texts[row] for row in fresh])
        for row in slots.keys() - set(kept):
            leases[row].drop([slots[row]])
        return [slots[row] for row in kept]

    def extend(self, memories: Sequence[Memory], slots: Sequence[Slot], index: int) -> list[Memory]:
        """The memories with the newest chunk's block each."""
        return [
            self.keeper.remember(memory, slot, index)
            for memory, slot in zip(memories, slots, strict=True)
        ]


def _leases(lines: Sequence[Line], drawn: Drawn) -> list[Lease]:
    """Whose references hold each row's blocks."""
    return [
        line.video.lease
        for line, span in zip(lines, drawn.spans, strict=True)
        for _ in range(span.start, span.stop)
    ]
