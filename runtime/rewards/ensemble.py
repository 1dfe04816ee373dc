"""Several reward models as one: a weighted sum of their scores, each in its own standard deviations.

    score = sum over members of weight * (score - mean) / std

Models score on scales of their own (HPSv3 about -5 to 15, CLIP about 0 to 40), so a plain sum would be the loudest model's.
``mean`` and ``std`` are those of a model's scores of a generator's candidates: measured by ``python -m runtime.bench.calibrate``,
kept in a JSON file that ``reward.statistics`` names, ``{"hpsv3": {"mean": ..., "std": ..., "samples": ...}, ...}``; other
entries of a member and the entry "about" are for readers. The package has those of its embedded rewards.

An ensemble is written ``hpsv3*0.5+imagereward*0.5``. A member without a weight counts 1; a single name is no ensemble.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from runtime.types import Clip, RewardModel
from runtime.weights import read_config

PACKAGED = Path(__file__).with_name("statistics.json")
MAX_CHARACTERS = 400
MAX_MEMBERS = 8
MAX_WEIGHT = 1000.0
LEAST_SAMPLES = 2
ABOUT = "about"
_TERM = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\*\s*([0-9]*\.?[0-9]+)\s*)?")


@dataclass(frozen=True, slots=True)
class Term:
    """A model's name and its weight; None where none was written."""

    name: str
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a model's scores of a generator's candidates."""

    mean: float
    std: float
    samples: int

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):  # fmt: skip
                raise ValueError(f"{name}: want a finite number, got {value!r}")
        if self.std <= 0.0:
            raise ValueError(f"std: want more than 0, got {self.std}; such a model tells no candidates apart")  # fmt: skip
        if type(self.samples) is not int or self.samples < LEAST_SAMPLES:
            raise ValueError(f"samples: want a whole number of at least {LEAST_SAMPLES}, got {self.samples!r}")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A model of an ensemble."""

    name: str
    weight: float
    model: RewardModel
    statistics: Statistics


def parse(expression: str) -> tuple[Term, ...]:
    """``a*0.5+b*0.5`` as terms, one for a single name. ValueError says where an expression makes no sense."""
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(
            f"reward: want at most {MAX_CHARACTERS} characters, got {len(expression)}: {expression[:40]!r}..."
        )
    parts = expression.split("+")
    if len(parts) > MAX_MEMBERS:
        raise ValueError(f"reward {expression!r}: want at most {MAX_MEMBERS} models, got {len(parts)}")  # fmt: skip
    terms = []
    for part in parts:
        match = _TERM.fullmatch(part)
        if not match:
            raise ValueError(
                f"reward {expression!r}: cannot read {part.strip()!r}; want NAME or NAME*WEIGHT, as in "
                "hpsv3*0.5+imagereward*0.5, with a plain number above 0"
            )
        weight = None if match[2] is None else float(match[2])
        if weight is not None and not 0.0 < weight <= MAX_WEIGHT:
            raise ValueError(f"reward {expression!r}: want a weight above 0, at most {MAX_WEIGHT:.0f}, got {match[2]}")  # fmt: skip
        terms.append(Term(match[1], weight))
    names = [term.name for term in terms]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"reward {expression!r}: names {twice[0]!r} twice; give it one weight")
    return tuple(terms)


def members_of(expression: str) -> tuple[str, ...]:
    """The names of the models in an expression."""
    return tuple(term.name for term in parse(expression))


def is_ensemble(terms: Sequence[Term]) -> bool:
    """A single name is the model itself, on its own scale."""
    return len(terms) > 1 or terms[0].weight is not None


def read_statistics(path: Path, names: Sequence[str]) -> dict[str, Statistics]:
    """Those of ``names`` from a JSON file. ValueError names the file and the model that it says nothing good about."""
    table = read_config(path)
    found = {}
    for name in names:
        entry = table.get(name)
        if entry is None:
            known = ", ".join(sorted(table.keys() - {ABOUT})) or "none"
            raise ValueError(
                f"{path}: has no statistics of {name!r}, only of: {known}; an ensemble needs those of every member: "
                f"run `python -m runtime.bench.calibrate {' '.join(names)} -o FILE` with your generator and set "
                "reward.statistics to that file"
            )
        found[name] = _statistics(path, name, entry)
    return found


def _statistics(path: Path, name: str, entry: Any) -> Statistics:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {name}: want an object, got {type(entry).__name__}")
    numbers: dict[str, Any] = {key: entry.get(key) for key in ("mean", "std", "samples")}
    try:
        return Statistics(**numbers)
    except ValueError as error:
        raise ValueError(f"{path}: {name}: {error}") from None


@runtime_checkable
class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


@runtime_checkable
class Counted(Protocol):
    def flops(self, frames: int, height: int, width: int, fps: int) -> int: ...


class Ensemble:
    """A reward model that asks others. All see the same clip: which frames these are is its role's to say, not theirs."""

    def __init__(self, members: Sequence[Member]) -> None:
        if not members:
            raise ValueError("ensemble: want at least one member")
        self.members = tuple(members)
        self.horizon = max(member.model.horizon for member in self.members)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def nbytes(self) -> int:
        """Of the weights of those members that say so."""
        return sum(m.model.nbytes for m in self.members if isinstance(m.model, Sized))

    @torch.no_grad()
    def detail(self, clip: Clip) -> Tensor:
        """[B, members] fp32, what each member thinks of each clip in its own standard deviations, before weights."""
        columns = []
        for member in self.members:
            scores = member.model.score(clip)
            columns.append((scores.float() - member.statistics.mean) / member.statistics.std)
        return torch.stack([column.to(columns[0].device) for column in columns], 1)

    @torch.no_grad()
    def score(self, clip: Clip) -> Tensor:
        """[B] fp32, higher is better; NaN where any member cannot judge."""
        columns = self.detail(clip).unbind(1)
        weighted = [c * m.weight for c, m in zip(columns, self.members, strict=True)]
        return torch.stack(weighted).sum(0)


class CountedEnsemble(Ensemble):
    """An ensemble all of whose members know what they cost; without one that does, a sum would be too small."""

    def flops(self, frames: int, height: int, width: int, fps: int, prompt: str = "") -> int:
        """Of one clip."""
        models = [member.model for member in self.members]
        return sum(m.flops(frames, height, width, fps) for m in models if isinstance(m, Counted))


def joined(members: Sequence[Member]) -> Ensemble:
    """The ensemble of ``members``, counted if all of them are."""
    counted = all(isinstance(member.model, Counted) for member in members)
    return CountedEnsemble(members) if counted else Ensemble(members)
