"""Timed videos: what is in a chunk's time, what is in a stage, and what several prompts in one batch do to both."""

import importlib.util
import time

import pytest
import torch

from runtime.bench import measure
from runtime.bench.clock import Ceiling
from runtime.bench.cost import ChunkWork, Cost
from runtime.bench.measure import ChunkTime, Enough, VideoTime, make_video
from runtime.bench.numbers import dist, percentile
from runtime.bench.timing import Timing, least_ms, speedup
from runtime.telemetry import Span
from tests.fake_engine import FakeEngine
from tests.timed_engine import NAP, Sink, TimedEngine, fake_time

__all__ = ["fake_time"]  # a fixture


@pytest.fixture(autouse=True)
def slow_writers(monkeypatch, fake_time):
    Sink.opened = []
    monkeypatch.setattr(measure, "open_writer", lambda path, engine: Sink())


def test_a_video_is_timed_from_the_call_to_the_closed_file():
    began = time.perf_counter()
    video = make_video(TimedEngine(), ["a star"])
    outside = time.perf_counter() - began
    assert video.frames == 9 + 3 * 12 == Sink.opened[0].frames and Sink.opened[0].closed
    assert 4 * NAP + 5 * NAP / 2 <= video.seconds <= outside
    assert video.write_ms >= 5 * NAP / 2 * 1e3  # four chunks and the closing
    assert [chunk.work.index for chunk in video.chunks] == [0, 1, 2, 3]
    assert all(chunk.wall_ms >= NAP * 1e3 for chunk in video.chunks)
    assert sum(chunk.wall_ms for chunk in video.chunks) <= video.seconds * 1e3
    assert video.first_shown_ms >= video.chunks[0].wall_ms


def test_a_settled_chunk_knows_how_many_were_made_after_it():
    events, made = [], []

    class Late(TimedEngine):
        def stream(self, prompt, *, watch=None):
            for event in super().stream(prompt, watch=watch):
                events.append(event.index)
                made.append(len(seen))
                yield event

    seen: list[int] = []
    video = make_video(Late(), ["a star"], after=seen.append)
    assert video.settle_delays == tuple(m - 1 - e for m, e in zip(made, events, strict=True))
    assert len(video.settle_delays) == 4 and max(video.settle_delays) >= 1


def test_a_warm_up_ends_after_so_many_chunks_and_closes_everything():
    engine = TimedEngine(chunks=50)
    video = make_video(engine, ["a star"], most=2)
    assert len(video.chunks) == 2 and Sink.opened[0].closed and engine.closed


def test_what_happens_between_chunks_on_request_is_in_no_chunks_time():
    def after(index):
        time.sleep(5 * NAP)
        if index == 2:
            raise Enough

    video = make_video(TimedEngine(), ["a star"], after=after)
    assert len(video.chunks) == 3 and all(chunk.wall_ms < 5 * NAP * 1e3 for chunk in video.chunks)


def test_prompts_of_one_batch_share_their_chunks_time_and_have_files_of_their_own():
    video = make_video(TimedEngine(), ["a star", "a ring", "a cross"])
    assert len(video.chunks) == 4 and video.frames == 3 * 45
    assert [sink.frames for sink in Sink.opened] == [45] * 3
    assert len(video.chunks[1].work.contexts) == 3 * 4  # K = M = 2, each
    assert len(set(video.chunks[1].work.kept)) == len(video.chunks[1].work.kept)
    assert video.chunks[1].stage_ms["denoise"] >= NAP * 1e3
    assert len(video.settle_delays) == 12


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV")
def test_frames_are_encoded_where_that_is_possible(monkeypatch, tmp_path):
    monkeypatch.undo()
    engine = FakeEngine()
    with measure.open_writer(tmp_path / "x.mp4", engine) as writer:
        writer.add(torch.rand(9, 3, 32, 32))
    assert (tmp_path / "x.mp4").stat().st_size > 100


def test_percentiles_are_values_that_were_seen():
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, p) for p in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert dist([3.0, 1.0, 2.0]) == {
        **{"median": 2.0, "p50": 2.0, "p95": 3.0, "p99": 3.0},
        **{"min": 1.0, "max": 3.0, "count": 3},
    }
    assert dist([])["median"] is None and dist([])["count"] == 0


def chunk(index, wall, spans, host=0.5):
    work = ChunkWork(index, (1, 2), (0,), 12, False)
    times: dict[str, float] = {}
    for stage, start, end in spans:
        times[stage] = times.get(stage, 0.0) + end - start
    return ChunkTime(wall, times, tuple(Span(*span, "host") for span in spans), host, work)


