"""The stage clock: sums, spans and host time on the CPU; events instead of waiting on a GPU, rehearsed with fake ones."""

import time
from types import SimpleNamespace

import pytest
import torch

from runtime.telemetry import Span, StageClock

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class FakeGpu:
    """Time that passes only when told, events that are known only once they were waited for."""

    def __init__(self, monkeypatch):
        self.now, self.host, self.stream, self.waits, self.made = 0.0, 0.0, 7, 0, 0
        self.ranges = []
        monkeypatch.setattr(torch.cuda, "Event", self._event)
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=self.stream)
        )
        monkeypatch.setattr(torch.cuda.nvtx, "range_push", self.ranges.append)
        monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: self.ranges.append("pop"))
        monkeypatch.setattr(time, "perf_counter", lambda: self.host / 1e3)

    def work(self, stage_ms, issue_ms=1.0):
        self.now += stage_ms
        self.host += issue_ms

    def _event(self, enable_timing):
        assert enable_timing
        self.made += 1
        gpu = self

        class Event:
            def record(self, stream):
                assert stream.cuda_stream == gpu.stream
                self.at, self.known = gpu.now, False

            def synchronize(self):
                gpu.waits += 1
                self.known = True

            def elapsed_time(self, other):
                assert other.known or other is self or gpu.waits
                return other.at - self.at

        return Event()


def test_a_stage_that_runs_twice_is_summed_and_taking_starts_anew():
    clock = StageClock(CPU)
    for _ in range(2):
        with clock.stage("decode"):
            time.sleep(0.002)
    with clock.stage("select"):
        pass
    taken = clock.take()
    assert list(taken) == ["decode", "select"] and taken["decode"] >= 4.0 > taken["select"]
    assert clock.take() == {} and clock.spans == ()


def test_spans_say_when_each_stage_ran_and_the_host_time_is_their_sum():
    clock = StageClock(CPU)
    with clock.stage("noise"):
        time.sleep(0.001)
    time.sleep(0.003)
    with clock.stage("denoise"):
        time.sleep(0.001)
    taken = clock.take()
    noise, denoise = clock.spans
    assert (noise.stage, noise.start_ms, noise.stream) == ("noise", 0.0, "host")
    assert denoise.start_ms >= noise.end_ms + 3.0
    assert denoise.end_ms - denoise.start_ms == pytest.approx(taken["denoise"])
    assert clock.host_ms == pytest.approx(taken)


def test_a_stage_that_fails_is_still_counted():
    clock = StageClock(CPU)
    with pytest.raises(KeyError), clock.stage("decode"):
        raise KeyError
    assert "decode" in clock.take()


def test_an_exact_clock_has_the_gpus_times_and_waits_only_when_taken(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    clock = StageClock(CUDA, exact=True)
    with clock.stage("denoise"):
        gpu.work(50.0)
    gpu.stream = 9  # a reward on a stream of its own, at the same time
    with clock.stage("image reward"):
        gpu.work(20.0, issue_ms=3.0)
    assert gpu.waits == 0
    assert clock.take() == {"denoise": 50.0, "image reward": 20.0}
    assert gpu.waits == 2  # the end of every stage, once
    assert clock.spans == (
        Span("denoise", 0.0, 50.0, "stream 0"),
        Span("image reward", 50.0, 70.0, "stream 1"),
    )
    assert clock.host_ms == pytest.approx({"denoise": 1.0, "image reward": 3.0})
    assert gpu.ranges == ["denoise", "pop", "image reward", "pop"]


def test_events_are_used_again_for_the_next_chunk(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    clock = StageClock(CUDA, exact=True)
    for _ in range(3):
        with clock.stage("denoise"):
            gpu.work(1.0)
        assert clock.take() == {"denoise": 1.0}
    assert gpu.made == 2


def test_a_clock_that_is_not_exact_never_touches_the_gpu(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    clock = StageClock(CUDA)
    with clock.stage("denoise"):
        gpu.work(50.0, issue_ms=2.0)
    assert clock.take() == {"denoise": pytest.approx(2.0)} and gpu.made == gpu.waits == 0


def test_a_profiler_sees_the_stages():
    clock = StageClock(CPU)
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as taken,
        clock.stage("denoise"),
    ):
        torch.ones(3).sum()
    assert "denoise" in {event.key for event in taken.key_averages()}


@pytest.mark.gpu
def test_on_a_gpu_a_chunk_is_timed_without_a_synchronisation_inside():
    clock = StageClock(CUDA, exact=True)
    x = torch.randn(4096, 4096, device=CUDA)
    torch.mm(x, x)  # warm: cuBLAS may synchronise
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        began = time.perf_counter()
        with clock.stage("denoise"):
            for _ in range(20):
                torch.mm(x, x)
        with clock.stage("select"):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    taken = clock.take()
    waited_ms = (time.perf_counter() - began) * 1e3
    # 20 products of 137 GFLOP: no GPU does one in less than 0.05 ms, and the host issues all in far less time.
    assert 1.0 < taken["denoise"] <= waited_ms and taken["select"] < taken["denoise"]
    assert clock.host_ms["denoise"] < taken["denoise"]
    assert {span.stream for span in clock.spans} == {"stream 0"}
