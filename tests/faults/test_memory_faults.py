"""Memory that runs out in a batch: half as many rows at a time, and the same video; where nothing can be halved, one video ends.

Denoising has its own tests in ``tests/unit/test_recorded_denoising.py``, rewards in ``test_reward_company.py``.
"""

import logging

import pytest
import torch

from runtime import AsyncEngine, JobFailed, Request
from runtime.engine import Engine
from runtime.memory import KVPool
from runtime.portions import Portions
from tests.tiny import Echo, tiny_engine

CHUNKS = 4
MERGES = {
    "memory.quality_threshold": -9.0,
    "memory.transition_threshold": 9.0,
}  # EMA at every chunk


class Allocator:
    """A device that runs out of memory when asked for more than so many rows at once."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, []

    def take(self, rows: int) -> None:
        self.asked.append(rows)
        if rows > self.most:
            raise torch.OutOfMemoryError(f"simulated: no memory for {rows} rows")


class Tight(Echo):
    """A decoder on such a device."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator

    def decode(self, latents, state):
        self.allocator.take(len(latents))
        return super().decode(latents, state)


def made(engine: Engine) -> tuple[torch.Tensor, torch.Tensor, list]:
    kept: list = []
    events = list(engine.stream("x", watch=lambda record: kept.append(record.kept)))
    engine.pool.check([])
    return torch.cat([e.latents for e in events]), torch.cat([e.frames for e in events]), kept


KINDS = [{}, {"fidelity": "released"}, {"run.schedule": "released"}]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_decode_that_does_not_fit_is_halved_and_the_video_is_the_same(changes, most, caplog):
    want = made(tiny_engine(CHUNKS, changes))
    allocator = Allocator(most)
    with caplog.at_level(logging.WARNING):
        got = made(tiny_engine(CHUNKS, changes, decoder=Tight(allocator)))
    assert got[2] == want[2]
    assert all(torch.equal(a, b) for a, b in zip(got[:2], want[:2], strict=True))
    if max(allocator.asked) > most:
        assert "no memory to decode" in caplog.text
    assert max(allocator.asked[4:]) <= most, "what does not fit is tried once"


def test_the_decoder_that_rewards_see_by_is_halved_too():
    allocator = Allocator(1)
    want = made(tiny_engine(CHUNKS, scoring=Echo()))
    got = made(tiny_engine(CHUNKS, scoring=Tight(allocator)))
    assert got[2] == want[2] and torch.equal(got[1], want[1]) and min(allocator.asked) == 1


def test_where_not_one_row_can_be_decoded_the_error_says_what_to_do():
    engine = tiny_engine(CHUNKS, decoder=Tight(Allocator(0)))
    with pytest.raises(RuntimeError, match="no memory to decode one candidate; lower run.decoder_"):
        made(engine)
    engine.pool.check([])


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_every_row_is_worked_on_once_and_in_order(rows, most, error):
    done: list[int] = []

    def work(part: range) -> None:
        if len(part) > most:
            raise error("simulated")
        done.extend(part)

    portions = Portions(0, "bake", "buy a bigger oven")
    for _ in range(2):
        done.clear()
        portions.run(range(rows), torch.device("cpu"), work)
        assert done == list(range(rows))
    with pytest.raises(ZeroDivisionError):  # nothing else is taken for a lack of memory
        portions.run(range(1), torch.device("cpu"), lambda part: 1 // 0)


def starved(monkeypatch, at: int) -> None:
    """The pool has no memory for what its merge number ``at`` needs."""
    merge, calls = KVPool.merge_, []

    def merging(pool, *args):
        calls.append(args)
        if len(calls) == at:
            raise torch.OutOfMemoryError("simulated: no memory for a shadow")
        merge(pool, *args)

    monkeypatch.setattr(KVPool, "merge_", merging)


@pytest.mark.parametrize("at", [1, 2])
def test_a_merge_without_memory_ends_the_video_and_leaves_the_pool_whole(at, monkeypatch):
    engine = tiny_engine(8, MERGES)
    want = made(engine)
    with monkeypatch.context() as patched:
        starved(patched, at)
        with pytest.raises(torch.OutOfMemoryError, match="no memory for a shadow"):
            made(engine)
    engine.pool.check([])
    assert not engine.pool.shadows
    assert all(torch.equal(a, b) for a, b in zip(made(engine)[:2], want[:2], strict=True))


def test_a_merge_without_memory_ends_one_video_of_many(monkeypatch):
    shared = {**MERGES, "run.prompts": 3, "run.batch_rows": 1}
    want = {p: torch.cat([e.frames for e in tiny_engine(8, shared).stream(p)]) for p in "abc"}
    starved(monkeypatch, 3)
    with AsyncEngine(tiny_engine(8, shared)) as many:
        jobs = {p: many.submit(Request(prompts=p, backlog=99)) for p in "abc"}
        got, failed = {}, []
        for prompt, job in jobs.items():
            try:
                got[prompt] = torch.cat([event.frames for event in job])
            except JobFailed as error:
                failed.append(str(error))
        assert many.stats().blocks_used == 0
    assert len(failed) == 1 and "simulated: no memory for a shadow" in failed[0]
    assert all(torch.equal(frames, want[prompt]) for prompt, frames in got.items())
