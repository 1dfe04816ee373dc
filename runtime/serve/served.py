"""The engine that a worker serves, and what has to be known about it. The only file of the worker that builds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.serve.commands import Submit
from runtime.settings import Settings

if TYPE_CHECKING:
    from runtime.snapshot import Packed
    from runtime.types import ChunkRecord


@dataclass(frozen=True, slots=True)
class Served:
    """An ``AsyncEngine`` and the facts that a server tells of it."""

    engine: Any
    settings: Settings
    fps: int
    time_stride: int  # frames of a latent frame
    device: str
    implementations: Mapping[str, str]
    identity: str  # what must be the same where a video goes on

    def chunks(self, settings: Settings) -> int:
        """How many a video of these settings has."""
        from runtime.plan import chunks_for

        return chunks_for(settings.seconds, self.fps, self.time_stride)

    def submit(
        self,
        command: Submit,
        settings: Settings,
        resume: Packed | None,
        watch: Callable[[ChunkRecord], None],
    ) -> Any:
        """The job that an command becomes. Raises ValueError, or Busy when the queue is full."""
        from runtime.async_engine import Request

        request = Request(
            prompts=command.prompts,
            settings=settings,
            priority=command.priority,
            deadline_s=command.deadline_s,
            budget_fps=command.budget_fps,
            resume=resume,
        )
        return self.engine.submit(request, watch)

    def position(self, packed: Packed) -> tuple[int, int]:
        """Of a packed video: chunks made, and chunks of them that are settled."""
        from runtime.resuming import facts

        known = facts(packed)
        return known.index, known.settled


def load(settings: Settings) -> Served:
    """Build the engine that ``settings`` ask for: minutes, with a large model."""
    from runtime.async_engine import AsyncEngine
    from runtime.engine import Engine
    from runtime.resuming import identity

    engine = Engine(settings)
    generator = engine.parts.generator
    return Served(
        AsyncEngine(engine),
        settings,
        generator.fps,
        generator.time_stride,
        str(generator.device),
        engine.implementations,
        identity(engine),
    )
