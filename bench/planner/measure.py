"""Measures stage costs of this machine at some sizes, and holds the planner against sizes that it did not see.

One thread per process, so that two processes on two cores are what two GPUs would be. What counts is the processor's time, which on
a machine of its own is a single thread's wall time; on one that others use, wall time tells more of them than of us. It
leaves out what a rank waits for others. Wall times are kept beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from runtime.bench.environment import commit, cpu_name, load
from runtime.bench.planner.chunk import Layout, Link, chunk_time
from runtime.bench.planner.machine import LEFT_OUT, Machine, from_costs
from runtime.costs import KEPT, Costs, Work

FORMAT = "stream-t1-planner"
LEARNT = ((1, 1), (1, 2), (2, 2), (2, 4))  # K, M that the costs are fitted to
HELD_OUT = ((2, 3), (4, 2))  # and those that they have to foretell
BETWEEN = "between"  # wall time in which no stage ran
PROMPT = "a red circle moving right quickly on a navy background"
PROCESSES = 2
RANKED = ((2, 2), (4, 2))  # K, M over two ranks
RANKS_TIMEOUT_S = 600.0
CPU_LINK = Link(gb_per_s=1.0, gather_ms=0.5)  # guesses: gloo over loopback
MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Turn:
    """One chunk. Stage times are clocked on the wall; of their sum the processor's share is taken."""

    wall_ms: float
    cpu_ms: float
    stage_ms: dict[str, float]
    frames: int

    @property
    def stages(self) -> dict[str, float]:
        """Processor time per stage, and in between."""
        share = self.cpu_ms / self.wall_ms
        stages = {name: ms * share for name, ms in self.stage_ms.items()}
        return {**stages, BETWEEN: max(0.0, self.cpu_ms - sum(stages.values()))}


@dataclass(frozen=True, slots=True)
class Sample:
    """Chunks of one size: medians, in milliseconds, of all chunks with a full window but for the last."""

    histories: int
    expansions: int
    chunks: int
    cpu_ms: float
    wall_ms: float
    stage_ms: dict[str, float]
    frames: int

    @property
    def work(self) -> Work:
        rows = self.histories * self.expansions
        return Work(rows, self.histories, rows * self.frames)


def sample(preset: str, sizes: Sequence[tuple[int, int]], rounds: int) -> list[Sample]:
    """Time every size in this process, on one thread, in turns."""
    import torch

    from runtime.engine import Engine
    from runtime.parts import Parts
    from runtime.presets import preset as settings_of

    torch.set_num_threads(1)
    base = settings_of(preset)
    engines, parts = {}, Parts.load(base)
    for k, m in sizes:
        changes = {"search.histories": k, "search.expansions": m}
        engines[k, m] = Engine(base.with_changes(changes), parts)
    turns: dict[tuple[int, int], list[Turn]] = {size: [] for size in engines}
    for _ in range(rounds):
        for size, engine in engines.items():
            engine.clock.exact = True
            turns[size] += video(engine, engine.settings)
    return [_sample(size, seen) for size, seen in turns.items()]


def video(engine: Any, settings: Any, watched: bool = True) -> list[Turn]:
    """The chunks of one video that count; those before fill the window, and warm everything up."""
    first = settings.memory.window_chunks - 1
    turns: list[Turn] = []
    marks = [time.perf_counter(), time.process_time()]

    def watch(record: Any) -> None:
        now = [time.perf_counter(), time.process_time()]
        wall, cpu = ((b - a) * 1e3 for a, b in zip(marks, now, strict=True))
        marks[:] = now
        if first <= record.index < record.chunks - 1:
            stages = {n: ms for n, ms in record.stage_ms.items() if n not in LEFT_OUT}
            turns.append(Turn(wall, cpu, stages, record.frames.shape[1]))

    for _ in engine.stream(PROMPT, watch=watch if watched else None):
        pass
    return turns


def _sample(size: tuple[int, int], turns: Sequence[Turn]) -> Sample:
    names = sorted({name for turn in turns for name in turn.stages})
    stages = {name: median(turn.stages.get(name, 0.0) for turn in turns) for name in names}
    cpu, wall = median(turn.cpu_ms for turn in turns), median(turn.wall_ms for turn in turns)
    return Sample(*size, len(turns), cpu, wall, stages, turns[0].frames)


def fitted(samples: Sequence[Sample], name: str, source: str, sizes: Mapping[str, Any]) -> Machine:
    """The machine whose stages lie on lines through these samples."""
    costs = Costs()
    for one in samples:
        for _ in range(KEPT):  # one figure for many chunks, not a single turn
            costs.observe(one.work, one.stage_ms)
    return from_costs(costs, name, source, sizes)


def take(preset: str, rounds: int) -> dict[str, Any]:
    """Measure, fit, foretell, compare. Everything as plain values."""
    busy = load()
    samples = sample(preset, (*LEARNT, *HELD_OUT), rounds)
    sizes = sizes_of(preset)
    place = f"{cpu_name()}, one thread, {preset}"
    machine = fitted(
        [s for s in samples if (s.histories, s.expansions) in LEARNT],
        place,
        f"measured: python -m runtime.bench.planner --measure, commit {commit()}",
        sizes,
    )
    rows = [_compared(machine, one) for one in samples]
    together = [together_ms(preset, count, rounds) for count in (1, PROCESSES)]
    return {
        "format": FORMAT,
        "name": machine.name,
        "source": machine.source,
        "load_before": busy,
        "sizes": sizes,
        "stages": {name: asdict(line) for name, line in machine.stages.items()},
        "samples": [asdict(one) for one in samples],
        "one_rank": rows,
        "processes_at_once": [
            {"processes": count, "chunk_ms": ms}
            for count, ms in zip((1, PROCESSES), together, strict=True)
        ],
        "two_ranks": two_ranks(machine, preset, rounds),
    }


