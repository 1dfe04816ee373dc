"""The JSON of ``python -m runtime.bench``, read by path. None is "not known"; a wrong type names its place in the file.

A result may come from anybody: sizes are bounded, numbers that are not finite count as unknown, and nothing here is
trusted to be text that a page may hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.telemetry import STAGES

MAX_BYTES = 16 << 20
MAX_ROWS = 5000  # of one list: spans of a chunk, points of a curve, values of a distribution
MAX_NAMES = 64  # of one table: stages, baselines, sweeps
MAX_TEXT = 600
PERCENTILES = ("p50", "p95", "p99")
REQUIRED = ("pixel_fps", "stages", "environment")


@dataclass(frozen=True, slots=True)
class Dist:
    """A distribution as a result holds it: milliseconds, watts or whatever its place says."""

    median: float
    p50: float | None
    p95: float | None
    p99: float | None
    low: float | None
    high: float | None
    count: int | None
    values: tuple[float, ...] = ()  # where the result keeps every one of them


@dataclass(frozen=True, slots=True)
class Result:
    """One bench result. Paths are given word by word: ``result.number("stages", "denoise", "median_ms")``."""

    name: str  # of the file or run, for people
    root: Mapping[str, Any]

    def number(self, *path: str) -> float | None:
        """The number at ``path``; None where there is none, or none that is finite."""
        return _number(self._at(path), self._where(path))

    def text(self, *path: str) -> str | None:
        """The text at ``path``, cut at ``MAX_TEXT`` characters; numbers and yes or no count as text."""
        value = self._at(path)
        if value is None:
            return None
        if not isinstance(value, (str, int, float)):
            raise ValueError(_wrong(self._where(path), "a text", value))
        return str(value)[:MAX_TEXT]

    def names(self, *path: str) -> list[str]:
        """The keys of the table at ``path``, in order."""
        return list(self.table(*path))

    def table(self, *path: str) -> Mapping[str, Any]:
        """The table at ``path``; empty where there is none."""
        value = self._at(path)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise ValueError(_wrong(self._where(path), "a table", value))
        if path[:1] != ("settings",) and len(value) > MAX_NAMES:
            raise ValueError(
                f"{self._where(path)}: want at most {MAX_NAMES} entries, got {len(value)}"
            )
        return value

    def items(self, *path: str) -> list[Result]:
        """The tables of the list at ``path``, each to be read by path."""
        return [Result(f"{self._where(path)}[{i}]", row) for i, row in enumerate(self._rows(path))]

    def words(self, *path: str) -> list[str]:
        """The list of texts at ``path``."""
        return [str(word)[:MAX_TEXT] for word in self._list(path)]

    def numbers(self, *path: str) -> list[float | None]:
        """The list of numbers at ``path``; None for one that is not finite."""
        return [_number(value, self._where(path)) for value in self._list(path)]

    def dist(self, *path: str) -> Dist | None:
        """The distribution at ``path``; None without a median."""
        table = self.table(*path)
        median = self.number(*path, "median")
        if not table or median is None:
            return None
        count = self.number(*path, "count")
        return Dist(
            median,
            *(self.number(*path, name) for name in (*PERCENTILES, "min", "max")),
            None if count is None else int(count),
            tuple(v for v in self.numbers(*path, "values") if v is not None),
        )

    def stages(self, table: str = "stages", *path: str) -> list[str]:
        """The stages of a table in the order of the line; those it does not know come last."""
        known = {name: place for place, name in enumerate(STAGES)}
        return sorted(self.names(table, *path), key=lambda name: known.get(name, len(known)))

    @property
    def chunk_ms(self) -> float | None:
        """Wall time of a chunk: the median between two chunks where it is known, else the mean over whole videos."""
        between = self.dist("latency", "inter_chunk_ms")
        return between.median if between else self.mean_chunk_ms(self.number("pixel_fps"))

    def mean_chunk_ms(self, fps: float | None) -> float | None:
        """Wall time over chunks at ``fps``: every run of one file makes the same frames in the same chunks."""
        frames, chunks = self.number("frames"), self.number("chunks")
        return 1e3 * frames / fps / chunks if fps and frames and chunks else None

    @property
    def random_weights(self) -> bool:
        """Whether the generator's weights were filled at random, for timing."""
        named = str(self.table("environment").get("weights"))
        return "random" in named or self.text("settings", "run", "weights") == "random"

    @property
    def device(self) -> str:
        """The processor that did the work, as people name it."""
        gpu = self.text("environment", "gpu")
        on_gpu = str(self.text("environment", "device") or "").startswith("cuda")
        return (gpu if on_gpu else self.text("environment", "cpu")) or "an unnamed machine"

    def _at(self, path: tuple[str, ...]) -> Any:
        value: Any = self.root
        for depth, word in enumerate(path):
            if value is None:
                return None
            if not isinstance(value, Mapping):
                raise ValueError(_wrong(self._where(path[:depth]), "a table", value))
            value = value.get(word)
        return value

    def _list(self, path: tuple[str, ...]) -> list[Any]:
        value = self._at(path)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ValueError(_wrong(self._where(path), "a list", value))
        if len(value) > MAX_ROWS:
            raise ValueError(
                f"{self._where(path)}: want at most {MAX_ROWS} entries, got {len(value)}"
            )
        return value

    def _rows(self, path: tuple[str, ...]) -> list[Mapping[str, Any]]:
        rows = self._list(path)
        for row in rows:
            if not isinstance(row, Mapping):
                raise ValueError(_wrong(self._where(path), "a list of tables", row))
        return rows

    def _where(self, path: tuple[str, ...]) -> str:
        return f"{self.name}: {'.'.join(path)}"


def read_json(path: Path) -> Any:
    """What ``path`` holds. ValueError for a file that is too large or no JSON, OSError for one that cannot be read."""
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path}: want at most {MAX_BYTES >> 20} MiB of JSON")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: want JSON, got something else ({str(error)[:100]})") from None


def read(path: Path) -> Result:
    """The bench result at ``path``. ValueError, in one sentence, for anything else."""
    return checked(read_json(path), path.name)


def checked(root: Any, name: str = "result") -> Result:
    """``root`` as a result. ValueError when it is none, or when its main numbers are of the wrong kind."""
    if not isinstance(root, Mapping) or any(key not in root for key in REQUIRED):
        have = ", ".join(list(root)[:6]) if isinstance(root, Mapping) else type(root).__name__
        raise ValueError(
            f"{name}: want the JSON of `python -m runtime.bench --json` with {', '.join(REQUIRED)}; "
            f"got {have[:200] or 'an empty table'}"
        )
    result = Result(name, root)
    result.number("pixel_fps")
    for stage in result.names("stages"):
        result.number("stages", stage, "median_ms")
    result.table("environment")
    return result


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(_wrong(where, "a number", value))
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _wrong(where: str, wanted: str, got: Any) -> str:
    return f"{where}: want {wanted}, got {type(got).__name__} {str(got)[:40]!r}"
