"""What a run has to make: which videos, in which batches, by which settings. Nothing heavy is loaded here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.bench.quality.methods import named
from runtime.bench.quality.prompts import FIRST_SEED
from runtime.bench.quality.row import Key, Row
from runtime.bench.quality.worlds import Wishes
from runtime.settings import Settings

COLD = 3.0  # times the work that decoding every window from its beginning makes of a candidate


@dataclass(frozen=True, slots=True)
class Plan:
    """All videos of a run, and how the work is laid out."""

    world: str  # "module:Class", a row of ``worlds.WORLDS``
    name: str  # what rows call it
    wishes: Wishes
    texts: tuple[str, ...]  # the prompts
    methods: tuple[str, ...]
    seconds: tuple[float, ...]
    seeds: tuple[int, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)  # the world's and the caller's
    batch: int = 4  # prompts that share every forward
    workers: int = 1  # processes; one works in this one
    keep: int = 0  # prompts whose videos are kept as frames, of the first seed

    @property
    def base(self) -> Settings:
        """What all methods share."""
        return Settings().with_changes(self.changes)

    def settings(self, method: str, seconds: float, seed: int = FIRST_SEED) -> Settings:
        """Of one method's videos. ValueError for an unknown method or setting."""
        changes = {**named(method).changes, "seconds": seconds, "search.seed": seed}
        return self.base.with_changes(changes)

    def with_workers(self, count: int) -> Plan:
        return replace(self, workers=count)


@dataclass(frozen=True, slots=True)
class Job:
    """A batch: one video of each of some prompts."""

    seconds: float
    seed: int
    prompts: tuple[int, ...]
    method: str

    def key(self, world: str, prompt: int) -> Key:
        return Key(world, self.seconds, self.method, prompt, self.seed)


def jobs(plan: Plan, done: Collection[Key]) -> list[Job]:
    """The batches that are left to do.

    On a CPU all methods make the same prompts before the next prompts' turn, so that a run that is stopped has pairs to
    compare; on a GPU a method stays as long as its seed does, and what was recorded for it is used again.
    """
    left = [
        replace(job, prompts=tuple(p for p in job.prompts if job.key(plan.name, p) not in done))
        for job in _all(plan)
    ]
    left = [job for job in left if job.prompts]
    if plan.base.run.device != "cpu":
        order = {method: place for place, method in enumerate(plan.methods)}
        left.sort(key=lambda job: (job.seconds, job.seed, order[job.method]))
    return left


def _all(plan: Plan) -> Iterator[Job]:
    makers = {names[0] for names in same_settings(plan, plan.methods)}
    for seconds in plan.seconds:
        for seed in plan.seeds:
            for first in range(0, len(plan.texts), plan.batch):
                prompts = tuple(range(first, min(first + plan.batch, len(plan.texts))))
                for method in plan.methods:
                    if method in makers:
                        yield Job(seconds, seed, prompts, method)


def same_settings(plan: Plan, methods: Sequence[str]) -> list[list[str]]:
    """``methods`` by what they do: ``stream-t1`` and ``stream-t1[2x2]`` are two names of the same videos."""
    groups: dict[str, list[str]] = {}
    for method in dict.fromkeys(methods):
        groups.setdefault(plan.settings(method, 1.0).to_json(), []).append(method)
    return list(groups.values())


def under_all_names(plan: Plan, rows: Sequence[Row]) -> list[Row]:
    """The rows that exist already, but for the name of their method, so that nothing is made twice."""
    groups = {
        name: group for group in same_settings(plan, plan.methods) for name in group if group[1:]
    }
    known = {row.key for row in rows}
    copies = [
        replace(row, key=replace(row.key, method=name))
        for row in rows
        for name in groups.get(row.key.method, ())
    ]
    return list({row.key: row for row in copies if row.key not in known}.values())


def weight(plan: Plan, job: Job) -> float:
    """About how long a batch takes, on no particular scale: for the time that is left."""
    settings = plan.settings(job.method, job.seconds)
    search = settings.search
    alone = search.policy == "single" or not search.pruning
    rows = 1.0 if alone else search.histories * search.expansions
    if settings.released or settings.run.schedule == "released":
        rows *= COLD
    return (rows + 1.0) * job.seconds * len(job.prompts)
