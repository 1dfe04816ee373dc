"""A job that is being made, or looked at: its newest state, its files, and the bell that tells of news."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.serve.backend import Message
from runtime.serve.jobs import Job
from runtime.serve.journal import Bell, Journal, follow

EVENTS = "events.jsonl"
QUIET_S = 15.0  # after which a reader gets a sign of life


class Live:
    """The one mutable thing about a job; ``job`` itself is replaced, never changed."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.journal = Journal(folder / EVENTS)
        self.bell = Bell()
        self.why: str | None = None  # somebody cancelled it
        self.cleared = asyncio.Event()  # a deleted job's files are gone
        self.asked: dict[str, asyncio.Future[Message]] = {}  # prompt switches without an answer

    @property
    def video(self) -> Path:
        return self.folder / "video.mp4"

    @property
    def trace(self) -> Path:
        return self.folder / "trace.json"

    def change(self, **fields: Any) -> Job:
        """Replace the job by one that differs in ``fields``."""
        self.job = replace(self.job, **fields)
        return self.job

    def video_bytes(self, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The video as it grows; ends with the job. b"" is a sign of life."""
        return follow(self.video, lambda: (self.job.bytes, not self.job.open), self.bell, offset, QUIET_S)  # fmt: skip

    async def events(self, offset: int = 0) -> AsyncGenerator[tuple[int, bytes], None]:
        """(offset behind it, JSON line) of every event from ``offset`` on; ends with the job. b"" is a sign of life."""
        rest = b""

        def valid() -> tuple[int, bool]:
            return self.journal.size, not self.job.open

        async for piece in follow(self.journal.path, valid, self.bell, offset, QUIET_S):
            if not piece:
                yield offset, b""
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                offset += len(line) + 1
                yield offset, line

    async def ended(self) -> Job:
        """Wait until nobody works on the job any more."""
        while self.job.open:
            await self.bell.wait(QUIET_S)
        return self.job

    def answer(self, tag: object, event: Message) -> bool:
        """Hand an answer to whoever asked for a prompt switch; whether somebody did."""
        future = self.asked.pop(str(tag), None)
        if future is None or future.done():
            return False
        future.set_result(event)
        return True
