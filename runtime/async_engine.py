"""One engine for many callers: their videos share batches, join and leave between chunks, and do not wait for each other.

    with AsyncEngine(Settings()) as engine:
        job = engine.submit(Request(prompts="a red circle moving right on a navy background"))
        for event in job: ...            # or: async for event in job

A thread of its own turns the engine (``runtime/turning.py``); everything here returns at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace

from runtime.engine import Engine
from runtime.job import Job
from runtime.request import Limits, Request
from runtime.resuming import facts, identity
from runtime.scenes import scenes_of
from runtime.settings import Settings
from runtime.stats import Stats
from runtime.turning import Turning
from runtime.types import ChunkEvent, Watch


class AsyncEngine:
    """Takes requests from any thread or event loop. Closing it, or losing it, ends its thread and frees its memory."""

    def __init__(self, engine: Engine | Settings, limits: Limits | None = None) -> None:
        """Settings are built into an engine with memory for ``limits.videos`` of them; an engine is taken as it is.

        ValueError for an engine that begins chunks ahead, RuntimeError for one that generates already.
        """
        self.limits = limits or Limits()
        if isinstance(engine, Settings):
            engine = Engine(engine.with_changes({"run.prompts": self.limits.videos}))
        if engine.settings.run.speculate:
            raise ValueError("run.speculate: is for one video alone; switch it off")
        if engine.pool.used:
            raise RuntimeError("this engine is already generating a video; build a second one")
        self.settings, self.fps = engine.settings, engine.fps
        self.implementations = engine.implementations
        self._numbers = itertools.count()
        self._turning = Turning(engine, self.limits)
        self._identity: str | None = None
        self._thread = threading.Thread(
            target=self._turning.run, name="stream-t1 engine", daemon=True
        )
        self._thread.start()
        self._closed = weakref.finalize(self, self._turning.close)

    def submit(self, request: Request, watch: Watch | None = None) -> Job:
        """Queue a request. ``watch`` gets a ``ChunkRecord`` after each of its chunks, in the engine's thread: be quick.

        ValueError for what is wrong with it, ``Busy`` when the queue is full, RuntimeError when the engine is closed.
        """
        if request.resume is not None:
            known = facts(request.resume)
            if request.settings not in (None, known.settings):
                raise ValueError("settings: a video that goes on has the settings it began with")
            settings = replace(known.settings, run=self.settings.run)
        else:
            settings = request.settings or self.settings
        self.limits.check(settings)
        recipe = self._turning.engine.recipe_of(settings)
        if request.resume is None:
            scenes_of(request.prompts, recipe.chunks)
        job = Job(replace(request, settings=settings), next(self._numbers), self._turning.wake)
        self._turning.enqueue(job, recipe, watch)
        return job

    async def stream(
        self, request: Request, watch: Watch | None = None
    ) -> AsyncIterator[ChunkEvent]:
        """The settled chunks of a request. Closing the iterator early cancels it."""
        job = self.submit(request, watch)
        try:
            async with contextlib.aclosing(job.__aiter__()) as events:
                async for event in events:
                    yield event
        finally:
            if not job.ended:
                job.cancel("the reader is gone")

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of ``prompt`` that the generator's tokeniser does not know."""
        return self._turning.engine.unknown_words(prompt)

    @property
    def identity(self) -> str:
        """What a snapshot must have been made with to go on here. The first call reads all weights."""
        if self._identity is None:
            self._identity = identity(self._turning.engine)
        return self._identity

    @property
    def alive(self) -> bool:
        """Whether its thread turns: not closed, and not ended by what no thread survives."""
        return self._thread.is_alive()

    def stats(self) -> Stats:
        """What it has done, and what waits."""
        return self._turning.stats()

    def close(self) -> None:
        """Cancel everything and wait for the turn at hand to end. Again is harmless."""
        self._closed()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def aclose(self) -> None:
        """``close`` without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def __enter__(self) -> AsyncEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
