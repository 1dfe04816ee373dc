"""When a job's snapshots are taken: every so many chunks, and once more when the worker leaves. One at a time.

A snapshot is taken by the engine between two chunks and written by another thread, once the job's files have come as far.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from runtime.resuming import facts
from runtime.serve.job_files import JobFiles

if TYPE_CHECKING:
    from runtime.job import Job
    from runtime.packing import Packed

log = logging.getLogger(__name__)

Aside = Callable[..., Awaitable[Any]]  # runs a call in a thread that may wait for the disk


class Saving:
    """The snapshots of one job."""

    def __init__(
        self,
        job: Job,
        every: int,
        aside: Aside,
        saved: Callable[[int], Awaitable[None]],
        failed: Callable[[Exception], None],
    ) -> None:
        """``every`` chunks, 0 for never; ``saved`` hears of which chunk, ``failed`` why it could not be written."""
        self._job, self._every, self._aside = job, every, aside
        self._saved, self._failed = saved, failed
        self._files: JobFiles | None = None
        self._grown = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._stage = ""  # asked, packed, writing
        self._made = 0  # chunks
        self._asked = 0  # of them when the latest was asked for
        self._last = False  # the job ends with the next one

    def goes_on(self, made: int) -> None:
        """The job begins with a snapshot of so many chunks."""
        self._made = self._asked = made

    async def grew(self, files: JobFiles) -> None:
        """The job's files have more in them."""
        async with self._grown:
            self._files = files
            self._grown.notify_all()

    def in_turn(self, made: int) -> None:
        """So many chunks are made: take a snapshot if one is due, or when the one under way is done."""
        self._made = made
        if self._due and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._while_due())

    @property
    def _due(self) -> bool:
        enough = self._every > 0 and self._made - self._asked >= self._every
        return enough and self._made < self._job.chunks and not self._last

    async def _while_due(self) -> None:
        while self._due:
            self._asked = self._made
            await self._take()

    async def last(self) -> None:
        """Take one of the next boundary and end the job there."""
        self._last = True
        if self._task:
            await asyncio.wait({self._task})
        self._task = asyncio.create_task(self._take())
        await asyncio.wait({self._task})

    async def settle(self, all_filed: bool) -> None:
        """Leave nothing under way: what was only asked for is let go, what can still be written becomes whole.

        ``all_filed``: the files have everything that they are going to have.
        """
        if self._task is None or self._task.done():
            return
        if self._stage == "asked" or (self._stage == "packed" and not all_filed):
            self._task.cancel()
        await asyncio.wait({self._task})

    async def _take(self) -> None:
        self._stage = "asked"
        try:
            packed: Packed = await asyncio.wrap_future(self._job.snapshot())
        except (RuntimeError, ValueError) as error:
            log.debug("no snapshot: %s", error)  # the job ended before the boundary
            return
        self._stage = "packed"
        if self._last:
            self._job.cancel("the server stops")  # what follows would be made in vain
        at = facts(packed)
        try:
            async with self._grown:
                await self._grown.wait_for(lambda: self._has(at.index, at.settled))
            self._stage = "writing"
            assert self._files is not None
            await self._aside(self._files.save, packed, at.index, at.settled)
        except (RuntimeError, OSError, ValueError) as error:
            self._failed(error)
            return
        await self._saved(at.index)

    def _has(self, turns: int, settled: int) -> bool:
        return self._files is not None and self._files.has(turns, settled)
