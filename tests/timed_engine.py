"""What benchmarks time in their own tests: an engine whose every chunk takes as long as a nap, a writer that is slow too."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from runtime.settings import Settings
from runtime.telemetry import StageClock
from tests.fake_engine import FakeEngine

NAP = 0.01  # seconds


@pytest.fixture
def fake_time(monkeypatch):
    """A clock that only naps move, and a look at it by a microsecond: what is timed does not depend on the machine."""
    now = [0.0]

    def look():
        now[0] += 1e-6
        return now[0]

    monkeypatch.setattr(time, "perf_counter", look)
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


class TimedEngine(FakeEngine):
    """A fake engine with a clock: every chunk naps in "denoise"; two histories agree one chunk later."""

    def __init__(self, chunks=4, settings=None):
        settings = settings or Settings().with_changes({"seconds": 0.75 * chunks})
        super().__init__(settings, before=self._nap)
        self.clock = StageClock(torch.device("cpu"))

    def _nap(self, index):
        self.clock.take()
        with self.clock.stage("denoise"):
            time.sleep(NAP)

    def stream(self, prompt, *, watch=None):
        def timed(record):
            watch(replace(record, stage_ms=self.clock.take()))

        return super().stream(prompt, watch=timed)

    def stream_many(self, prompts, *, watch=None):
        """All prompts in step, as one batch: a chunk's records follow one another, then what settled of it."""
        records = []
        lines = [FakeEngine(self.settings).stream(p, watch=records.append) for p in prompts]
        events = [(place, event) for place, line in enumerate(lines) for event in line]
        for index in range(self.chunks):
            self._nap(index)
            stage_ms = self.clock.take()
            told = [record for record in records if record.index == index]
            for record in told:  # the batch's times go with the last
                watch(replace(record, stage_ms=stage_ms if record is told[-1] else {}))
            yield from ((place, event) for place, event in events if event.index == index)


class Sink:
    """A writer that takes its time."""

    opened: list = []

    def __init__(self, nap=NAP / 2):
        self.frames, self.closed, self.nap = 0, False, nap
        Sink.opened.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        time.sleep(self.nap)
        self.closed = True

    def add(self, frames):
        time.sleep(self.nap)
        self.frames += len(frames)
