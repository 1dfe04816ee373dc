"""What a world of the comparison has to do: give prompts, judge a finished video. A new world is one class and one row.

Legend: T frames of a video, H x W pixels.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from runtime.bench.quality.row import Key, Row

WORLDS = {
    "sprites": "runtime.bench.quality.sprites_world:SpritesWorld",
    "vbench": "runtime.bench.quality.vbench:VBench",
    "moviegen": "runtime.bench.quality.moviegen:MovieGen",
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller wants of a world. A world takes what concerns it."""

    folder: Path  # of the run; videos and other files of a world's own go below it
    split: str = "held-out"  # or "tuning": which of the fixed prompt lists
    prompts_file: Path | None = None  # the user's own list
    device: str = "cpu"  # for judges that are models
    preset: str = ""  # generator and rewards of a world that has several; "": the world's own
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the preset, as --set gives them
    vbench_results: Path | None = (
        None  # what VBench wrote elsewhere; None: it is asked, or looked for in ``folder``
    )
    vbench_python: str = ""  # of the environment that VBench is installed in; "": this one
    vbench_long: bool = False  # its long mode for short videos, too
    look_only: bool = False  # nobody else's tools are called; what they wrote is read


@dataclass(frozen=True, slots=True)
class Judged:
    """What a world says of one video; see ``Row`` for what the four are."""

    scores: Mapping[str, float]
    right: Mapping[str, bool] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)
    over_time: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class World(Protocol):
    """Prompts and a judge. Made by ``load(wishes)``, once in every worker process."""

    name: str
    version: str  # another one wherever a score could come out otherwise; see ``source_version``
    changes: Mapping[str, Any]  # to the default settings: which generator, which rewards

    def texts(self, count: int) -> list[str]:
        """The first ``count`` prompts. ValueError when there are fewer."""
        ...

    def judge(self, frames: Tensor, index: int, fps: int) -> Judged:
        """frames [T, 3, H, W] uint8 on the CPU, of prompt ``index``."""
        ...


@runtime_checkable
class Filing(Protocol):
    """A world that keeps its videos as files of its own, for tools that read files."""

    def file(self, frames: Tensor, key: Key, text: str, fps: int) -> None:
        """Called in the worker for every finished video, before ``judge``; frames as there."""
        ...


@runtime_checkable
class Finishing(Protocol):
    """A world that has scores to add when all videos are there."""

    def finish(self, rows: Sequence[Row]) -> list[Row]:
        """All rows of the run, with what could not be known video by video. Called once, in the main process."""
        ...


@runtime_checkable
class Remarking(Protocol):
    """A world that has something of its own to say under the tables."""

    def remarks(self, rows: Sequence[Row], made_by: str) -> str:
        """Markdown; ``made_by`` says with which preset, weights and commit the rows were made. After ``finish``."""
        ...


def load_world(name: str, wishes: Wishes) -> World:
    """The world called ``name``. ValueError lists the known ones, with a guess."""
    if name not in WORLDS:
        guess = difflib.get_close_matches(name, WORLDS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(f"--world: want one of {', '.join(WORLDS)}, got {name!r}{hint}")
    return load_row(WORLDS[name], wishes)


def load_row(row: str, wishes: Wishes) -> World:
    """The world of a row "module:Class" of the table."""
    module, _, attribute = row.partition(":")
    return getattr(importlib.import_module(module), attribute).load(wishes)


def source_version(*modules: str) -> str:
    """A short digest of the text of ``modules``: the version of measures that are computed there."""
    digest = hashlib.sha256()
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"source_version: want modules with a file, got {name!r}")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()[:12]
