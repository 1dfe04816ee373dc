"""Videos come, change their minds, are read slowly, packed, cancelled and go on, thousands of times: nothing is left of them."""

from __future__ import annotations

import gc
import os
import random
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from runtime import AsyncEngine, Busy, JobFailed, Limits, Request
from runtime.engine import Engine
from runtime.job import Job
from runtime.settings import Settings
from tests.tiny import tiny_engine

PATIENCE_S = 120.0
LOOKS = 10
KINDS = [
    {"search.policy": "single"},
    {"search.histories": 1, "search.expansions": 2},
    {"search.histories": 2, "search.expansions": 2, "memory.quality_threshold": -9.0},
    {"search.histories": 2, "search.expansions": 1, "memory.transition_threshold": -9.0},
    {"search.policy": "best-of-n", "search.histories": 2, "search.expansions": 1},
]


@dataclass(frozen=True)
class Look:
    """What the process holds when no video is there."""

    tensors: int
    threads: int
    descriptors: int
    resident_mib: float


def look() -> Look:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Look(
        sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()),
        threading.active_count(),
        len(os.listdir("/proc/self/fd")),
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    )


@dataclass
class Crowd:
    """Callers who do as chance tells them."""

    many: AsyncEngine
    chance: random.Random
    jobs: list[Job] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)

    def act(self) -> None:
        """One of them does something."""
        acts = [self.come, self.come, self.read, self.read, self.read, self.switch, self.pack]
        self.chance.choice([*acts, self.cancel])()

    def come(self) -> None:
        if len(self.jobs) > 8:
            self.jobs[0].cancel()
            self.await_end(self.jobs[0])
        changes = {
            **self.chance.choice(KINDS),
            "seconds": 3.0 * self.chance.randint(1, 9),
            "search.seed": self.chance.randrange(2**63),
        }
        settings: Settings = self.many.settings.with_changes(changes)
        backlog = self.chance.choice([1, 1, 2, 99])
        try:
            wanted = Request(
                prompts="x",
                settings=settings,
                backlog=backlog,
                priority=self.chance.randint(-8, 8),
                deadline_s=self.chance.choice([None, None, None, 0.05]),
            )
            self.jobs.append(self.many.submit(wanted))
            self.count("came")
        except Busy:
            self.count("busy")

    def read(self) -> None:
        if not self.jobs:
            return
        job = self.chance.choice(self.jobs)
        try:
            if job.next(timeout_s=0.01) is None:
                self.jobs.remove(job)
                self.count("done")
        except TimeoutError:
            self.count("not ready")
        except JobFailed:
            self.jobs.remove(job)
            self.count(job.state)

    def switch(self) -> None:
        if self.jobs:
            self.chance.choice(self.jobs).switch(self.chance.choice(["a", "b", "c"]))
            self.count("switched")

    def pack(self) -> None:
        """A video is packed, cancelled, and goes on as another."""
        if not self.jobs:
            return
        job = self.chance.choice(self.jobs)
        answer = job.snapshot()
        try:
            packed = answer.result(PATIENCE_S)
        except (ValueError, CancelledError):  # it has not begun, or has ended
            self.count("not packed")
            return
        job.cancel()
        self.await_end(job)
        self.jobs.append(self.many.submit(Request(prompts="x", resume=packed, backlog=2)))
        self.count("packed")

    def cancel(self) -> None:
        if self.jobs:
            job = self.chance.choice(self.jobs)
            job.cancel()
            if self.chance.random() < 0.5:
                self.await_end(job)

    def await_end(self, job: Job) -> None:
        try:
            while job.next(PATIENCE_S) is not None:
                pass
        except JobFailed:
            pass
        self.jobs.remove(job)
        self.count(job.state)

    def go_home(self) -> None:
        """Everybody leaves."""
        for job in list(self.jobs):
            job.cancel()
            self.await_end(job)

    def count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1


def churned(chunks: int, seed: int) -> tuple[list[Look], dict[str, int], Engine]:
    """What is held each time that everybody left, LOOKS times on the way to so many chunks; and what they did."""
    engine = tiny_engine(9, {"run.prompts": 4})
    looks = []
    with AsyncEngine(engine, Limits(videos=4, queued=5)) as many:
        crowd = Crowd(many, random.Random(seed))
        for part in range(1, LOOKS + 1):
            while many.stats().chunks < chunks * part / LOOKS:
                crowd.act()
            crowd.go_home()
            engine.pool.check([])
            stats = many.stats()
            assert (stats.running, stats.queued, stats.blocks_used) == (0, 0, 0)
            assert not engine.pool.shadows and not engine.recipe.scorer.incidents(0)
            looks.append(look())
    assert many.stats().chunks >= chunks
    return looks, crowd.done, engine


def assert_flat(looks: list[Look], spread_mib: float, spread_tensors: int = 50) -> None:
    """Every batch size keeps the prompts that it read last, so how many tensors there are differs by a few."""
    settled = looks[LOOKS // 2 :]  # what is made once, like plan buffers for every size, is there
    assert {(one.threads, one.descriptors) for one in settled} == {
        (looks[0].threads, looks[0].descriptors)
    }
    for what, spread in (("tensors", spread_tensors), ("resident_mib", spread_mib)):
        held = [getattr(one, what) for one in settled]
        assert max(held) - held[0] <= spread, (what, looks)


def test_four_hundred_chunks_of_churn_leave_nothing():
    looks, done, _ = churned(400, seed=1)
    assert_flat(looks, spread_mib=64.0)
    assert {"came", "done", "cancelled", "packed", "switched"} <= done.keys()


@pytest.mark.slow
def test_ten_thousand_chunks_of_churn_leave_nothing(capsys):
    looks, done, _ = churned(10_000, seed=2)
    with capsys.disabled():
        for one in looks:
            print(one)
        print(done)
    assert_flat(looks, spread_mib=16.0)