def video(seconds, *chunks, frames=24, write=0.0) -> VideoTime:
    return VideoTime(seconds, frames, chunks, write, chunks[0].wall_ms, (0,) * len(chunks))


def timing(*videos) -> Timing:
    """With a price for one stage: two GFLOP and a MB a chunk."""
    made = Timing(list(videos))
    made.prices = {c.work: {"denoise": Cost(2_000_000_000, 1_000_000)} for c in made.chunks}
    return made


FIRST = chunk(0, 30.0, [("text", 0.0, 5.0), ("denoise", 5.0, 25.0)])
LATER = chunk(1, 14.0, [("denoise", 0.0, 10.0), ("decode", 4.0, 12.0)])


def test_time_is_shared_out_without_losing_any():
    stages = timing(video(0.050, FIRST, LATER, write=4.0)).stages()
    assert list(stages) == ["text", "denoise", "decode", "write", "between"]
    assert stages["write"]["median_ms"] == 2.0
    # 50 ms, of which 25 and 12 (overlapping stages count once) were covered and 4 written
    assert stages["between"]["median_ms"] == pytest.approx((50 - 25 - 12 - 4) / 2)
    assert sum(row["share"] for row in stages.values()) == pytest.approx(1.0)
    assert (stages["denoise"]["median_ms"], stages["denoise"]["p99_ms"]) == (15.0, 20.0)


def test_a_stage_is_held_against_the_machine():
    ceiling = Ceiling(copy_gb_per_s=10.0, matmul_tflop_per_s=0.5)
    row = timing(video(0.050, FIRST, LATER)).stages(ceiling)["denoise"]
    assert row["flops"] == 2e9 and row["bytes"] == 1e6
    assert row["tflop_per_s"] == pytest.approx(4e9 / 30e-3 / 1e12)
    assert row["gb_per_s"] == pytest.approx(2e6 / 30e-3 / 1e9)
    assert row["roofline_share"] == pytest.approx(2 * 4.0 / 30.0)  # 4 ms is the least for 2 GFLOP
    free = timing(video(0.050, FIRST, LATER)).stages()["text"]
    assert free["flops"] is None and free["roofline_share"] is None


def test_the_least_time_is_that_of_what_takes_longer():
    ceiling = Ceiling(copy_gb_per_s=10.0, matmul_tflop_per_s=0.5)
    assert least_ms(Cost(10**9, 10**6), ceiling) == pytest.approx(2.0)
    assert least_ms(Cost(10**9, 10**8), ceiling) == pytest.approx(10.0)
    narrow = Ceiling(10.0, 0.5, narrow_tflop_per_s=1.0)
    assert least_ms(Cost(10**9, 0, linears=10**9), narrow) == pytest.approx(1.0)
    assert least_ms(Cost(10**9, 0, linears=5 * 10**8), narrow) == pytest.approx(1.5)


def test_latencies_keep_the_first_chunk_apart():
    latency = timing(video(0.050, FIRST, LATER, LATER)).latency()
    assert latency["first_chunk_ms"]["max"] == 30.0 and latency["inter_chunk_ms"]["count"] == 2
    assert latency["inter_chunk_ms"]["max"] == 14.0 and latency["video_seconds"]["median"] == 0.05


def test_the_time_line_is_of_the_typical_chunk():
    slow = chunk(2, 99.0, [("denoise", 0.0, 90.0)])
    index, spans = timing(video(0.2, FIRST, slow, LATER, LATER)).timeline()
    assert index == 1 and spans[1] == {
        **{"stage": "decode", "start_ms": 4.0, "end_ms": 12.0, "stream": "host"}
    }


def test_a_ratio_is_of_medians_and_its_spread_of_neighbours():
    ours = timing(*(video(s, LATER) for s in (1.0, 2.0, 4.0, 50.0)))
    theirs = timing(*(video(s, LATER) for s in (3.0, 4.0, 16.0)))
    ratio, spread = speedup(ours, theirs)  # the fourth of ours had no neighbour
    assert ratio == pytest.approx(4.0 / 2.0) and spread == pytest.approx((2.0, 4.0))


def test_a_baseline_that_made_more_frames_is_not_slower_for_it():
    ratio, _ = speedup(timing(video(1.0, LATER)), timing(video(2.0, LATER, frames=48)))
    assert ratio == pytest.approx(1.0)
