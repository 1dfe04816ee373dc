"""Writes and reads the record of a search: every candidate of every chunk, its scores, its picture and its fate.

A trace is one JSON object, a line per chunk, and valid after every chunk: what stops a run does not spoil it. Reading
one needs neither torch nor a video library.

Legend: B candidates, H x W pixels of their frames.
"""

from __future__ import annotations

import base64
import json
import math
import os
import platform
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runtime
from runtime.output import OutputFile, reason
from runtime.thumbnails import thumbnails

if TYPE_CHECKING:
    from runtime.settings import Settings
    from runtime.types import Candidate, Chunk, ChunkEvent, ChunkRecord

FORMAT = "stream-t1-trace"
VERSION = 1
MAX_BYTES = 512 * 2**20
ROUTES = ("discard", "ema", "append")


class TraceWriter:
    """A ``Watch`` that streams what it sees to a file. Holds 8 bytes per settled chunk and nothing else."""

    def __init__(self, path: str | os.PathLike[str], name: str = "trace") -> None:
        """Raises ValueError when the file cannot be written; ``name`` says whose path it is."""
        self.chunks = 0
        self._begun = self._closed = False
        self._seeds = array("Q")
        self.notes: dict[str, Any] = {}  # more to say of the whole run; written when it is closed
        self._file = OutputFile(path, name)

    @property
    def path(self) -> Path:
        return self._file.path

    def begin(
        self,
        prompt: str,
        settings: Settings,
        fps: int,
        chunks: int,
        implementations: Mapping[str, str],
    ) -> None:
        """Write what the run is; ``chunks`` is how many it is going to have. Comes first, once."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "prompt": prompt,
            "fps": fps,
            "planned_chunks": chunks,
            "versions": versions(),
            "implementations": dict(implementations),
            "settings": json.loads(settings.to_json()),
        }
        fields = (f"{json.dumps(key)}: {_dump(value)}" for key, value in header.items())
        self._begun = True
        self._file.append(
            ("{" + ",\n".join(fields) + ',\n"chunks": [').encode(), self._end("unfinished")
        )

    def __call__(self, record: ChunkRecord) -> None:
        """Append one chunk's candidates. Raises RuntimeError when the disk is full; the file stays valid."""
        self.add(turn_of(record))

    def add(self, turn: Mapping[str, Any]) -> None:
        """Append one chunk as ``turn_of`` tells it. Raises as a call."""
        comma = "," if self.chunks else ""
        self._file.append(f"{comma}\n{_dump(turn)}".encode(), self._end("unfinished"))
        self.chunks += 1

    def resume(self, size: int, chunks: int, seeds: Sequence[int]) -> None:
        """Go on behind the first ``size`` bytes of the file, which tell ``chunks`` chunks; instead of ``begin``.

        ``seeds`` are those of the chunks that were settled by then.
        """
        self._file.resume(size)
        self._begun, self.chunks = True, chunks
        self._seeds.extend(seeds)
        self._file.append(b"", self._end("unfinished"))

    @property
    def size_bytes(self) -> int:
        """Of what has been told, without the end that makes it valid."""
        return self._file.size

    def settled(self, chunk: ChunkEvent | Chunk) -> None:
        """Note that a chunk joined the video; the file learns it when it is closed."""
        self._seeds.append(chunk.seed)

    def close(self, outcome: str = "finished") -> None:
        """Write how the run ended and close the file; again is harmless. A trace that never began leaves no file."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._begun:
                self._file.append(self._end(outcome, self._seeds.tolist()))
        finally:
            self._file.close()

    def _end(self, outcome: str, seeds: Sequence[int] = ()) -> bytes:
        notes = "".join(
            f"{json.dumps(key)}: {_dump(value)},\n" for key, value in self.notes.items()
        )
        return f'\n],\n{notes}"path": {list(seeds)},\n"outcome": {json.dumps(outcome)}}}\n'.encode()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")


def versions() -> dict[str, str]:
    """What computed this, by name."""
    found = {"runtime": runtime.__version__, "python": platform.python_version()}
    for package in ("torch", "av", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def turn_of(record: ChunkRecord) -> dict[str, Any]:
    """One chunk's candidates in row order, with their pictures, as a trace keeps them."""
    ranks = {row: rank for rank, row in enumerate(record.kept)}
    pairs = zip(record.candidates, thumbnails(record.frames), strict=True)
    return {
        "index": record.index,
        "stage_ms": record.stage_ms,
        "candidates": [_described(c, record.index, ranks.get(c.row), p) for c, p in pairs],
    }


def _described(candidate: Candidate, chunk: int, rank: int | None, picture: str) -> dict[str, Any]:
    branch, scores = candidate.branch, candidate.scores
    return {
        "row": candidate.row,
        "parent": branch.rank if chunk else None,
        "expansion": branch.expansion,
        "seed": branch.seed,
        "short": scores.short,
        "long": scores.long,
        "fused": scores.fused,
        "quality_gain": scores.quality_gain,
        "long_drop": scores.long_drop,
        "route": candidate.route.value,
        "rank": rank,
        "thumbnail": picture,
    }


