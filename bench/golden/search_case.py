"""Replays searches and plain streaming: every candidate, decision, checkpointed cache and final video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from runtime.bench.golden.compare import Report, stored, unrotated
from runtime.bench.golden.parts import Case, build_engine
from runtime.engine import Engine
from runtime.settings import CHUNK_FRAMES
from runtime.types import Candidate, ChunkRecord, Memory, Route, Trajectory


def replay(case: Case, dtype: torch.dtype, ops: str = "auto") -> Report:
    """Run the engine over the case's whole video and compare as it goes."""
    engine, report = build_engine(case, dtype, ops), Report(case.name, dtype)
    watcher = (
        SearchWatcher(case, engine, report)
        if case.kind == "search"
        else PlainWatcher(case, engine, report)
    )
    events = list(engine.stream("recorded", watch=watcher))
    latents = torch.cat([event.latents for event in events])[None]
    report.decision("chunks", len(events), case.chunks)
    watcher.finish(latents)
    engine.pool.check([])
    return report


class PlainWatcher:
    """Plain LongLive: caches with rotated keys at some chunks, and the final latents."""

    def __init__(self, case: Case, engine: Engine, report: Report) -> None:
        self.case, self.engine, self.report = case, engine, report

    def __call__(self, record: ChunkRecord) -> None:
        slots = record.survivors[0].memory.slots
        for layer in range(self.case.config["num_layers"]):
            prefix = f"ckpt/block{record.index:02d}/layer{layer}"
            if f"{prefix}/k" in self.case.golden:
                keys, values = stored(self.engine, slots, layer)
                self.report.kv(f"{prefix}/k", keys[None], self.case.golden[f"{prefix}/k"])
                self.report.kv(f"{prefix}/v", values[None], self.case.golden[f"{prefix}/v"])

    def finish(self, latents: torch.Tensor) -> None:
        self.report.tensor("final/latents", latents, self.case.golden["final/latents"])


class SearchWatcher:
    """Searches: the table of candidates in golden.json, tensors by name in golden.safetensors."""

    def __init__(self, case: Case, engine: Engine, report: Report) -> None:
        self.case, self.engine, self.report = case, engine, report
        self.expected = {(c["block"], c["cand"]): c for c in case.facts["candidates"]}
        self.before: tuple[Trajectory, ...] = ()  # survivors of the previous chunk
        self.names: list[str] = []  # and what they were called
        self.videos: list[torch.Tensor] = []

    def __call__(self, record: ChunkRecord) -> None:
        n = record.index
        self.report.decision(
            f"block {n}: candidates",
            len(record.candidates),
            sum(block == n for block, _ in self.expected),
        )
        for candidate in record.candidates:
            expected = self.expected.get((n, candidate.row))
            if expected is not None:
                self._candidate(candidate, expected, n)
        names = [f"block{n:02d}/cand{row}" for row in record.kept]
        self.report.decision(
            f"block {n}: survivors", names, self.case.facts["blocks"][n]["survivors"]
        )
        for rank, survivor in enumerate(record.survivors):
            self._checkpoint(survivor.memory, f"ckpt/block{n:02d}/beam{rank}")
        self._follow(record)
        self.before, self.names = record.survivors, names

    def finish(self, latents: torch.Tensor) -> None:
        """The survivors' whole videos, and that the engine shows the one that was chosen."""
        for rank, video in enumerate(self.videos):
            self.report.tensor(
                f"final/beam{rank}", video[None], self.case.golden[f"final/beam{rank}/latents"]
            )
        choice = self.case.facts.get("final_choice", 0)
        self.report.tensor("shown video", latents, self.case.golden[f"final/beam{choice}/latents"])

    def _follow(self, record: ChunkRecord) -> None:
        newest = [record.candidates[row] for row in record.kept]
        past = [self.videos[c.branch.rank] if self.videos else c.latents[:0] for c in newest]
        self.videos = [
            torch.cat(pair) for pair in zip(past, (c.latents for c in newest), strict=True)
        ]

    def _candidate(self, candidate: Candidate, expected: Mapping[str, Any], n: int) -> None:
        report, name, scores = self.report, expected["name"], candidate.scores
        for key, value in (("noise", candidate.noise), ("x0", candidate.latents)):
            if f"{name}/{key}" in self.case.golden:
                report.tensor(f"{name}/{key}", value[None], self.case.golden[f"{name}/{key}"])
        for key, got in (("short", scores.short), ("long", scores.long), ("score", scores.fused)):
            report.score(f"{name} {key}", got, expected[key])
        report.decision(f"{name} seed", candidate.branch.seed, expected["seed"])
        report.decision(
            f"{name} parent", self.names[candidate.branch.rank] if n else None, expected["parent"]
        )
        if n:
            gates = (candidate.route is Route.EMA, candidate.route is Route.APPEND)
            report.decision(
                f"{name} gates", gates, (bool(expected["flag_ema"]), bool(expected["flag_append"]))
            )
            report.score(f"{name} gain", scores.quality_gain, expected["short_increase"])
            report.score(f"{name} drop", scores.long_drop, expected["long_drop"])
        self._layout(candidate.branch.parent.memory, candidate.branch.rank, expected, n)

    def _layout(self, memory: Memory, rank: int, expected: Mapping[str, Any], n: int) -> None:
        """The context this candidate was drawn over: which chunk had left, by which route, and the sinks after it."""
        name, settings = expected["name"], self.engine.settings.memory
        left, happened = None, None
        if self.before and len(self.before[rank].memory.window) == settings.window_chunks:
            full = self.before[rank].memory
            left = full.window[0].start_frame
            happened = full.window[0].route.value
            if happened == "append" and len(full.sinks) == settings.max_sink_chunks:
                happened = "ema"
        self.report.decision(f"{name} evicted frame", left, expected["evicted_start_frame"])
        self.report.decision(f"{name} route", happened, expected["route"])
        if n >= settings.sink_chunks:
            frames = len(memory.sinks) * CHUNK_FRAMES
            self.report.decision(f"{name} sink frames", frames, expected["current_sink_size"])
            appended = [slot.start_frame for slot in memory.sinks[settings.sink_chunks :]]
            self.report.decision(
                f"{name} appended sinks", appended, list(expected["append_sink_start_frames"])
            )

    def _checkpoint(self, memory: Memory, prefix: str) -> None:
        for layer in range(self.case.config["num_layers"]):
            for part, slots in (("sink", memory.sinks), ("window", memory.window)):
                name = f"{prefix}/layer{layer}/{part}"
                if f"{name}_k" not in self.case.golden:
                    continue
                keys, values = stored(self.engine, slots, layer)
                keys = unrotated(self.engine, keys, [slot.start_frame for slot in slots])
                self.report.kv(f"{name}_k", keys[None], self.case.golden[f"{name}_k"])
                self.report.kv(f"{name}_v", values[None], self.case.golden[f"{name}_v"])
