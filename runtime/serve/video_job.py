"""One job in the worker: hands it to the engine, brings what comes back to its files, and tells the server.

The engine's thread only leaves a light note of each turn here; pictures, files and snapshots are made by other threads,
so the engine waits for no disk. A job's settled chunks do wait to be read, and so a slow disk slows that job alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.request import JobCancelled, JobFailed, Request
from runtime.serve.commands import Submit, Switch
from runtime.serve.job_files import JobFiles, Made, Mark, has_snapshot, last_saved, light
from runtime.serve.logs import about
from runtime.serve.saving import Saving
from runtime.serve.wire import Message

if TYPE_CHECKING:
    from runtime.async_engine import AsyncEngine
    from runtime.job import Job
    from runtime.types import ChunkEvent, ChunkRecord

log = logging.getLogger(__name__)

LONGEST_REASON = 500
ALL_PICTURES_BYTES = 2**20  # of one turn's event; beyond it the dropped candidates have none

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Office:
    """What all jobs share."""

    engine: AsyncEngine
    tell: Callable[[Message], Awaitable[None]]  # an event, once the link has room
    threads: Executor
    snapshot_chunks: int  # between two snapshots; 0: only when the worker stops

    async def aside(self, call: Callable[..., Told], *args: Any) -> Told:
        """The result of a call that may wait for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *args)