def _dump(value: Any) -> str:
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    """``value`` with null for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class TraceCandidate:
    """A candidate as a trace tells it. A number that was not finite is NaN."""

    row: int
    parent: int | None  # rank among the survivors of the chunk before; None at chunk 0
    expansion: int
    seed: int
    short: float
    long: float
    fused: float
    quality_gain: float
    long_drop: float
    route: str
    rank: int | None  # among the survivors, 0 is best; None when it was dropped
    thumbnail: bytes  # JPEG


@dataclass(frozen=True, slots=True)
class TraceChunk:
    """One chunk's candidates in row order."""

    index: int
    stage_ms: dict[str, float]
    candidates: tuple[TraceCandidate, ...]

    def survivors(self) -> dict[int, TraceCandidate]:
        """Rank -> candidate of those that were kept."""
        return {c.rank: c for c in self.candidates if c.rank is not None}


@dataclass(frozen=True, slots=True)
class Trace:
    """What ``TraceWriter`` wrote."""

    prompt: str
    fps: int
    planned_chunks: int
    versions: dict[str, str]
    implementations: dict[str, str]
    settings: dict[str, Any]
    chunks: tuple[TraceChunk, ...]
    path: tuple[int, ...]  # seeds of the chunks that were settled, from chunk 0
    outcome: str

    def shown(self) -> tuple[TraceCandidate, ...]:
        """The candidates that became the video, from chunk 0: the ancestry whose seeds are ``path``.

        Empty when nothing was settled.
        """
        if not self.path or len(self.path) > len(self.chunks):
            return ()
        last = self.chunks[len(self.path) - 1]
        ends = sorted(last.survivors().items())
        for candidate in (c for _, c in ends if c.seed == self.path[-1]):
            line = self.ancestry(last.index, candidate)
            if all(c.seed == seed for c, seed in zip(line, self.path, strict=True)):
                return line
        return ()

    def ancestry(self, index: int, candidate: TraceCandidate) -> tuple[TraceCandidate, ...]:
        """``candidate`` of chunk ``index`` and all before it, from chunk 0."""
        line = [candidate]
        for chunk in reversed(self.chunks[:index]):
            parent = line[-1].parent
            assert parent is not None, "read_trace has seen to it"
            line.append(chunk.survivors()[parent])
        return tuple(reversed(line))


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read and check a trace. Raises ValueError that says where it is not one."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: cannot be read: {reason(error)}") from error
    if len(content) > MAX_BYTES:
        raise ValueError(f"{os.fspath(path)}: want at most {MAX_BYTES // 2**20} MiB")
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: not valid JSON: {error}") from error
    try:
        return _trace(whole)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: not a trace: {error}") from error


def _trace(whole: Any) -> Trace:
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(f'want an object with "format": "{FORMAT}"')
    if whole.get("version") != VERSION:
        raise ValueError(f"version: want {VERSION}, got {whole.get('version')!r}")
    chunks: list[TraceChunk] = []
    for index, entry in enumerate(_field(whole, "chunks", list, "")):
        chunks.append(_chunk(entry, index, chunks[-1].survivors() if chunks else {}))
    seeds = _field(whole, "path", list, "")
    if any(type(seed) is not int for seed in seeds):
        raise ValueError("path: want seeds")
    return Trace(
        prompt=_field(whole, "prompt", str, ""),
        fps=_field(whole, "fps", int, ""),
        planned_chunks=_field(whole, "planned_chunks", int, ""),
        versions=_field(whole, "versions", dict, ""),
        implementations=_field(whole, "implementations", dict, ""),
        settings=_field(whole, "settings", dict, ""),
        chunks=tuple(chunks),
        path=tuple(seeds),
        outcome=_field(whole, "outcome", str, ""),
    )


def _chunk(entry: Any, index: int, before: Mapping[int, TraceCandidate]) -> TraceChunk:
    where = f"chunks[{index}]"
    if _field(entry, "index", int, where) != index:
        raise ValueError(f"{where}.index: want {index}, got {entry['index']}")
    found = []
    for row, candidate in enumerate(_field(entry, "candidates", list, where)):
        found.append(_candidate(candidate, f"{where}.candidates[{row}]"))
        if index and found[-1].parent not in before:
            raise ValueError(
                f"{where}.candidates[{row}].parent: want one of {sorted(before)}, the survivors of the chunk before, "
                f"got {found[-1].parent}"
            )
    return TraceChunk(index, _field(entry, "stage_ms", dict, where), tuple(found))


def _candidate(entry: Any, where: str) -> TraceCandidate:
    values: dict[str, Any] = {k: _field(entry, k, int, where) for k in ("row", "expansion", "seed")}
    values |= {k: _field(entry, k, (int, None), where) for k in ("parent", "rank")}
    for key in ("short", "long", "fused", "quality_gain", "long_drop"):
        number = _field(entry, key, (float, None), where)
        values[key] = math.nan if number is None else float(number)
    route = _field(entry, "route", str, where)
    if route not in ROUTES:
        raise ValueError(f"{where}.route: want one of {', '.join(ROUTES)}, got {route!r}")
    try:
        picture = base64.b64decode(_field(entry, "thumbnail", str, where), validate=True)
    except ValueError as error:
        raise ValueError(f"{where}.thumbnail: {error}") from error
    return TraceCandidate(**values, route=route, thumbnail=picture)


def _field(entry: Any, key: str, kind: Any, where: str) -> Any:
    """``entry[key]``, which must be of ``kind``: a type, or a pair of one and None."""
    name = f"{where}.{key}" if where else key
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(entry, dict) or key not in entry:
        raise ValueError(f"{name}: missing")
    value = entry[key]
    if value is None and None in kinds:
        return value
    accepted = (int, float) if kinds[0] is float else kinds[0]
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"{name}: want {kinds[0].__name__}, got {type(value).__name__}")
    return value
