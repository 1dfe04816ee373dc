"""Rows on disk, one a line, so that a run can be stopped anywhere and goes on where it was.

``rows.jsonl`` begins with a header: what made the rows. A run that would add rows of another making is refused, for a
table of both would compare them. ``frames/`` holds the few videos that pictures need.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.bench.quality.row import Key, Row

ROWS, FRAMES = "rows.jsonl", "frames"
TUNING = "tuning"  # folder of a run on tuning prompts, inside that of the other
FORMAT = 1
INFORMS = "made"  # the part of a header that may differ: where and when, not what


class Store:
    """The rows of one folder. Opening it locks it against a second writer; ``close`` lets go."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        """``header`` is what makes the rows, in plain values; under "made" it may say more, which is not compared.

        ValueError for a folder whose rows were made otherwise, or that another run writes to.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ROWS
        self._file = path.open("a+b")
        try:
            _lock(self._file, path)
            whole = _whole_lines(path)
            self._file.truncate(len(whole))  # a line that was cut off is made again
            wanted = json.loads(json.dumps({"format": FORMAT, **header}))
            if whole:
                self.header, rows = _parse(whole, path)
                _check_header(wanted, self.header, path)
            else:
                self.header, rows = wanted, []
                self._write(wanted)
        except BaseException:
            self._file.close()
            raise
        self._rows = {row.key: row for row in rows}

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def __getitem__(self, key: Key) -> Row:
        return self._rows[key]

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; one whose key is there already is left out."""
        for row in rows:
            if row.key not in self._rows:
                self._rows[row.key] = row
                self._write(row.to_json())

    def close(self) -> None:
        self._file.close()

    def _write(self, table: Mapping[str, Any]) -> None:
        line = json.dumps(table, allow_nan=False, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()


def read(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows of a folder, for whoever only looks. ValueError for a folder without rows."""
    path = folder / ROWS
    whole = _whole_lines(path) if path.is_file() else b""
    if not whole:
        raise ValueError(
            f"{path}: no rows there; run without --tables-only first, or name another --out"
        )
    header, rows = _parse(whole, path)
    return header, list({row.key: row for row in rows}.values())


def tuning_rows(folder: Path) -> list[Row]:
    """The rows of the run on tuning prompts below ``folder``, files relative to ``folder``; an empty list without one.

    They are of a world of their own, so nothing mixes them with the others.
    """
    if not (folder / TUNING / ROWS).is_file():
        return []
    rows = read(folder / TUNING)[1]
    return [replace(row, file=row.file and f"{TUNING}/{row.file}") for row in rows]


def save_frames(folder: Path, key: Key, frames: Tensor) -> str:
    """Keep a video, uint8 [T, 3, H, W]; its file relative to ``folder``, for ``Row.file``."""
    method = re.sub(r"[^A-Za-z0-9.=-]+", "_", key.method).strip("_")
    name = f"{FRAMES}/{key.seconds:g}s-{key.prompt:03d}-{key.seed}-{method}.npz"
    (folder / FRAMES).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / name, frames=frames.numpy())
    return name


def load_frames(folder: Path, row: Row) -> Tensor:
    """The video of a row whose frames were kept, uint8 [T, 3, H, W]. ValueError when they were not, or are gone."""
    if not row.file or not (folder / row.file).is_file():
        raise ValueError(
            f"{folder / row.file if row.file else folder}: no frames of prompt {row.key.prompt} by "
            f"{row.key.method}; raise --keep to keep them"
        )
    with np.load(folder / row.file) as archive:
        return torch.from_numpy(archive["frames"])


def _lock(file: Any, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(
            f"{path}: another run writes there; wait for it, or name another --out"
        ) from None


def _whole_lines(path: Path) -> bytes:
    """The file's content up to its last line break."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _parse(content: bytes, path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Header and rows. ValueError that names the line that is neither."""
    tables: list[Any] = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            tables.append(Row.from_json(json.loads(line)) if number > 1 else json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: line {number} is no row of this version ({error!r}); name another --out"
            ) from None
    if not isinstance(tables[0], dict) or tables[0].get("format") != FORMAT:
        raise ValueError(f"{path}: want a header of format {FORMAT} in line 1; name another --out")
    return tables[0], tables[1:]


def _check_header(wanted: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if name != INFORMS and wanted.get(name) != found.get(name):
            ours, theirs = differing(wanted.get(name), found.get(name))
            raise ValueError(
                f"{path}: was made with other {name}: want {ours}, found {theirs}; "
                f"name another --out, or remove the folder"
            )


def differing(ours: Any, theirs: Any, name: str = "") -> tuple[str, str]:
    """The first leaf in which two plain values differ, as text each, with its name."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(k for k in sorted(ours.keys() | theirs.keys()) if ours.get(k) != theirs.get(k))
        return differing(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
    label = f"{name} = " if name else ""
    return f"{label}{ours!r}", f"{label}{theirs!r}"
