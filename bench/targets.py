"""What the line should reach on an H100, each target with the rule that finds its figure in a folder of results.

This is the one place of these numbers. A figure taken on another GPU is shown and not judged; a figure that no result
holds is "not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from runtime.bench.report_result import Result

GPU = "H100"
FULL, REALTIME = "wan-1.3b", "realtime"
Runs = Sequence[Result]
Found = tuple[float, Result] | None  # a figure and the result that holds it


@dataclass(frozen=True, slots=True)
class Target:
    """One figure to reach: ``most`` or ``least`` bounds it, ``below`` excludes the bound itself."""

    name: str
    unit: str
    find: Callable[[Runs], Found]
    most: float | None = None
    least: float | None = None
    below: bool = False
    any_device: bool = False  # a count that no device changes

    @property
    def bound(self) -> str:
        if self.least is not None:
            return f"at least {self.least:g} {self.unit}".rstrip()
        return f"{'under' if self.below else 'at most'} {self.most:g} {self.unit}".rstrip()

    def verdict(self, runs: Runs) -> tuple[float | None, str]:
        """The measured figure, or None, and "met", "missed", "not measured" or where it was taken instead."""
        found = self.find(runs)
        if found is None:
            return None, "not measured"
        value, result = found
        if not self.any_device and GPU not in result.device:
            return value, f"not judged: measured on {result.device}"
        if self.least is not None:
            return value, "met" if value >= self.least else "missed"
        assert self.most is not None
        met = value < self.most if self.below else value <= self.most
        return value, "met" if met else "missed"


def candidates_of(result: Result) -> int | None:
    """K x M, the candidates that are finished at each chunk."""
    if result.text("settings", "search", "policy") == "single":
        return 1
    counts = [result.number("settings", "search", key) for key in ("histories", "expansions")]
    return int(counts[0] * counts[1]) if counts[0] and counts[1] else None


def runs_of(runs: Runs, preset: str, candidates: int) -> list[Result]:
    """The results of ``preset`` with so many candidates, without 8-bit products that the preset does not name."""
    return [
        run
        for run in runs
        if run.text("environment", "preset") == preset
        and candidates_of(run) == candidates
        and (preset != FULL or run.text("settings", "run", "linears") in (None, "dense"))
    ]


def dit_ms(runs: Runs) -> Found:
    """Four denoising passes and the clean pass of one candidate, over a context that is full in most chunks.

    The clean pass is the stage of that name, else the memory stage that holds it and a little more.
    """
    for run in runs_of(runs, FULL, 1):
        clean = "clean" if "clean" in run.names("stages") else "memory"
        times = [run.number("stages", stage, "median_ms") for stage in ("denoise", clean)]
        if times[0] is not None and times[1] is not None:
            return times[0] + times[1], run
    return None


def chunk_seconds(runs: Runs) -> Found:
    return _first((r, r.chunk_ms and r.chunk_ms / 1e3) for r in runs_of(runs, FULL, 4))


def speedup(runs: Runs) -> Found:
    return _first((r, r.number("speedup", "released")) for r in runs_of(runs, FULL, 4))


def realtime_fps(runs: Runs) -> Found:
    return _first((r, r.number("pixel_fps")) for r in runs_of(runs, REALTIME, 4))


def host_ms(runs: Runs) -> Found:
    dists = ((r, r.dist("host_ms")) for r in runs_of(runs, FULL, 4))
    return _first((r, d.median if d else None) for r, d in dists)


def blocks_per_candidate(runs: Runs) -> Found:
    """KV blocks that one more candidate adds, from two results of one preset that differ in M alone."""
    for first in runs:
        for second in runs:
            same = all(
                first.text(*path) == second.text(*path)
                for path in (
                    ("environment", "preset"),
                    ("settings", "search", "histories"),
                    ("settings", "search", "policy"),
                )
            )
            more = [r.number("settings", "search", "expansions") for r in (first, second)]
            held = [_blocks(r) for r in (first, second)]
            histories = first.number("settings", "search", "histories")
            if not (same and histories and more[0] and more[1] and more[0] < more[1]):
                continue
            if held[0] is not None and held[1] is not None:
                return (held[1] - held[0]) / ((more[1] - more[0]) * histories), second
    return None


def _blocks(result: Result) -> float | None:
    held, block = (result.number("memory", key) for key in ("kv_bytes", "block_bytes"))
    return held / block if held is not None and block else None


def _first(pairs: Iterable[tuple[Result, float | None]]) -> Found:
    return next(((value, run) for run, value in pairs if value is not None), None)


TARGETS = (
    Target("DiT, one candidate, five passes, 12 frames of context", "ms", dit_ms, most=256),
    Target("whole chunk, K = M = 2", "s", chunk_seconds, most=2.2),
    Target("speed-up over the released schedule, K = M = 2", "x", speedup, least=8),
    Target("realtime preset, four candidates, pixel FPS", "FPS", realtime_fps, least=16),
    Target(
        "KV memory of one more candidate (a block is 0.86 GB at full size)",
        "blocks",
        blocks_per_candidate,
        most=1,
        any_device=True,
    ),
    Target("host time to issue a chunk, K = M = 2", "ms", host_ms, most=3, below=True),
)
