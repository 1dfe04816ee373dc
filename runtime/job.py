"""A request on its way: read its chunks, in a thread or in asyncio; cancel it, switch its prompt, take a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from runtime.budget import Budget
from runtime.packing import Packed
from runtime.request import JobCancelled, JobFailed, Request
from runtime.scenes import check_prompt
from runtime.types import ChunkEvent, Incident

ENDED = ("done", "failed", "cancelled")
Wish = TypeVar("Wish")


@dataclass(frozen=True, slots=True)
class Switch:
    """A prompt that is to hold from a chunk on; None: the next one."""

    prompt: str
    chunk: int | None
    answer: Future[int]


class Job:
    """One request as its caller sees it. All of it may be used from any thread.

    Iterating gives ``ChunkEvent`` in order and ends with the video; what ended it early is raised: ``JobCancelled`` or
    ``JobFailed``. Every event is given once, to whoever asks first. Nobody asking pauses the video, and no other.
    """

    def __init__(self, request: Request, number: int, wake: Callable[[], None]) -> None:
        """``wake`` tells the engine that something is wanted of it."""
        self.request, self.number = request, number
        self.name = request.name or f"video {number}"
        self.submitted = time.monotonic()
        self.chunks = self.made = 0  # of the whole video, and so far
        self.budget: Budget | None = None  # what it chose and kept, once it runs with one
        self.incidents: tuple[
            Incident, ...
        ] = ()  # rewards that failed: any makes it a degraded video
        self._wake = wake
        self._changed = threading.Condition()
        self._state, self._reason = "queued", ""
        self._events: deque[ChunkEvent] = deque()
        self._listeners: list[Callable[[], None]] = []
        self._cancel: str | None = None
        self._switches: list[Switch] = []
        self._snapshots: list[Future[Packed]] = []

    @property
    def state(self) -> str:
        """queued, running, paused (its reader is slow), done, failed or cancelled."""
        with self._changed:
            full = len(self._events) >= self.request.backlog
            return "paused" if self._state == "running" and full else self._state

    @property
    def reason(self) -> str:
        """Why it ended early; "" if it did not."""
        return self._reason

    @property
    def ended(self) -> bool:
        return self._state in ENDED

    @property
    def left_s(self) -> float:
        """Seconds until its deadline."""
        if self.request.deadline_s is None:
            return math.inf
        return self.submitted + self.request.deadline_s - time.monotonic()

    @property
    def late(self) -> str:
        """That its deadline passed, and where it was."""
        place = f"after chunk {self.made} of {self.chunks}" if self.chunks else "in the queue"
        return f"its deadline of {self.request.deadline_s:g} s passed {place}"

    def cancel(self, reason: str = "cancelled") -> None:
        """End it at the next chunk boundary and give its memory back. A video that has ended stays as it is."""
        with self._changed:
            self._cancel = self._cancel or reason
        self._wake()

    def switch(self, prompt: str, chunk: int | None = None) -> Future[int]:
        """Show ``prompt`` from the next chunk on, or from a later one. The result is that chunk; ValueError if there is none."""
        check_prompt(prompt)
        wish = Switch(prompt, chunk, Future())
        self._wish(self._switches, wish, wish.answer)
        return wish.answer

    def snapshot(self) -> Future[Packed]:
        """What this video needs to go on, taken at its next chunk boundary. See ``runtime/resuming.py`` and ``snapshot.py``.

        The chunks that were settled until then are not in it: read them first. ValueError if it does not run.
        """
        answer: Future[Packed] = Future()
        self._wish(self._snapshots, answer, answer)
        return answer

    def _wish(self, wishes: list[Wish], wish: Wish, answer: Future) -> None:
        """Leave a wish for the engine; one that comes after the end is refused at once."""
        with self._changed:
            late = self.ended
            if not late:
                wishes.append(wish)
        if late:
            refuse(answer, f"{self.name} is {self._state}")
        self._wake()

    def __iter__(self) -> Iterator[ChunkEvent]:
        while (event := self.next()) is not None:
            yield event

    def next(self, timeout_s: float | None = None) -> ChunkEvent | None:
        """The next settled chunk; None after the last. TimeoutError when there is none in time."""
        with self._changed:
            ready = self._changed.wait_for(lambda: self._events or self.ended, timeout_s)
            if not ready:
                raise TimeoutError(f"{self.name}: no chunk settled in {timeout_s} s")
            return self._taken()

    async def __aiter__(self) -> AsyncGenerator[ChunkEvent, None]:
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed
                loop.call_soon_threadsafe(news.set)

        with self._changed:
            self._listeners.append(tell)
        try:
            while True:
                news.clear()
                with self._changed:
                    waiting = not (self._events or self.ended)
                    event = None if waiting else self._taken()
                if waiting:
                    await news.wait()
                elif event is None:
                    return
                else:
                    yield event
        finally:
            with self._changed:
                self._listeners.remove(tell)

    def _taken(self) -> ChunkEvent | None:
        """The oldest event, or how it ended. The lock is held."""
        if self._events:
            was_full = len(self._events) >= self.request.backlog
            event = self._events.popleft()
            if was_full:
                self._wake()
            return event
        if self._state == "cancelled":
            raise JobCancelled(f"{self.name}: {self._reason}")
        if self._state == "failed":
            raise JobFailed(f"{self.name}: {self._reason}")
        return None

    # What follows is for the engine.

    def wishes(self) -> tuple[str | None, list[Switch], list[Future[Packed]]]:
        """What was asked for since the last call: a reason to cancel, prompts, snapshots."""
        with self._changed:
            switches, snapshots = list(self._switches), list(self._snapshots)
            self._switches.clear()
            self._snapshots.clear()
            return self._cancel, switches, snapshots

    def begin(self, chunks: int, made: int) -> None:
        with self._changed:
            self._state, self.chunks, self.made = "running", chunks, made

    def add(self, events: list[ChunkEvent]) -> None:
        """Settled chunks for the reader."""
        with self._changed:
            self._events.extend(events)
            self._tell()

    def end(self, state: str, reason: str = "") -> None:
        """How it ended; what is still wanted of it is refused."""
        with self._changed:
            self._state, self._reason = state, reason
            self._tell()
        _, switches, snapshots = self.wishes()
        refuse_all(switches, snapshots, f"{self.name} is {state}")

    def _tell(self) -> None:
        self._changed.notify_all()
        for listener in self._listeners:
            listener()


def refuse(answer: Future, reason: str) -> None:
    """Say no to whoever waits, unless nobody does any more."""
    if answer.set_running_or_notify_cancel():
        answer.set_exception(ValueError(reason))


def refuse_all(
    switches: Iterable[Switch], snapshots: Iterable[Future[Packed]], reason: str
) -> None:
    """Say no to everybody."""
    for wish in switches:
        refuse(wish.answer, reason)
    for answer in snapshots:
        refuse(answer, reason)


def grant(answer: Future, value: object) -> None:
    """Say yes to whoever waits, unless nobody does any more."""
    if answer.set_running_or_notify_cancel():
        answer.set_result(value)
