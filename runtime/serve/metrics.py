"""What Prometheus is told of the engine. Fed with the worker's events as they come; the HTTP counts are the server's own.

    metrics = Metrics()
    metrics.submitted("v1")            # when a job is sent to the worker
    metrics.seen(event)                # every event of the link, "gone" included
    metrics.render()                   # the text of /metrics

Each instance has a registry of its own, so two servers in one process do not mix. Counters are sums over this server's
life; they go on counting when a worker is replaced.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from runtime.serve.backend import Message

PREFIX = "stream_t1"
PACE_SECONDS = 10.0  # over which frames per second are counted
STAGE_BUCKETS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60)  # fmt: skip
WAIT_BUCKETS = (.05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)  # fmt: skip
STATES = ("queued", "running", "paused")
OUTCOMES = ("done", "failed", "cancelled")
ROUTES = ("discard", "ema", "append")


@dataclass(slots=True)
class _Timing:
    """When things happened to a job that is not finished."""

    submitted: float
    turns: dict[int, float] = field(default_factory=dict)  # chunks that are made and not settled
    settled: bool = False


class Metrics:
    """Counts, gauges and histograms of one server. Not thread-safe by intent: feed it in the event loop."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._jobs: dict[str, _Timing] = {}
        self._frames: deque[tuple[float, int]] = deque()
        self._gauges()
        self._counts()
        self._times()

    def submitted(self, job: str) -> None:
        """A job was sent to the worker."""
        self._jobs[job] = _Timing(self._clock())

    def seen(self, event: Message) -> None:
        """Take note of an event of the worker; one that is not understood here is nobody's loss."""
        take = self._takers.get(event.get("event", ""))
        if take is not None:
            take(event)

    def render(self) -> bytes:
        """The registry in Prometheus' text format; ``content_type`` says which."""
        self._fps.set(self._pace())
        return generate_latest(self.registry)

    def _gauges(self) -> None:
        gauge = self._gauge
        self._states = gauge("jobs", "Jobs in the worker by state.", "state")
        self._rows = gauge("batch_rows", "Candidates in the newest turn's batch.")
        self._fill = gauge(
            "batch_fill_ratio",
            "Newest turn's candidates, as a share of the most that a turn may have.",
        )
        self._blocks = gauge("kv_blocks", "KV blocks of the pool by state.", "state")
        self._fps = gauge("frames_per_second", f"Settled frames a second, last {PACE_SECONDS:g} s.")
        self._up = gauge("worker_up", "1 while a worker is ready.")
        self._warm = gauge("worker_warm_up_seconds", "What the newest worker's first chunk took.")
        for state in STATES:
            self._states.labels(state)
        for state in ("used", "free"):
            self._blocks.labels(state)

    def _counts(self) -> None:
        count = self._count
        self._ended = count("jobs_ended", "Jobs that ended, by outcome.", "outcome")
        self._degraded = count("jobs_degraded", "Jobs done although a reward failed on the way.")
        self._failures = count("reward_failures", "Reward calls that raised, were late or no use.")
        self._settled = count("chunks_settled", "Chunks that became part of a video.")
        self._shown = count("frames", "Frames that became part of a video.")
        self._drawn = count("candidates", "Candidates drawn and judged.")
        self._routes = count("routes", "Routes of settled chunks.", "route")
        self._saved = count("snapshots", "Snapshots written.")
        self._switched = count("prompt_switches", "Prompts changed in mid-video.")
        self._refused = count("refused_commands", "Commands that the worker refused.")
        self._deaths = count("worker_deaths", "Workers that ended without being asked to.")
        for outcome in OUTCOMES:
            self._ended.labels(outcome)
        for route in ROUTES:
            self._routes.labels(route)

    def _times(self) -> None:
        self._stages = Histogram(
            f"{PREFIX}_chunk_stage_seconds",
            "Time of one stage of one turn of the engine, of its whole batch.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self._turns = self._histogram(
            "chunk_seconds", "All stages of one turn of the engine.", STAGE_BUCKETS
        )
        self._first = self._histogram(
            "first_chunk_seconds", "From submission to a video's first settled chunk.", WAIT_BUCKETS
        )
        self._delay = self._histogram(
            "settle_delay_seconds", "From a chunk's turn to the turn that settles it.", WAIT_BUCKETS
        )

    @property
    def _takers(self) -> dict[str, Callable[[Message], None]]:
        return {
            "ready": self._ready,
            "stats": self._stats,
            "turn": self._turn,
            "settled": self._settle,
            "saved": lambda event: self._saved.inc(),
            "switched": lambda event: self._switched.inc(),
            "refused": lambda event: self._refused.inc(),
            "done": self._end,
            "failed": self._end,
            "cancelled": self._end,
            "gone": self._gone,
        }

    def _ready(self, event: Message) -> None:
        self._up.set(1)
        self._warm.set(event["warm_ms"] / 1e3)

    def _stats(self, event: Message) -> None:
        self._states.labels("queued").set(event["queued"])
        self._states.labels("running").set(event["running"] - event["paused"])  # told together
        self._states.labels("paused").set(event["paused"])
        used, blocks = event["blocks_used"], event["blocks"]
        self._blocks.labels("used").set(used)
        self._blocks.labels("free").set(blocks - used)
        self._rows.set(event["batch_rows"])
        self._fill.set(event["batch_rows"] / event["batch_limit"])

    def _turn(self, event: Message) -> None:
        self._drawn.inc(len(event["candidates"]))
        self._failures.inc(len(event.get("incidents", ())))
        if event["stage_ms"]:  # told once for the whole batch
            for stage, spent_ms in event["stage_ms"].items():
                self._stages.labels(stage).observe(spent_ms / 1e3)
            self._turns.observe(sum(event["stage_ms"].values()) / 1e3)
        if job := self._jobs.get(event["job"]):
            job.turns[event["index"]] = self._clock()

    def _settle(self, event: Message) -> None:
        now = self._clock()
        self._settled.inc()
        self._shown.inc(event["frames"])
        self._routes.labels(event["route"]).inc()
        self._frames.append((now, event["frames"]))
        self._forget_frames(now)
        if job := self._jobs.get(event["job"]):
            if not job.settled:
                self._first.observe(now - job.submitted)
                job.settled = True
            made = job.turns.pop(event["index"], None)
            if made is not None:
                self._delay.observe(now - made)

    def _end(self, event: Message) -> None:
        self._ended.labels(event["event"]).inc()
        if event.get("degraded"):
            self._degraded.inc()
        self._jobs.pop(event["job"], None)

    def _gone(self, event: Message) -> None:
        """Nothing runs any more, and what did has failed."""
        self._deaths.inc()
        self._up.set(0)
        self._ended.labels("failed").inc(len(self._jobs))
        self._jobs.clear()
        for gauge in (self._states.labels(state) for state in STATES):
            gauge.set(0)
        self._blocks.labels("used").set(0)
        self._rows.set(0)
        self._fill.set(0)

    def _pace(self) -> float:
        self._forget_frames(self._clock())
        return sum(frames for _, frames in self._frames) / PACE_SECONDS

    def _forget_frames(self, now: float) -> None:
        while self._frames and self._frames[0][0] <= now - PACE_SECONDS:
            self._frames.popleft()

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _count(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Any) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, buckets=buckets, registry=self.registry)
