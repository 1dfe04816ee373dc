"""A ``Worker`` in the test's own process, behind a real socket, with the drawn-disc engine: as quick as a function call."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from runtime.serve.wire import MAX_LINE_BYTES, line_of, message_of
from runtime.serve.worker import Worker
from runtime.serve.worker_options import parse
from tests.fake_async_engine import FakeAsyncEngine

LONG = 60.0  # a generous timeout


class AtHand:
    """The server's end of a worker: sends commands and keeps what comes back."""

    def __init__(self, folder: Path, engine: FakeAsyncEngine) -> None:
        self.folder, self.engine = folder, engine
        self.events: list[dict] = []
        self._new = asyncio.Event()

    def note(self, event: dict) -> None:
        self.events.append(event)
        self._new.set()

    async def hear(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self.note(message_of(line[:-1]))

    def send(self, **command) -> None:
        self.send_raw(line_of(command))

    def send_raw(self, content: bytes) -> None:
        self.writer.write(content)

    def submit(self, job: str, seconds: float = 3.6, **more) -> Path:
        """Ask for a video of five chunks; its folder."""
        folder = self.folder / job
        folder.mkdir(exist_ok=True)
        settings = {"seconds": seconds} | more.pop("settings", {})
        command = {"folder": str(folder), "prompts": [[0, "a disc"]], "settings": settings}
        self.send(do="submit", job=job, **command | more)
        return folder

    def of(self, job: str, kind: str | None = None) -> list[dict]:
        return [e for e in self.events if e.get("job") == job and kind in (None, e["event"])]

    async def told(self, kind: str, job: str | None = None, count: int = 1) -> dict:
        """The ``count``-th event of a kind, waited for."""

        async def wait() -> dict:
            while True:
                self._new.clear()
                mine = [e for e in self.events if e["event"] == kind]
                mine = mine if job is None else [e for e in mine if e.get("job") == job]
                if len(mine) >= count:
                    return mine[count - 1]
                await self._new.wait()

        try:
            return await asyncio.wait_for(wait(), LONG)
        except asyncio.TimeoutError:
            seen = [(e["event"], e.get("job"), e.get("reason")) for e in self.events]
            raise AssertionError(f"no {kind} of {job} in {seen}") from None

    async def end(self, job: str) -> dict:
        """The last event of a job."""
        ends = [asyncio.ensure_future(self.told(k, job)) for k in ("done", "failed", "cancelled")]
        done, rest = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for one in rest:
            one.cancel()
        return done.pop().result()


@contextlib.asynccontextmanager
async def at_hand(
    folder: Path, *arguments: str, engine: FakeAsyncEngine | None = None
) -> AsyncIterator[AtHand]:
    """A ready worker; stopped afterwards, unless the test has done it."""
    ours, theirs = socket.socketpair()
    engine = engine or FakeAsyncEngine()
    options = parse(["--link-fd", str(theirs.detach()), *arguments])
    worker = Worker(options, lambda settings, limits: engine)
    running = asyncio.create_task(worker.run())
    hand = AtHand(folder, engine)
    reader, hand.writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_LINE_BYTES)
    hearing = asyncio.create_task(hand.hear(reader))
    hand.running = running
    try:
        await hand.told("ready")
        yield hand
    finally:
        if not running.done():
            worker.stop(LONG)
        await asyncio.wait_for(running, LONG)
        hearing.cancel()
        hand.writer.close()