def _compared(machine: Machine, one: Sample) -> dict[str, Any]:
    expected = chunk_time(machine, Layout(1, one.histories, one.expansions), CPU_LINK).total
    return {
        "histories": one.histories,
        "expansions": one.expansions,
        "seen": (one.histories, one.expansions) in LEARNT,
        "predicted_ms": expected,
        "measured_ms": one.cpu_ms,
        "error": expected / one.cpu_ms - 1,
    }


def two_ranks(machine: Machine, preset: str, rounds: int) -> list[dict[str, Any]]:
    """What two ranks should take, and what they took where this checkout can run them; else None."""
    took = ranked_ms(preset, rounds, RANKED)
    rows = []
    for k, m in RANKED:
        time = chunk_time(machine, Layout(2, k, m), CPU_LINK)
        row = {"histories": k, "expansions": m, "predicted_ms": time.total}
        rows.append({**row, "measured_ms": took.get((k, m))})
    return rows


def ranked_ms(
    preset: str, rounds: int, sizes: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """(K, M) -> milliseconds of a chunk on two ranks, {} without ``runtime.ranks``. RuntimeError when they fail."""
    if importlib.util.find_spec("runtime.ranks") is None:
        return {}
    return {(k, m): _ranked_ms(preset, rounds, f"{k}x{m}") for k, m in sizes}


def _ranked_ms(preset: str, rounds: int, size: str) -> float:
    """One size; ranks meet once per process."""
    start = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *start, "runtime.bench.planner.ranked", preset, str(rounds), size],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=RANKS_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"two ranks failed: {done.stderr.strip()[-500:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["cpu_ms"])


def sizes_of(preset: str) -> dict[str, Any]:
    """Bytes that ranks would exchange."""
    from runtime.engine import Engine
    from runtime.presets import preset as settings_of

    engine = Engine(settings_of(preset))
    generator, pool = engine.parts.generator, engine.pool
    block = pool.kv.nbytes // pool.blocks
    _, height, width = generator.latent_shape
    return {
        "block_bytes": float(block),
        "history_blocks": engine.settings.memory.max_blocks,
        "state_bytes": 0.0,
        "clip_bytes": float(12 * 3 * 8 * height * 8 * width * 4),
    }


def together_ms(preset: str, processes: int, rounds: int) -> float:
    """The chunk at K = M = 2 of so many independent processes that run at the same time."""
    code = [sys.executable, "-m", "runtime.bench.planner.measure", preset, str(rounds)]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(code, stdin=pipe, stdout=pipe) for _ in range(processes)]
    try:
        for one in running:
            if not one.stdout.readline():  # ready
                raise RuntimeError("a measuring process ended before it was ready")
        for one in running:
            one.stdin.write(b"go\n")
            one.stdin.flush()
        lines = [one.stdout.readline() for one in running]
        return max(float(line) for line in lines)
    finally:
        for one in running:
            one.kill()
            one.wait()
            one.stdin.close()
            one.stdout.close()


def is_ours(path: Path) -> bool:
    """Whether ``take`` wrote this file."""
    if path.stat().st_size > MAX_BYTES:
        return False
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(raw, dict) and raw.get("format") == FORMAT


def machine_from(path: Path) -> Machine:
    """The machine in a file that ``take`` wrote."""
    from runtime.bench.planner.machine import Line

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        lines = {name: Line(**line) for name, line in raw["stages"].items()}
        return Machine(raw["name"], raw["source"], lines, **raw["sizes"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: want a file of --measure --json: {error!r}") from None


def table(result: Mapping[str, Any]) -> str:
    """What was foretold and what was measured."""
    lines = [
        result["name"],
        "| K x M | predicted ms | measured ms | error | |",
        "|---|---:|---:|---:|---|",
    ]
    for row in result["one_rank"]:
        name = f"{row['histories']} x {row['expansions']}"
        kind = "fitted" if row["seen"] else "held out"
        lines.append(
            f"| {name} | {row['predicted_ms']:.1f} | {row['measured_ms']:.1f} | {100 * row['error']:+.1f} % | {kind} |"
        )
    for row in result["processes_at_once"]:
        lines.append(
            f"{row['processes']} process(es) at once, K = M = 2: {row['chunk_ms']:.1f} ms of processor a chunk each"
        )
    for row in result["two_ranks"]:
        got = row["measured_ms"]
        measured = "not measured" if got is None else f"measured {got:.1f} ms"
        lines.append(
            f"two ranks, K={row['histories']} M={row['expansions']}: predicted {row['predicted_ms']:.1f} ms, {measured}"
        )
    return "\n".join(lines)


def _child(preset: str, rounds: int) -> None:
    """Measure one size when told to, and say its time."""
    import torch

    torch.set_num_threads(1)
    print("ready", flush=True)
    sys.stdin.readline()
    (one,) = sample(preset, [(2, 2)], rounds)
    print(one.cpu_ms, flush=True)


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]))
