"""One engine, many callers: what goes wrong with one of them is that one's, and nobody waits for what will never come."""

import threading

import pytest
import torch

from runtime import AsyncEngine, JobFailed, Request
from runtime.engine import Engine
from runtime.types import Clip
from tests.faulty import AT, CHUNKS, PATIENCE_S, Faulty
from tests.tiny import tiny_engine

# One row a forward: no row's bits depend on its company.
SHARED = {"run.prompts": 3, "run.batch_rows": 1}


def broken(role: str, trouble, **changes) -> Engine:
    return tiny_engine(CHUNKS, {**SHARED, **changes}, **{role: Faulty(role, trouble)})


def bad_at(chunk: int, error: type[BaseException] = ValueError):
    def trouble(clip: Clip, call: int) -> None:
        if clip.prompt == "bad" and clip.chunk == chunk:
            raise error("broken on purpose")

    return trouble


def alone(prompt: str) -> torch.Tensor:
    return frames_of(tiny_engine(CHUNKS, SHARED).stream(prompt))


def frames_of(events) -> torch.Tensor:
    return torch.cat([event.frames for event in events])


@pytest.mark.parametrize("role", ["image", "video"])
def test_a_request_whose_reward_fails_ends_alone(role):
    with AsyncEngine(broken(role, bad_at(AT))) as many:
        jobs = [many.submit(Request(prompts=p, backlog=99)) for p in ("fine", "bad", "good")]
        fine, good = frames_of(jobs[0]), frames_of(jobs[2])
        with pytest.raises(JobFailed, match=rf"{role} reward: no score for 4 .*broken on purpose"):
            list(jobs[1])
        stats = many.stats()
    assert (stats.ended, stats.blocks_used) == ({"done": 2, "failed": 1}, 0)
    assert torch.equal(fine, alone("fine")) and torch.equal(good, alone("good"))
    assert jobs[0].incidents == jobs[2].incidents == ()


def test_every_request_says_itself_whether_it_goes_on_without_a_reward():
    def trouble(clip: Clip, call: int) -> None:
        if clip.chunk == AT:
            raise ValueError("broken on purpose")

    with AsyncEngine(broken("image", trouble)) as many:
        degrade = many.settings.with_changes({"reward.on_error": "degrade"})
        goes_on = many.submit(Request(prompts="x", settings=degrade, backlog=99))
        fails = many.submit(Request(prompts="x", backlog=99))
        assert len(list(goes_on)) == CHUNKS
        with pytest.raises(JobFailed, match="set reward.on_error='degrade' to go on without it"):
            list(fails)
    (incident,) = goes_on.incidents
    assert (incident.role, incident.chunk, incident.rows) == ("image", AT, (0, 1, 2, 3))


def test_a_final_rating_that_fails_is_among_a_jobs_incidents():
    def never(clip: Clip, call: int) -> None:
        raise ValueError("broken on purpose")

    parts = {"image": Faulty("image", lambda clip, call: None), "final": Faulty("video", never)}
    one = tiny_engine(CHUNKS, {**SHARED, "search.histories": 3}, **parts)
    with AsyncEngine(one) as many:
        degrade = many.settings.with_changes({"reward.on_error": "degrade"})
        goes_on = many.submit(Request(prompts="x", settings=degrade, backlog=99))
        fails = many.submit(Request(prompts="x", backlog=99))
        assert len(list(goes_on)) == CHUNKS
        with pytest.raises(JobFailed, match="none of the . videos has a final score"):
            list(fails)
        assert many.stats().blocks_used == 0
    assert [incident.role for incident in goes_on.incidents] == ["final"]


def test_a_reward_that_hangs_stops_neither_its_video_nor_the_others():
    """It hangs from a chunk on until the end of the test: what it was asked for is late, at every chunk."""
    gate = threading.Event()

    def trouble(clip: Clip, call: int) -> None:
        if clip.chunk >= AT:
            assert gate.wait(PATIENCE_S)

    changes = {"reward.deadline_s": 0.2, "reward.on_error": "degrade"}
    with AsyncEngine(broken("image", trouble, **changes)) as many:
        jobs = [many.submit(Request(prompts=p, backlog=99)) for p in ("a", "b")]
        assert [len(list(job)) for job in jobs] == [CHUNKS] * 2
        gate.set()
    for job in jobs:
        late = [i.chunk for i in job.incidents if (i.role, i.kind) == ("image", "late")]
        assert set(range(AT, CHUNKS)) <= set(late)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engines_thread_ends_nobody_waits_for_ever():
    with AsyncEngine(broken("image", bad_at(AT, SystemExit))) as many:
        bad = many.submit(Request(prompts="bad", backlog=99))
        fine = many.submit(Request(prompts="fine", backlog=99))
        for job in (bad, fine):
            with pytest.raises(JobFailed, match="the engine's thread ended: SystemExit"):
                while job.next(PATIENCE_S) is not None:
                    pass
        with pytest.raises(RuntimeError, match="this engine is closed"):
            many.submit(Request(prompts="late"))
        assert many.stats().blocks_used == 0


def test_a_snapshot_that_cannot_be_packed_is_refused_and_the_video_goes_on(monkeypatch):
    def full(line, pool):
        raise MemoryError("no memory for a copy")

    monkeypatch.setattr("runtime.resuming.pack", full)
    with AsyncEngine(tiny_engine(CHUNKS, SHARED)) as many:
        job = many.submit(Request(prompts="x", backlog=1))
        job.next(PATIENCE_S)
        with pytest.raises(ValueError, match="MemoryError: no memory for a copy"):
            job.snapshot().result(PATIENCE_S)
        rest = list(job)
        assert len(rest) == CHUNKS - 1 and job.state == "done"
