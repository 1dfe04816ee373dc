"""The worker process: one engine, driven by the JSON lines of a server.

``python -m runtime.serve.worker --preset sprites --link-fd N`` is started by ``runtime.serve.link``, not by hand. It
ends when it is told to (``stop`` or SIGTERM: every job is saved first; a second SIGTERM: at once) and when its server
is gone. Ctrl-C is the server's affair. Exit codes: 0 all jobs were saved, 1 the machine failed or the time was up, 2
the call was wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.async_engine import AsyncEngine
from runtime.request import Limits, Request
from runtime.serve.commands import Cancel, Command, Stop, Submit, Switch, command_of, job_named
from runtime.serve.inbox import Inbox
from runtime.serve.job_files import VIDEO
from runtime.serve.logs import about, log_to
from runtime.serve.video_job import Office, VideoJob, reason_of
from runtime.serve.wire import LineCutter, Message, line_of, message_of
from runtime.serve.worker_options import Options, parse
from runtime.settings import Settings
from runtime.video import VideoWriter

log = logging.getLogger("runtime.serve.worker")  # whatever this process calls the module

BEAT_SECONDS = 0.5
READ_BYTES = 2**18
FILE_THREADS = 4
WARM_UP_PROMPT = "a red circle moving right on a navy background"
WARM_UP_FRAMES = 21  # two chunks
PR_SET_PDEATHSIG = 1

Build = Callable[[Settings, Limits], AsyncEngine]


class Worker:
    """One run of the process: reads commands, runs a ``VideoJob`` for each video, beats, and ends."""

    def __init__(self, options: Options, build: Build) -> None:
        self._options, self._build = options, build
        self._inbox = Inbox()
        self._jobs: dict[str, VideoJob] = {}
        self._runs: set[asyncio.Task[None]] = set()
        self._stop: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._ready = False
        self._room = asyncio.Lock()  # one waits for the link at a time
        self._writer: asyncio.StreamWriter

    async def run(self) -> None:
        """Until it is told to stop or the server is gone."""
        reader, self._writer = await asyncio.open_unix_connection(
            sock=socket.socket(fileno=self._options.link_fd)
        )
        hearing = asyncio.create_task(self._hear(reader))
        threads = ThreadPoolExecutor(FILE_THREADS, "files")
        working = asyncio.create_task(self._work(threads))
        watchdog: threading.Timer | None = None
        try:
            ends: set[asyncio.Future[Any]] = {working, self._stop}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working  # raises what ended it
            watchdog = _end_after(self._stop.result())
            if not self._ready:
                os._exit(0)  # nothing is there to be saved, and building knows no way to stop
            await self._leave()
        except Exception as error:
            await self.tell({"event": "fatal", "reason": reason_of(error, os.getcwd())})
            raise
        finally:
            hearing.cancel()
            working.cancel()
            await asyncio.gather(hearing, working, return_exceptions=True)
            if watchdog:
                watchdog.cancel()
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()

    def stop(self, grace_s: float) -> None:
        """Begin to save and end; again is harmless."""
        if not self._stop.done():
            self._stop.set_result(grace_s)

    def terminate(self, grace_s: float) -> None:
        """SIGTERM: as ``stop``, and when it comes once more the end."""
        if self._stop.done():
            os._exit(128 + signal.SIGTERM)
        self.stop(grace_s)

    async def tell(self, event: Message) -> None:
        """Send an event once the link has room for it. A server that is gone misses nothing: the files are its memory."""
        try:
            line = line_of(event)
        except ValueError:
            log.exception("an event is too long for a line: %s", event["event"])
            return
        if not self._writer.is_closing():
            self._writer.write(line)
            async with self._room:
                with contextlib.suppress(ConnectionError):
                    await self._writer.drain()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        """Take the server's lines until there are no more."""
        cutter = LineCutter()
        with contextlib.suppress(ConnectionError):
            while content := await reader.read(READ_BYTES):
                for line in cutter.feed(content):
                    await self._take(line)
        if not self._stop.done():
            log.warning("the server is gone; every job is saved")
            self.stop(self._options.grace_s)

    async def _take(self, line: bytes | None) -> None:
        """Put a line's command into the inbox; a stop does not wait there."""
        message: Message = {}
        try:
            if line is None:
                raise ValueError("a line: is too long")
            message = message_of(line)
            command = command_of(message)
        except ValueError as error:
            await self._refuse(message, error)
            return
        if isinstance(command, Stop):
            self.stop(command.grace_s)
        else:
            await self._inbox.put(command, len(line))

    async def _refuse(self, message: Message, error: Exception) -> None:
        """Say that something was not done. A submission that named its job has failed, unless that job is running."""
        reason = reason_of(error, str(message.get("folder", "?")))
        job, told = job_named(message), Message(reason=reason)
        if message.get("do") == "submit" and job and job not in self._jobs:
            told |= {"event": "failed", "job": job, "resumable": False}
        else:
            told |= {"event": "refused", "job": job, "tag": message.get("tag")}
        retry = getattr(error, "retry_after_s", None)
        await self.tell(told if retry is None else told | {"retry_after_s": retry})

    async def _work(self, threads: ThreadPoolExecutor) -> None:
        """Build, warm up, then commands for ever."""
        loop = asyncio.get_running_loop()
        options = self._options
        engine = await loop.run_in_executor(threads, self._build, options.settings, options.limits)
        ready = await loop.run_in_executor(threads, warm_up, engine)
        office = Office(engine, self.tell, threads, options.snapshot_chunks)
        self._ready = True
        await self.tell(ready)
        log.info("ready", extra={"facts": {"warm_ms": ready["warm_ms"]}})
        duties = [asyncio.create_task(duty) for duty in (self._beat(engine), self._serve(office))]
        try:
            await asyncio.wait(duties, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for duty in duties:
                duty.cancel()
            told = await asyncio.gather(*duties, return_exceptions=True)
            await asyncio.gather(*self._runs, return_exceptions=True)
            await loop.run_in_executor(threads, engine.close)
        for error in told:
            if isinstance(error, Exception):
                raise error

    async def _serve(self, office: Office) -> None:
        while not self._stop.done():
            await self._obey(await self._inbox.get(), office)

    async def _obey(self, command: Command, office: Office) -> None:
        if isinstance(command, Submit):
            await self._submit(command, office)
            return
        assert not isinstance(command, Stop)
        job = self._jobs.get(command.job)
        if job is None:
            named = {"job": command.job, "tag": getattr(command, "tag", None)}
            await self._refuse(named, ValueError("there is no such job here, or it has ended"))
        elif isinstance(command, Cancel):
            job.cancel()
        elif isinstance(command, Switch):
            self._keep(asyncio.create_task(job.switch(command)))

    async def _submit(self, command: Submit, office: Office) -> None:
        named = {"do": "submit", "job": command.job, "folder": str(command.folder)}
        with about(job=command.job):
            try:
                if command.job in self._jobs:
                    raise ValueError("this job is here already")
                job = VideoJob(command, office)
                await job.submit()
            except (ValueError, RuntimeError, OSError) as error:
                await self._refuse(named, error)
                return
            log.info("submitted", extra={"facts": {"characters": len(command.prompts[0][1])}})
        self._jobs[command.job] = job
        run = asyncio.create_task(job.run())
        run.add_done_callback(lambda _: self._jobs.pop(command.job, None))
        self._keep(run)

    def _keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task until it has ended, and log what it should not have raised."""
        self._runs.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a job's task ended badly", exc_info=task.exception())

    async def _beat(self, engine: AsyncEngine) -> None:
        """Tell the engine's numbers; also that the process is alive. Skipped where the server does not read.

        Raises RuntimeError when the engine's thread is gone: a worker without one is no use.
        """
        transport = self._writer.transport
        while engine.alive:
            if transport.get_write_buffer_size() < READ_BYTES:
                limit = engine.limits.batch_rows
                await self.tell({"event": "stats", "batch_limit": limit, **asdict(engine.stats())})
            for job in tuple(self._jobs.values()):
                await job.note_state()
            await asyncio.sleep(BEAT_SECONDS)
        raise RuntimeError("the engine's thread ended; the worker's log says of what")

    async def _leave(self) -> None:
        """Every job is saved and ends, all at the same time."""
        leaving = [job.leave() for job in self._jobs.values()]
        for result in await asyncio.gather(*leaving, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("a job could not be saved", exc_info=result)
        await asyncio.gather(*self._runs, return_exceptions=True)


def warm_up(engine: AsyncEngine) -> Message:
    """Make two chunks and a file of them, as a job would; "ready" with what that took and showed."""
    began = time.perf_counter()
    settings = engine.settings.with_changes({"seconds": WARM_UP_FRAMES / engine.fps})
    weights = json.loads(engine.identity)["weights"]
    with (
        tempfile.TemporaryDirectory() as folder,
        VideoWriter(Path(folder) / VIDEO, engine.fps) as video,
    ):
        for event in engine.submit(Request(prompts=WARM_UP_PROMPT, settings=settings)):
            video.add(event.frames)
    return {
        "event": "ready",
        "fps": engine.fps,
        "width": video.width,
        "height": video.height,
        "warm_ms": round((time.perf_counter() - began) * 1e3, 1),
        "device": engine.settings.run.device,
        "implementations": dict(engine.implementations),
        "weights": weights,
        "blocks": engine.stats().blocks,
    }


def main(arguments: Sequence[str] | None = None, build: Build = AsyncEngine) -> int:
    """Run the process and return its exit code."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    log_to(level=options.log_level, process="worker")
    _end_with_the_server()
    os.set_inheritable(options.link_fd, False)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    try:
        asyncio.run(_run(options, build))
        return 0
    except Exception:
        log.exception("the worker cannot go on")
        return 1


async def _run(options: Options, build: Build) -> None:
    worker = Worker(options, build)
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, meant for the server
    loop.add_signal_handler(signal.SIGTERM, worker.terminate, options.grace_s)
    loop.add_signal_handler(signal.SIGHUP, worker.stop, options.grace_s)
    await worker.run()


def _end_after(grace_s: float) -> threading.Timer:
    """Whatever waits for whatever: the process is gone after that time."""
    watchdog = threading.Timer(grace_s, os._exit, [1])
    watchdog.daemon = True
    watchdog.start()
    return watchdog


def _end_with_the_server() -> None:
    """Where the system can: SIGHUP when the server dies, should the link's end go unnoticed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)


if __name__ == "__main__":
    sys.exit(main())