class VideoJob:
    """Runs one job from its submission to its last event."""

    def __init__(self, command: Submit, office: Office) -> None:
        """Raises ValueError for a command that the engine cannot take."""
        engine = office.engine
        self.name = command.job
        self._asked, self._office = command, office
        if not command.folder.is_dir():
            raise ValueError("folder: there is none")
        settings = engine.settings.with_changes(command.settings)
        who = engine.fps, engine.implementations, engine.identity
        self._made = Made(command.prompts, settings, *who)
        self._notes: deque[ChunkRecord] = deque()
        self._loop = asyncio.get_running_loop()
        self._noted = asyncio.Event()  # there are notes
        self._filing = asyncio.Lock()
        self._began: float | None = None  # when the server was told so
        self._files: JobFiles | None = None
        self._mark: Mark | None = None  # where it goes on
        self._job: Job
        self._saving: Saving
        self._broken: Exception | None = None
        self._leaving = False

    async def submit(self) -> None:
        """Hand the job to the engine. Raises ValueError, or Busy when its queue is full."""
        asked, resume = self._asked, None
        if asked.resume:
            found = await self._office.aside(last_saved, asked.folder, self._made)
            resume, self._mark = found or (None, None)
        request = Request(
            prompts=asked.prompts,
            settings=None if resume else self._made.settings,  # a snapshot brings its own
            name=self.name,
            priority=asked.priority,
            deadline_s=asked.deadline_s,
            budget_fps=asked.budget_fps,
            resume=resume,
        )
        self._job = self._office.engine.submit(request, self._note)
        every, aside = self._office.snapshot_chunks, self._office.aside
        self._saving = Saving(self._job, every, aside, self._saved, self._break)
        if self._mark:
            self._saving.goes_on(self._mark.turns)

    async def run(self) -> None:
        """Until the job has ended and its last event is told. Raises nothing of the job's own."""
        with about(job=self.name):
            turns = asyncio.create_task(self._tell_turns())
            try:
                last = await self._follow()
                if not self._leaving or last["event"] == "done":
                    await self._office.tell(last)
                    log.info("%s", last["event"], extra={"facts": {"reason": last.get("reason")}})
            finally:
                turns.cancel()

    def cancel(self) -> None:
        self._job.cancel("cancelled")

    async def switch(self, command: Switch) -> None:
        """Tell what became of a change of prompt."""
        about_it = {"job": self.name, "tag": command.tag}
        try:
            chunk = await asyncio.wrap_future(self._job.switch(command.prompt, command.chunk))
            told = {"event": "switched", **about_it, "chunk": chunk, "prompt": command.prompt}
        except (ValueError, RuntimeError, asyncio.CancelledError) as error:
            reason = self._reason(error) or "the job has ended"
            told = {"event": "refused", **about_it, "reason": reason}
        await self._office.tell(told)

    async def leave(self) -> None:
        """Save what the job is, and end it without a word: it goes on when a worker is asked to."""
        self._leaving = True
        if self._job.state != "queued":
            await self._saving.last()
        self._job.cancel("the server stops")

    async def note_state(self) -> None:
        """Tell that the job began, once it left the queue."""
        # Not by its state: a quick one may be done before anybody looks.
        if self._began is None and self._job.chunks:
            self._began = time.monotonic()
            first = self._mark.turns if self._mark else 0
            told = {"event": "began", "job": self.name, "chunks": self._job.chunks, "chunk": first}
            if self._mark:  # what of the video is good already
                told |= {"settled": self._mark.chunks, "bytes": self._mark.bytes}
            await self._office.tell(told)

    def _note(self, record: ChunkRecord) -> None:
        """Called by the engine's thread after every turn."""
        self._notes.append(light(record))
        self._loop.call_soon_threadsafe(self._noted.set)

    async def _follow(self) -> Message:
        """Bring what comes to the files until the job has ended; its last event."""
        try:
            cancelled = await self._read()
            await self._file_turns()
            if self._broken is None:
                return await (self._cancelled() if cancelled else self._done())
        except Exception as error:  # of this job, and no other's business
            self._break(error)
        assert self._broken is not None
        return await self._failed(self._broken)

    async def _read(self) -> bool:
        """Settled chunks as they come, after the turns that they settled in; whether the job was cancelled."""
        try:
            async for event in self._job:
                if self._broken is None:
                    await self._file_turns()
                    await self._settle(event)
        except JobCancelled:
            return True
        return False

    async def _tell_turns(self) -> None:
        """Bring notes to the files as they come, settled chunks or not."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            try:
                await self._file_turns()
            except (RuntimeError, OSError, ValueError) as error:
                self._break(error)

    async def _file_turns(self) -> None:
        """Everything that was noted up to now, in order."""
        async with self._filing:
            while self._notes and self._broken is None:
                record = self._notes.popleft()
                await self.note_state()
                files = await self._opened()
                turn = await self._office.aside(files.turn, record)
                await self._saving.grew(files)
                await self._office.tell(turn_event(self.name, turn, record))
                self._saving.in_turn(record.index + 1)

    async def _settle(self, event: ChunkEvent) -> None:
        async with self._filing:
            files = await self._opened()
            before = files.written.frames
            await self._office.aside(files.settle, event)
            await self._saving.grew(files)
            scores = event.scores
            told = {
                "event": "settled",
                "job": self.name,
                "index": event.index,
                "frames": files.written.frames - before,
                "bytes": files.size_bytes,
                "seed": event.seed,
                "route": event.route.value,
                **{"short": scores.short, "long": scores.long, "fused": scores.fused},
            }
            await self._office.tell(told)

    async def _opened(self) -> JobFiles:
        """The files, opened when there is something for them: a queued job holds none."""
        if self._files is None:
            files = await self._office.aside(JobFiles, self._asked.folder, self._made)
            self._files = files
            if self._mark:
                await self._office.aside(files.resume, self._mark)
            else:
                await self._office.aside(files.begin, self._job.chunks)
        return self._files

    async def _saved(self, chunk: int) -> None:
        await self._office.tell({"event": "saved", "job": self.name, "chunk": chunk})

    def _break(self, error: Exception) -> None:
        """The job cannot go on: the engine gives back what it holds, then ``_follow`` tells why."""
        self._broken = self._broken or error
        self._job.cancel("a file could not be written")

    async def _done(self) -> Message:
        files = await self._opened()
        await self._close("finished")
        told: Message = {
            "event": "done",
            "job": self.name,
            "frames": files.written.frames,
            "bytes": files.size_bytes,
            "seconds": round(time.monotonic() - (self._began or time.monotonic()), 3),
            "degraded": [incident.sentence for incident in self._job.incidents],
        }
        await self._office.aside(files.finish, told)
        return told

    async def _cancelled(self) -> Message:
        await self._close("interrupted")
        if self._files and not self._leaving:
            await self._office.aside(self._files.forget_snapshots)
        return {"event": "cancelled", "job": self.name}

    async def _failed(self, error: Exception) -> Message:
        log.warning("failed: %s", type(error).__name__, exc_info=error)
        with contextlib.suppress(RuntimeError):  # the same disk, most likely
            await self._close("failed")
        resumable = await self._office.aside(has_snapshot, self._asked.folder)
        reason = self._job.reason if isinstance(error, JobFailed) else self._reason(error)
        return {"event": "failed", "job": self.name, "reason": reason, "resumable": resumable}

    async def _close(self, outcome: str) -> None:
        """Close the files. A snapshot that is being written becomes whole, one that is only asked for is let go."""
        await self._saving.settle(all_filed=self._broken is None)
        async with self._filing:
            if self._files:
                await self._office.aside(self._files.close, outcome)

    def _reason(self, error: BaseException) -> str:
        return reason_of(error, str(self._asked.folder))


def turn_event(job: str, turn: Message, record: ChunkRecord) -> Message:
    """What the server hears of a chunk's candidates: as the trace has them, pictures as data URIs."""
    candidates = turn["candidates"]
    crowded = sum(len(one["thumbnail"]) for one in candidates) > ALL_PICTURES_BYTES
    told = [
        one | {"thumbnail": None}
        if crowded and one["rank"] is None
        else one | {"thumbnail": f"data:image/jpeg;base64,{one['thumbnail']}"}
        for one in candidates
    ]
    parents = [one["parent"] for one in candidates]
    return {
        "event": "turn",
        "job": job,
        "index": record.index,
        "candidates": told,
        "stage_ms": turn["stage_ms"],
        "incidents": [incident.sentence for incident in record.incidents],
        "histories": len(record.kept),
        "expansions": max(map(parents.count, parents), default=0),
    }


def reason_of(error: BaseException, folder: str) -> str:
    """An error for people elsewhere: one line, and nothing of this machine's folders."""
    text = " ".join(str(error).replace(folder + "/", "").split())
    known = isinstance(error, ValueError | RuntimeError | OSError | MemoryError)
    if not known:
        return f"an internal error ({type(error).__name__}); the worker's log has more"
    return (text or type(error).__name__)[:LONGEST_REASON]
