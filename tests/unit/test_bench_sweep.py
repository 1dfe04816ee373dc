"""Sweeps: which point holds what, that time is bounded, that a long video is held against fresh short ones."""

from types import SimpleNamespace

import pytest

from runtime.bench import measure, show, sweep
from runtime.bench.sweep import Sweeper, near, reach
from runtime.engine import Engine
from runtime.settings import Settings
from tests.timed_engine import NAP, Sink, TimedEngine, fake_time
from tests.tiny import tiny_engine

FAKE_PARTS = SimpleNamespace(generator=SimpleNamespace(time_stride=4, fps=16))


__all__ = ["fake_time"]  # a fixture


@pytest.fixture(autouse=True)
def quick(monkeypatch, fake_time):
    monkeypatch.setattr(measure, "open_writer", lambda path, engine: Sink(0.0))
    monkeypatch.setattr(sweep, "MAX_VIDEOS", 2)
    monkeypatch.setattr(sweep, "WARMUP_CHUNKS", 1)
    monkeypatch.setattr(sweep, "SHORT_CHUNKS", 3)


def fakes(built, seconds=60.0, settings=None):
    def build(settings, parts):
        built.append(settings)
        return TimedEngine(settings=settings)

    return Sweeper(settings or Settings(), FAKE_PARTS, ("a", "b", "c"), seconds, build)


def within(point, frames):
    """Whether a point's FPS is one of ``frames`` frames a chunk: a mean lies between the extremes."""
    spent = point["chunk_ms"]
    return frames / spent["max"] <= point["pixel_fps"] / 1e3 <= frames / spent["min"]


def test_candidates_grow_and_nothing_else():
    built = []
    points = list(fakes(built).axis("candidates"))
    assert [point["x"] for point in points] == [1, 2, 4, 8, 16]
    assert [p["histories"] * p["expansions"] for p in points] == [1, 2, 4, 8, 16]
    for settings in built:
        same = {"search.histories": 2, "search.expansions": 2, "seconds": built[0].seconds}
        assert settings.with_changes(same) == Settings().with_changes(same)
    first = points[0]
    assert first["chunk_ms"]["count"] == 2 * 2  # two videos of three chunks, without their first
    assert within(first, 12)


def test_an_axis_ends_when_its_time_is_up_but_every_point_is_taken():
    points = list(fakes([], seconds=1e-6).axis("candidates"))
    assert [point["chunk_ms"]["count"] for point in points] == [2] * 5  # one video each


def test_prompts_count_the_frames_of_all(monkeypatch):
    monkeypatch.setattr(sweep, "PROMPTS", (1, 4))
    one, four = fakes([]).axis("prompts")
    assert (one["x"], four["x"], four["prompts"]) == (1, 4, 4)
    assert within(one, 12) and within(four, 4 * 12)


def test_a_point_that_does_not_fit_is_said_and_the_axis_goes_on(monkeypatch):
    def build(settings, parts):
        if settings.search.histories == 2:
            raise RuntimeError("out of memory\ndetails")
        return TimedEngine(settings=settings)

    points = list(Sweeper(Settings(), FAKE_PARTS, ("a",), 1e-6, build).axis("candidates"))
    assert [p.get("error") for p in points] == [None, None, "out of memory", "out of memory", None]
    assert points[2]["chunk_ms"]["median"] is None
    text = "\n".join(show.growth("candidates", points))
    assert "not measured: out of memory" in text


def test_a_context_point_holds_only_chunks_that_see_so_many_blocks(monkeypatch):
    monkeypatch.setattr(sweep, "CONTEXT_BLOCKS", (2, 4))
    seen = []
    made = sweep.make_video

    def noted(engine, prompts, **options):
        video = made(engine, prompts, **options)
        seen.append([max(chunk.work.contexts) for chunk in video.chunks])
        return video

    monkeypatch.setattr(sweep, "make_video", noted)
    engine = tiny_engine(2)
    points = list(Sweeper(engine.settings, engine.parts, ("a",), 1e-6, Engine).axis("context"))
    assert [point["x"] for point in points] == [2, 4]
    assert seen[1] == [0, 1, 2, 2, 2, 2] and seen[3] == [0, 1, 2, 3, 4, 4, 4, 4]
    assert [point["chunk_ms"]["count"] for point in points] == [4, 4]


def test_a_long_video_is_flat_against_fresh_short_ones(monkeypatch):
    monkeypatch.setattr(sweep, "LENGTHS", (10, 30))
    built = []
    points = list(fakes(built).axis("length"))
    assert [point["x"] for point in points] == [10, 30] and len(built) == 2
    assert [point["chunk_ms"]["count"] for point in points] == [5, 7]
    for point in points:
        assert point["control_ms"]["count"] == 3 * 5
        assert point["ratio_to_control"] == pytest.approx(1.0, abs=0.01)
    text = "\n".join(show.growth("length", points))
    assert "x of fresh" in text


def test_a_video_that_gets_slower_is_seen_to(monkeypatch):
    monkeypatch.setattr(sweep, "LENGTHS", (10, 30))

    class Growing(TimedEngine):
        def _nap(self, index):
            for _ in range(1 + index // 10):
                super()._nap(index)

    def build(settings, parts):
        return Growing(settings=settings)

    ten, thirty = Sweeper(Settings(), FAKE_PARTS, ("a",), 60.0, build).axis("length")
    assert thirty["ratio_to_first"] > 1.4 and thirty["ratio_to_control"] > 1.4


def test_a_long_video_ends_when_its_time_is_up_and_says_where(monkeypatch):
    monkeypatch.setattr(sweep, "LENGTHS", (3, 1000))
    first, last = fakes([], seconds=20 * NAP).axis("length")
    assert first["x"] == 3 and 5 <= last["x"] < 100
    assert last["control_ms"]["count"] == 0 and last["ratio_to_control"] is None


def test_neighbourhoods_leave_out_the_first_chunk():
    chunks = list(range(2000))
    assert (reach(10), reach(100), reach(1000)) == (2, 10, 25)
    assert list(near(chunks, 10)) == [8, 9, 10, 11, 12] and near(chunks, 1)[0] == 1
    assert len(near(chunks, 1000)) == 51
