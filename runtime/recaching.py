"""A new prompt in mid-video: the memory is written again, as if the video so far had been made for that prompt.

Keys and values of a chunk depend on the prompt that was read while they were made, so a history that only changed its
prompt would go on remembering the old one. Every block is therefore made again by a clean pass over the chunk's own
latents at the chunk's own place in time: sinks first, then the window, oldest first, each seeing those made before it. What
was seen stays; what was asked for is new. It costs a clean pass per block, once per switch.

Source: KV recache of LongLive (Yang et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from runtime.denoise import Denoiser
from runtime.generators.wan import TextContext
from runtime.lines import Line, Video
from runtime.memory import Lease
from runtime.plan import plan_memory
from runtime.telemetry import StageClock
from runtime.types import Memory, Slot


@dataclass(slots=True)
class Rewriting:
    """One history's memory on the way from the old prompt to the new one."""

    lease: Lease
    text: TextContext
    rope: str
    old: Memory
    new: list[Slot] = field(default_factory=list)  # those of the first slots that are done

    @property
    def slot(self) -> Slot:
        """The next one to be written."""
        return self.old.slots[len(self.new)]

    @property
    def memory(self) -> Memory:
        """What the next one sees, and at last the whole."""
        sinks = len(self.old.sinks)
        return Memory(tuple(self.new[:sinks]), tuple(self.new[sinks:]))

    @property
    def work(self) -> tuple[int, ...]:
        """Equal for histories whose next blocks will be equal."""
        return (*(slot.block for slot in self.new), self.slot.block)


class Recaching:
    """Begins scenes: new prompts, and memories that are of them."""

    def __init__(
        self,
        denoiser: Denoiser,
        encode: Callable[[str], TextContext],
        clock: StageClock,
    ) -> None:
        self.denoiser, self.pool = denoiser, denoiser.pool
        self.encode, self.clock = encode, clock

    def turn(self, lines: Sequence[Line]) -> list[Line]:
        """The lines in the scenes of their next chunks; those where one begins are told and remember it."""
        begins = [line.scene is not line.video.scene for line in lines]
        if not any(begins):
            return list(lines)
        with self.clock.stage("text"):
            told = [self._told(line) for line, new in zip(lines, begins, strict=True) if new]
        with self.clock.stage("recache"):
            fresh = iter(self.refresh(told))
        return [next(fresh) if new else line for line, new in zip(lines, begins, strict=True)]

    def _told(self, line: Line) -> Line:
        """The line with the prompt of its next chunk. The video reward judges it by frames of its own alone."""
        video = replace(line.video, scene=line.scene, text=self.encode(line.scene.prompt))
        survivors = tuple(replace(one, frames=(), latents=()) for one in line.survivors)
        return replace(line, video=video, survivors=survivors)

    @torch.no_grad()
    def refresh(self, lines: Sequence[Line]) -> list[Line]:
        """The lines, their histories' memories made of the same latents and the lines' own texts.

        ``memory.recache`` says of which blocks: "all"; "window", which leaves the sinks as the old prompt made them; or
        "none". A sink that has taken in others by EMA begins anew from its own chunk.
        """
        histories = [
            _rewriting(line.video, history.memory) for line in lines for history in line.survivors
        ]
        taken: set[int] = set()  # old blocks that are new ones already
        while waiting := [one for one in histories if len(one.new) < len(one.old.slots)]:
            self._write(waiting, taken)
        memories = iter([one.memory for one in histories])
        return [
            replace(
                line, survivors=tuple(replace(h, memory=next(memories)) for h in line.survivors)
            )
            for line in lines
        ]

    def _write(self, waiting: Sequence[Rewriting], taken: set[int]) -> None:
        """The next block of every history, in one batch; histories that agree on all they see share theirs."""
        groups: dict[tuple[int, ...], list[Rewriting]] = {}
        for one in waiting:
            groups.setdefault(one.work, []).append(one)
        leaders = [group[0] for group in groups.values()]
        slots = [one.slot for one in leaders]
        plan_slots = [self._place(group, taken) for group in groups.values()]
        targets = [slot.block for slot in plan_slots]
        ropes = [one.rope for one in leaders]
        plan = plan_memory([one.memory for one in leaders], slots, ropes, targets)
        latents = torch.stack([_latents(slot) for slot in slots])
        self.denoiser.clean(plan, latents, [one.text for one in leaders])
        for group, slot in zip(groups.values(), plan_slots, strict=True):
            self.pool.shadows.pop(slot.block, None)  # of what was there before
            for one in group:
                one.new.append(slot)

    def _place(self, group: Sequence[Rewriting], taken: set[int]) -> Slot:
        """Where a group's block goes: over the old one, which nobody reads any more, unless another group's is there."""
        slot, lease = group[0].slot, group[0].lease
        if slot.block not in taken:
            taken.add(slot.block)
            return slot
        fresh = replace(slot, block=lease.allocate())
        taken.add(fresh.block)
        for _ in group[1:]:
            lease.hold(Memory((fresh,)))
        lease.drop([slot] * len(group))
        return fresh


def _rewriting(video: Video, memory: Memory) -> Rewriting:
    """A memory of which ``memory.recache`` says what is made anew."""
    how = video.recipe.memory
    kept = {"all": (), "window": memory.sinks, "none": memory.slots}[how.recache]
    return Rewriting(video.lease, video.text, how.rope, memory, list(kept))


def _latents(slot: Slot) -> torch.Tensor:
    assert slot.latents is not None, f"block {slot.block} does not know what it was made from"
    return slot.latents
