"""The planner's tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.bench.planner.chunk import ChunkTime, Link
from runtime.bench.planner.machine import Machine
from runtime.bench.planner.queueing import Load, Outcome, percentile
from runtime.bench.planner.sizing import Sized


def head(machine: Machine, link: Link) -> str:
    stages = ", ".join(
        f"{name} {line.fixed:.1f} + {line.each:.2f} per {UNITS[line.grows_with]}"
        for name, line in machine.stages.items()
        if line.fixed + line.each >= 0.05
    )
    return (
        f"{machine.name}\n{machine.source}\nms: {stages}\n"
        f"between ranks (assumed): {link.gb_per_s:g} GB/s, {link.gather_ms:g} ms per exchange and doubling"
    )


UNITS = {"rows": "candidate", "kept": "history", "pictures": "picture"}


def chunk_table(columns: Sequence[Sequence[ChunkTime]], machine: Machine) -> str:
    """ms a chunk and pixel FPS: a line per number of ranks, a column per K x M."""
    names = [f"K={c[0].layout.histories} M={c[0].layout.expansions}" for c in columns]
    lines = ["| ranks | " + " | ".join(names) + " |", "|---:" * (len(names) + 1) + "|"]
    for cells in zip(*columns, strict=True):
        lines.append(f"| {cells[0].layout.ranks} | " + " | ".join(map(_cell, cells)) + " |")
    lines.append(
        f"ms per chunk (pixel FPS; 12 frames are shown in 750 ms at {machine.fps} FPS); *n: n ranks have nothing to do"
    )
    return "\n".join(lines)


def _cell(time: ChunkTime) -> str:
    idle = f" *{time.layout.idle}" if time.layout.idle else ""
    return f"{time.total:.0f} ({time.fps:.1f}){idle}"


def parts_table(times: Sequence[ChunkTime]) -> str:
    """Where the time of some layouts goes."""
    names = list(times[0].stages)
    heads = [*names, "scores", "clips", "moves", "sum"]
    lines = [
        "| ranks (rewards) K x M | " + " | ".join(heads) + " |",
        "|---" + "|---:" * len(heads) + "|",
    ]
    for time in times:
        layout = time.layout
        cells = [*time.stages.values(), time.gather, time.send_clips, time.moves, time.total]
        name = f"{layout.ranks} ({layout.reward_ranks}) {layout.histories} x {layout.expansions}"
        lines.append(f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in cells) + " |")
    return "\n".join(lines)


FLEET_HEAD = (
    "| GPUs | replicas | batch | busy | batch filled | first chunk p50 / p95 s | done p50 / p95 s | refused |\n"
    "|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def fleet_row(replicas: int, gpus_each: int, batch: int, outcome: Outcome) -> str:
    first = " / ".join(f"{percentile(outcome.first, share):.2f}" for share in (0.5, 0.95))
    done = " / ".join(f"{percentile(outcome.done, share):.2f}" for share in (0.5, 0.95))
    return (
        f"| {replicas * gpus_each} | {replicas} | {batch} | {100 * outcome.utilisation:.0f} % | "
        f"{100 * outcome.fill:.0f} % | {first} | {done} | {100 * outcome.refused_share:.2f} % |"
    )


def sized_row(sized: Sized, gpus_each: int) -> str:
    return fleet_row(sized.fleet.replicas, gpus_each, sized.fleet.batch, sized.outcome)


def load_line(load: Load, seconds: float) -> str:
    return (
        f"{load.rate:g} requests a second, each {seconds:g} s of video ({load.chunks} chunks), Poisson; "
        f"{load.seconds:g} s looked at after {load.warmup:.0f} s of warm-up, seed {load.seed}"
    )
