"""Stage clocks: how long each room of the line took for the chunk at hand, and when it ran.

    with clock.stage("decode"):      around a room
        ...
    stage_ms = clock.take()          once a chunk; ``clock.spans`` then says when each stage began and ended

On the CPU a stage is wall time. On a GPU the host only issues work and runs ahead of it. A clock that is ``exact``
records one event where a stage begins and one where it ends, on the stream that is current there, and waits for the last
of them in ``take``; inside a chunk it never waits. One that is not exact never waits at all: its times are the host's.
Open a stage inside the stream that it is about.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

STAGES = (
    "text",
    "noise",
    "denoise",
    "decode",
    "image reward",
    "video reward",
    "select",
    "memory",
    "emit",
)


@dataclass(frozen=True, slots=True)
class Span:
    """One stage once: milliseconds since the chunk's first stage began, on the host or on a stream of the GPU."""

    stage: str
    start_ms: float
    end_ms: float
    stream: str  # "host", or "stream 0", "stream 1" in the order of their first use in the chunk


@dataclass(frozen=True, slots=True)
class _Mark:
    """A stage's begin or end: when the host was there, and the event that says when the GPU was."""

    host: float
    stream: int = 0
    event: torch.cuda.Event | None = None


class StageClock:
    """Times stages. ``exact`` may be changed between chunks; benchmarks set it, videos do without."""

    def __init__(self, device: torch.device, exact: bool = False) -> None:
        self.device = device
        self.exact = exact
        self.spans: tuple[Span, ...] = ()  # of what the last ``take`` took, in the order they ended
        self.host_ms: dict[str, float] = {}  # of the host inside them: what it needs to issue each
        self._passed: list[tuple[str, _Mark, _Mark]] = []
        self._events: list[torch.cuda.Event] = []  # that nobody waits for any more

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Everything inside is ``name``'s. It also is a range called so for profilers (torch's, and Nsight by NVTX)."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.nvtx.range_push(name)
        with torch.profiler.record_function(name):
            begin = self._mark()
            try:
                yield
            finally:
                self._passed.append((name, begin, self._mark()))
                if cuda:
                    torch.cuda.nvtx.range_pop()

    def take(self) -> dict[str, float]:
        """Milliseconds per stage since the last call; a stage that ran several times is summed."""
        passed, self._passed = self._passed, []
        self.host_ms = _summed((name, (end.host - begin.host) * 1e3) for name, begin, end in passed)
        self.spans = _spans(passed)
        for _, begin, end in passed:
            self._events += [mark.event for mark in (begin, end) if mark.event is not None]
        return _summed((span.stage, span.end_ms - span.start_ms) for span in self.spans)

    def _mark(self) -> _Mark:
        now = time.perf_counter()
        if not self.exact or self.device.type != "cuda":
            return _Mark(now)
        stream = torch.cuda.current_stream(self.device)
        event = self._events.pop() if self._events else torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return _Mark(now, stream.cuda_stream, event)


def _spans(passed: list[tuple[str, _Mark, _Mark]]) -> tuple[Span, ...]:
    """When each stage ran; waits for the GPU where stages have events."""
    if not passed:
        return ()
    for _, _, end in passed:
        if end.event is not None:
            end.event.synchronize()
    origin = passed[0][1]
    streams: dict[int, str] = {}
    spans = []
    for name, begin, end in passed:
        stream = "host"
        if begin.event is not None:
            stream = streams.setdefault(begin.stream, f"stream {len(streams)}")
        spans.append(Span(name, _between(origin, begin), _between(origin, end), stream))
    return tuple(spans)


def _summed(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    spent: dict[str, float] = {}
    for name, ms in pairs:
        spent[name] = spent.get(name, 0.0) + ms
    return spent


def _between(first: _Mark, then: _Mark) -> float:
    """Milliseconds from one mark to another: the GPU's where both have events."""
    if first.event is not None and then.event is not None:
        return first.event.elapsed_time(then.event)
    return (then.host - first.host) * 1e3
