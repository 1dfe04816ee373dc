"""``AsyncEngine`` by its contract over ``FakeEngine``: a thread per job, drawn discs, real search and real settling."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch

from runtime.packing import Packed
from runtime.request import Busy, JobCancelled, JobFailed, Limits, Request
from runtime.resuming import facts
from runtime.settings import Settings
from tests.fake_engine import FakeEngine


@dataclass(frozen=True)
class FakeStats:
    """What the worker tells every half second."""

    queued: int
    running: int
    paused: int
    blocks_used: int
    blocks: int
    batch_rows: int
    turns: int


class FakeJob:
    """One video on a thread of its own, begun when the engine has room for it."""

    def __init__(self, request: Request, watch, engine: FakeAsyncEngine) -> None:
        self.state, self.reason, self.incidents = "queued", "", ()
        self.chunks = max(1, round((request.settings.seconds * 16 + 3) / 12))
        self._request, self._watch, self._engine = request, watch, engine
        self._changed = threading.Condition()
        self._events: deque = deque()
        self._wanted: list[Future] = []
        self._end: Exception | None = None
        self._over = False
        self._stop = ""
        self._shown = 0
        self._wake: Callable[[], None] = lambda: None
        self._holds = engine.holds if request.name else ()  # a warm-up has none
        known = facts(request.resume) if request.resume else None
        self._first, self._skip = (known.index, known.settled) if known else (0, 0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cancel(self, reason: str = "cancelled") -> None:
        with self._changed:
            self._stop = self._stop or reason
            self._changed.notify_all()

    def switch(self, prompt: str, chunk: int | None = None) -> Future:
        answer: Future = Future()
        if chunk is not None and chunk < self._shown:
            answer.set_exception(ValueError(f"chunk: want a later one, got {chunk}"))
        else:
            answer.set_result(self._shown if chunk is None else chunk)
        return answer

    def snapshot(self) -> Future:
        answer: Future = Future()
        with self._changed:
            if self._over:
                answer.set_exception(ValueError("the job has ended"))
            else:
                self._wanted.append(answer)
                self._changed.notify_all()
        return answer

    def __iter__(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._over)
                if not self._events:
                    break
                event = self._events.popleft()
                self._changed.notify_all()
            yield event
        if self._end:
            raise self._end

    async def __aiter__(self):
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: loop.call_soon_threadsafe(ready.set)
        while True:
            ready.clear()
            with self._changed:
                event = self._events.popleft() if self._events else None
                over = self._over and event is None
                self._changed.notify_all()
            if over:
                break
            if event is None:
                await ready.wait()
            else:
                yield event
        if self._end:
            raise self._end

    def _run(self) -> None:
        try:
            with self._engine.room:
                self._check()
                self.state = "running"
                self._make()
            self.state = "done"
        except JobCancelled as stop:
            self.state, self._end = "cancelled", stop
        except Exception as error:
            self.state, self._end, self.reason = "failed", JobFailed(f"x: {error}"), str(error)
        with self._changed:
            self._over = True
            for answer in self._wanted:
                answer.set_exception(ValueError("the job has ended"))
            self._changed.notify_all()
        self._wake()

    def _make(self) -> None:
        engine = FakeEngine(self._request.settings, before=self._boundary, size=16)
        told = self._watch and (lambda r: self._watch(r) if r.index >= self._first else None)
        for event in engine.stream(self._request.prompts, watch=told):
            self._shown = event.index + 1
            if event.index >= self._skip:
                with self._changed:
                    self._events.append(event)
                    self._changed.notify_all()
                self._wake()

    def _boundary(self, index: int) -> None:
        if index < self._first:
            return
        with self._changed:
            full = len(self._events) >= self._request.backlog
            self.state = "paused" if full else "running"
            self._changed.wait_for(lambda: len(self._events) < self._request.backlog or self._stop)
            self.state = "running"
            answered = self._answer(index)
            if index in self._holds:
                last = index == self._holds[-1]
                while not self._stop and (last or not answered):
                    self._changed.wait()
                    answered = self._answer(index) or answered
        self._check()
        if self._request.name:  # a warm-up has none and is quick
            time.sleep(self._engine.chunk_s)
        self._check()

    def _answer(self, index: int) -> bool:
        """Give the snapshots that are wanted; whether there were any."""
        wanted, self._wanted = self._wanted, []
        for answer in wanted:
            answer.set_result(self._packed(index))
        return bool(wanted)

    def _packed(self, index: int) -> Packed:
        settings = self._request.settings
        tree = {
            "settings": json.loads(settings.to_json()),
            "scenes": [[0, "a disc"]],
            "index": index,
            "survivors": [{"unsettled": list(range(index - self._shown))}],
        }
        return Packed(tree, {"state": torch.full((4,), float(index))})

    def _check(self) -> None:
        if self._stop:
            raise JobCancelled(self._stop)


class FakeAsyncEngine:
    """``chunk_s`` is how long a chunk takes, ``queued`` and ``running`` how many jobs may wait and be made.

    Jobs stay before the chunks in ``holds``: at the last until they are cancelled, at the others until a snapshot was taken.
    """

    fps, implementations, identity = 16, {"noise": "torch"}, '{"weights": "discs"}'

    def __init__(
        self,
        chunk_s: float = 0.0,
        queued: int = 64,
        running: int = 4,
        holds: Sequence[int] = (),
    ) -> None:
        self.chunk_s, self.limits, self.holds = chunk_s, Limits(queued=queued), holds
        self.settings, self.alive = Settings(), True
        self.room = threading.Semaphore(running)
        self.jobs: list[FakeJob] = []
        self.closed = False

    def submit(self, request: Request, watch=None) -> FakeJob:
        if request.resume:
            request = replace(request, settings=facts(request.resume).settings)
        if request.settings.search.seed == 666:
            raise ValueError("search.seed: not this one")
        self.jobs = [job for job in self.jobs if not job._over]
        if sum(job.state == "queued" for job in self.jobs) >= self.limits.queued:
            raise Busy(self.limits.queued, 2.0)
        self.jobs.append(FakeJob(request, watch, self))
        return self.jobs[-1]

    def stats(self) -> FakeStats:
        states = [job.state for job in self.jobs]
        counts = (states.count(state) for state in ("queued", "running", "paused"))
        return FakeStats(*counts, blocks_used=3, blocks=16, batch_rows=4, turns=9)

    def close(self) -> None:
        self.closed = True
        for job in self.jobs:
            job.cancel("closed")
