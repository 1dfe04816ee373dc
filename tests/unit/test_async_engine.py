"""Many callers on one engine: each gets the video it would have got alone, in its share of the time, and may leave."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
import torch

from runtime import AsyncEngine, Busy, JobCancelled, JobFailed, Limits, Request, Settings, resuming
from runtime.engine import Engine
from runtime.riding import pick
from tests.tiny import ByRow, tiny_engine

CHUNKS = 8


def engine(videos: int = 4, **changes) -> Engine:
    # One row a forward: no row's bits depend on its company.
    return tiny_engine(CHUNKS, {"run.prompts": videos, "run.batch_rows": 1, **changes})


def wanted(one: Engine | AsyncEngine, **changes) -> Settings:
    return one.settings.with_changes(changes)


def frames_of(events) -> torch.Tensor:
    return torch.cat([event.frames for event in events])


KINDS = [
    {"search.seed": 1},
    {"search.seed": 2, "search.histories": 1, "search.expansions": 3},
    {"search.policy": "beam", "search.histories": 3},
    {"search.policy": "single", "seconds": 12.0},
    {"search.policy": "best-of-n"},
    {"search.policy": "halving", "search.draft_passes": 1},
    {"noise.beta": 0.5, "noise.mode": "slerp", "reward.tau": 0.9},
    {"memory.quality_threshold": -9.0, "memory.rope": "relative", "seconds": 15.0},
    {"memory.window_frames": 9, "reward.window_chunks": 2, "reward.stride": 2},
]


def test_every_caller_gets_the_video_that_it_would_have_got_alone():
    with AsyncEngine(engine()) as many:
        jobs = [
            many.submit(Request(prompts=f"p{n}", settings=wanted(many, **kind), backlog=99))
            for n, kind in enumerate(KINDS)
        ]
        got = [list(job) for job in jobs]
        stats = many.stats()
    for n, kind in enumerate(KINDS):
        want = list(engine(**kind).stream(f"p{n}"))
        assert [event.seed for event in got[n]] == [event.seed for event in want], kind
        assert torch.equal(frames_of(got[n]), frames_of(want)), kind
    assert stats.ended == {"done": len(KINDS)} and stats.blocks_used == 0
    assert stats.turns < stats.chunks, "nobody shared a turn"


def test_a_video_joins_others_that_are_under_way():
    one, rows = engine(), []
    turn = one.turn
    one.turn = lambda lines: rows.append([line.index for line in lines]) or turn(lines)
    with AsyncEngine(one) as many:
        first = many.submit(Request(prompts="one", backlog=99))
        next(iter(first))
        second = many.submit(Request(prompts="two", backlog=99))
        list(first), list(second)
    shared = [indices for indices in rows if len(indices) == 2]
    assert shared and all(a != b for a, b in shared), "they shared turns at different chunks"


def test_reading_works_in_asyncio_and_closing_the_stream_cancels():
    async def read() -> tuple[int, list]:
        async with AsyncEngine(engine()) as many:
            whole = [event async for event in many.stream(Request(prompts="words"))]
            events = many.stream(Request(prompts="words", backlog=1))
            first = await events.__anext__()
            await events.aclose()
            deadline = time.monotonic() + 20
            while many.stats().running and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            stats = many.stats()
            assert stats.ended == {"done": 1, "cancelled": 1} and stats.blocks_used == 0
            return first.index, [event.index for event in whole]

    assert asyncio.run(read()) == (0, list(range(CHUNKS)))


def test_a_slow_reader_pauses_its_own_video_only():
    with AsyncEngine(engine()) as many:
        slow = many.submit(Request(prompts="slow", backlog=2))
        fast = many.submit(Request(prompts="fast", backlog=99))
        assert len(list(fast)) == CHUNKS
        slow_made = slow.made
        assert slow.state == "paused" and slow_made < CHUNKS
        assert many.stats().paused == 1
        assert [event.index for event in slow] == list(range(CHUNKS)) and slow.state == "done"


def test_cancelling_takes_one_chunk_at_most_and_leaves_the_others_alone():
    with AsyncEngine(engine()) as many:
        stays = many.submit(Request(prompts="stays", backlog=99))
        seen = []

        def watch(record):
            seen.append(record.index)
            if record.index == 2:
                goes.cancel("enough")

        goes = many.submit(Request(prompts="goes", backlog=99), watch)
        with pytest.raises(JobCancelled, match="enough"):
            list(goes)
        got = frames_of(list(stays))
        assert max(seen) <= 3 and goes.state == "cancelled"
        assert many.stats().blocks_used == 0
    assert torch.equal(got, frames_of(engine().stream("stays")))


def test_a_prompt_switches_while_the_video_is_made():
    told = []
    with AsyncEngine(engine()) as many:

        def watch(record):
            if record.index == 2:
                told.append(job.switch("new words"))
                told.append(job.switch("even later", 6))
            if record.index == 4:
                told.append(job.switch("too late", 1))

        job = many.submit(Request(prompts="words", backlog=99), watch)
        got = frames_of(list(job))
        assert [told[0].result(5), told[1].result(5)] == [3, 6]
        with pytest.raises(ValueError, match="chunk: want 5 to 7"):
            told[2].result(5)
        with pytest.raises(ValueError, match="is done"):
            job.switch("after the end").result(5)
        with pytest.raises(ValueError, match="want some words"):
            job.switch("  ")
    scenes = [(0, "words"), (3, "new words"), (6, "even later")]
    assert torch.equal(got, frames_of(engine().stream(scenes)))


def test_a_snapshot_goes_on_in_another_engine():
    with AsyncEngine(engine()) as many:
        taken = []

        def watch(record):
            if record.index == 3:
                taken.append(job.snapshot())

        job = many.submit(Request(prompts="words", backlog=99), watch)
        whole = list(job)
        packed = taken[0].result(5)
    known = resuming.facts(packed)
    assert known.index == 4
    with AsyncEngine(engine()) as other:
        assert other.identity == resuming.identity(engine())
        rest = list(other.submit(Request(prompts="ignored", resume=packed, backlog=99)))
    assert [event.index for event in rest] == list(range(known.settled, CHUNKS))
    assert torch.equal(frames_of(rest), frames_of(whole[known.settled :]))


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_again():
    with AsyncEngine(engine(1), Limits(queued=1)) as many:
        first = many.submit(Request(prompts="one", backlog=1))
        next(iter(first))
        second = many.submit(Request(prompts="two", backlog=99))
        with pytest.raises(Busy, match="1 requests wait already") as told:
            many.submit(Request(prompts="three"))
        assert told.value.retry_after_s >= 1
        assert second.state == "queued" and len(list(first)) == CHUNKS - 1
        assert len(list(second)) == CHUNKS


def test_who_waits_longest_begins_first_and_priority_goes_before():
    order = []
    with AsyncEngine(engine(1)) as many:
        begun = many.submit(Request(prompts="first", backlog=1))
        next(iter(begun))
        jobs = [
            many.submit(
                Request(prompts="p", name=name, priority=priority, backlog=99),
                lambda record, name=name: order.append(name) if record.index == 0 else None,
            )
            for name, priority in [("a", 0), ("b", 0), ("urgent", 3), ("c", 0)]
        ]
        list(begun)
        for job in jobs:
            list(job)
    assert order == ["urgent", "a", "b", "c"]


def test_a_deadline_ends_what_is_not_done_in_time_wherever_it_is():
    with AsyncEngine(engine(1)) as many:
        slow = many.submit(Request(prompts="slow", backlog=1, deadline_s=0.4))
        queued = many.submit(Request(prompts="queued", deadline_s=0.2))
        with pytest.raises(JobFailed, match=r"deadline of 0.2 s passed in the queue"):
            list(queued)
        event = slow.next(5)
        time.sleep(0.5)
        with pytest.raises(JobFailed, match=r"deadline of 0.4 s passed after chunk \d of 8"):
            list(slow)
        assert event.index == 0 and many.stats().blocks_used == 0


def test_one_video_without_a_finite_score_fails_alone():
    def scores(chunk, rows):
        return [float("nan")] * rows if bad and chunk == 2 else [1.0] * rows

    bad: list[int] = []
    image = ByRow(scores)
    score = image.score
    image.score = lambda clip: (
        (bad.append(1) if clip.prompt == "bad" else bad.clear()) or score(clip)
    )
    one = tiny_engine(CHUNKS, {"run.prompts": 3}, image=image)
    with AsyncEngine(one) as many:
        jobs = [many.submit(Request(prompts=p, backlog=99)) for p in ("fine", "bad", "good")]
        assert len(list(jobs[0])) == len(list(jobs[2])) == CHUNKS
        with pytest.raises(JobFailed, match="none of the 4 candidates has a finite score"):
            list(jobs[1])
        assert many.stats().ended == {"done": 2, "failed": 1}
        assert many.stats().blocks_used == 0


def test_a_turn_that_fails_is_tried_again_one_video_at_a_time():
    one = engine()
    draw = one.drawing.draw

    def picky(lines, places):
        if any(line.video.prompt == "bad" and line.index == 2 for line in lines):
            raise RuntimeError("a kernel does not like these words")
        return draw(lines, places)

    one.drawing.draw = picky
    with AsyncEngine(one) as many:
        jobs = [many.submit(Request(prompts=p, backlog=99)) for p in ("fine", "bad", "good")]
        got = [frames_of(list(jobs[0])), frames_of(list(jobs[2]))]
        with pytest.raises(JobFailed, match="does not like these words"):
            list(jobs[1])
        assert many.stats().retried >= 2 and many.stats().blocks_used == 0
    for frames, prompt in zip(got, ("fine", "good"), strict=True):
        assert torch.equal(frames, frames_of(engine().stream(prompt)))


def test_a_watcher_that_raises_ends_its_own_video_only():
    def watch(record):
        raise OSError("the disk is full")

    with AsyncEngine(engine()) as many:
        fine = many.submit(Request(prompts="fine", backlog=99))
        bad = many.submit(Request(prompts="bad", backlog=99), watch)
        with pytest.raises(JobFailed, match="the disk is full"):
            list(bad)
        assert len(list(fine)) == CHUNKS


def test_two_engines_live_beside_each_other_and_one_that_is_lost_gives_everything_back():
    first, second = AsyncEngine(engine()), AsyncEngine(engine())
    a, b = (many.submit(Request(prompts="words", backlog=99)) for many in (first, second))
    assert torch.equal(frames_of(list(a)), frames_of(list(b)))
    gone = weakref.ref(second._turning.engine.pool)
    thread = second._thread
    del second, b
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    gc.collect()
    assert gone() is None, "its pool is still there"
    assert len(list(first.submit(Request(prompts="more", backlog=99)))) == CHUNKS
    first.close()
    with pytest.raises(RuntimeError, match="closed"):
        first.submit(Request(prompts="too late"))


def test_closing_ends_what_runs():
    many = AsyncEngine(engine(1))
    runs = many.submit(Request(prompts="one", backlog=1))
    waits = many.submit(Request(prompts="two"))
    runs.next(10)
    many.close()
    for job in (runs, waits):
        assert job.state == "cancelled" and job.reason == "the engine was closed"


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (lambda s: Request(prompts="", settings=s), "want some words"),
        (lambda s: Request(prompts=[(3, "late")]), "want the first at chunk 0"),
        (lambda s: Request(prompts="p", settings=s.with_changes({"run.dtype": "bfloat16"})), "run.dtype: want"),
        (lambda s: Request(prompts="p", settings=s.with_changes({"reward.image": "stub"})), "reward.image: want"),
        (lambda s: Request(prompts="p", settings=s.with_changes({"fidelity": "released"})), "fidelity: want"),
        (lambda s: Request(prompts="p", settings=s.with_changes({"search.histories": 99})), "candidates a chunk"),
        (lambda s: Request(prompts="p", settings=s.with_changes({"seconds": 9999.0})), "seconds: want at most"),
        (lambda s: Request(prompts="p", settings=s.with_changes({"search.histories": 30, "search.expansions": 1})), "KV blocks"),
        (lambda s: Request(prompts="p", priority=9), "priority: want"),
        (lambda s: Request(prompts="p", backlog=0), "backlog: want"),
        (lambda s: Request(prompts="p", deadline_s=float("nan")), "deadline_s: want"),
        (lambda s: Request(prompts="p", budget_fps=-1.0), "budget_fps: want"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_before_it_is_queued(request_, sentence):
    with AsyncEngine(engine(1)) as many:
        with pytest.raises(ValueError, match=sentence):
            many.submit(request_(many.settings))
        assert many.stats().queued == many.stats().running == 0


class Stub:
    """As much of a ride as ``pick`` looks at."""

    def __init__(self, number, virtual, rows, together=(0,)):
        self.job = self.line = self
        self.number, self.virtual, self.rows, self.together = number, virtual, rows, together


def test_whoever_is_furthest_behind_rides_and_takes_along_who_fits():
    a, b, c, d = Stub(0, 5, 4), Stub(1, 1, 4), Stub(2, 2, 4, (1,)), Stub(3, 3, 2)
    assert pick([a, b, c, d], 6) == [b, d]
    assert pick([a, b, c, d], 10) == [b, d, a]
    assert pick([a, b, c, d], 1) == [b]
    assert pick([c, a], 99) == [c]


def test_priorities_share_the_engine_by_weight():
    made: list[str] = []
    one = engine(2)
    with AsyncEngine(one, Limits(batch_rows=4)) as many:  # one of the two videos a turn
        gate = threading.Event()

        def watch(name):
            return lambda record: (gate.wait(5), made.append(name))

        jobs = [
            many.submit(Request(prompts="p", priority=priority, backlog=99), watch(name))
            for name, priority in [("low", 0), ("high", 1)]
        ]
        time.sleep(0.05)
        gate.set()
        for job in jobs:
            list(job)
    until_high_ends = made[: len(made) - made[::-1].index("high")]
    assert 3 <= until_high_ends.count("low") <= 5, made  # of 8: half as many as the other's
