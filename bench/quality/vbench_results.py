"""Read what VBench wrote, ``*_eval_results.json``, into our columns: one number in percent for every video.

A file maps a dimension to its result over the folder, in [0, 1], and a list of what every video got:

    {"imaging_quality": [0.709, [{"video_path": "a cat-0.mp4", "video_results": 72.9}, ...]]}

The single numbers are on scales of their own (imaging quality in percent, an early subject consistency summed over frames), so
they are brought to the scale of the folder's result: all times one factor, such that their mean is that result. Videos of a
folder are equally long here, so the factor is one number. Long mode names clips instead of videos; a video's clips are averaged.

Source   the files that users show in VBench's issues 28, 41, 87 and 88.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

COLUMN_OF = {  # VBench's dimension -> our column
    "subject_consistency": "Subject",
    "background_consistency": "Background",
    "motion_smoothness": "Motion",
    "imaging_quality": "Imaging",
    "aesthetic_quality": "Aesthetic",
}
DIMENSIONS = tuple(COLUMN_OF)
PATTERN = "*_eval_results.json"
MOST_BYTES = 64 * 2**20
MOST_SCALE = 1.5  # of a folder's result to its videos' mean; beyond, they do not belong together
CLIP_MARKS = ("_", "-Scene-")  # what long mode puts behind a video's name


@dataclass(frozen=True, slots=True)
class Results:
    """What VBench says of one folder of videos."""

    # file name -> column -> percent; a video that a dimension does not look at lacks its column
    videos: Mapping[str, Mapping[str, float]]
    folder: Mapping[str, float]  # column -> percent of the whole folder, as VBench states it
    notes: tuple[str, ...] = ()  # why something was not scored


@dataclass
class _Found:
    videos: dict[str, dict[str, float]] = field(default_factory=dict)
    folder: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_results(folder: Path, names: Collection[str]) -> Results:
    """The results anywhere below ``folder`` for the videos called ``names``. Other dimensions than the five are passed over.

    ValueError for a file that is not VBench's, for a dimension that two files state, or for results of other videos.
    """
    found, said_by = _Found(), dict[str, Path]()
    for path in sorted(folder.rglob(PATTERN)) if folder.is_dir() else []:
        for dimension, result in _table(path).items():
            if dimension not in COLUMN_OF:
                continue
            if dimension in said_by:
                raise ValueError(
                    f"{dimension}: is in {said_by[dimension]} and in {path}; keep the one that is right"
                )
            said_by[dimension] = path
            _take(found, dimension, _checked(result, f"{path}: {dimension}"), names, path)
    return Results(found.videos, found.folder, tuple(found.notes))


def _take(
    found: _Found,
    dimension: str,
    result: tuple[float, list[tuple[str, float]]],
    names: Collection[str],
    path: Path,
) -> None:
    """Add one dimension's result."""
    column, (whole, entries) = COLUMN_OF[dimension], result
    if not entries or math.isnan(whole):
        found.notes.append(f"{column}: VBench found no video to score ({path})")
        return
    scale = _scale(whole, [value for _, value in entries], f"{path}: {dimension}")
    values: dict[str, list[float]] = {}
    for video, value in entries:
        name = video_of(video, names)
        if name is not None:
            values.setdefault(name, []).append(value)
    if not values:
        raise ValueError(
            f"{path}: {dimension}: is about other videos, the first of them {entries[0][0]!r}; want those of this run"
        )
    for name, some in values.items():
        found.videos.setdefault(name, {})[column] = 100 * scale * sum(some) / len(some)
    found.folder[column] = 100 * whole


def video_of(path: str, names: Collection[str]) -> str | None:
    """The file name among ``names`` that a path in VBench's results is about: the video, or a clip that was cut from it."""
    parts = PurePath(path).parts
    stems = {PurePath(name).stem: name for name in names}
    for part in reversed(parts):
        if part in names:
            return part
        if part in stems:  # the folder of a video's clips
            return stems[part]
    clip = PurePath(path).stem
    cut_from = [stem for stem in stems if clip.startswith(tuple(stem + m for m in CLIP_MARKS))]
    return stems[max(cut_from, key=len)] if cut_from else None


def _scale(whole: float, values: Sequence[float], where: str) -> float:
    mean = sum(values) / len(values)
    if mean == whole == 0:
        return 1.0
    if not (mean > 0 and 0 < whole / mean <= MOST_SCALE):
        raise ValueError(
            f"{where}: want videos whose mean is on the result's scale, got {mean:g} on average and {whole:g} in all"
        )
    return whole / mean


def _table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path}: want at most {MOST_BYTES // 2**20} MiB of results")
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path}: is not JSON; VBench may have been stopped while it wrote"
        ) from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: want dimensions and their results, got {type(table).__name__}")
    return table


def _checked(result: Any, where: str) -> tuple[float, list[tuple[str, float]]]:
    """The folder's result and (path, value) of every video. ValueError for anything else."""
    if not (isinstance(result, list) and len(result) == 2 and isinstance(result[1], list)):
        raise ValueError(f"{where}: want a result and a list of videos, got {repr(result)[:60]}")
    whole = _number(result[0], where)
    if not math.isnan(whole) and not 0 <= whole <= 1:
        raise ValueError(f"{where}: want a result in [0, 1] as VBench states it, got {whole:g}")
    entries = []
    for entry in result[1]:
        video = entry.get("video_path") if isinstance(entry, dict) else None
        if not isinstance(video, str):
            raise ValueError(f"{where}: want videos with a video_path, got {repr(entry)[:60]}")
        value = _number(entry.get("video_results"), f"{where}: {video}")
        if not math.isfinite(value):
            raise ValueError(f"{where}: {video}: want a finite score, got {value}")
        entries.append((video, value))
    return whole, entries


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{where}: want a number, got {repr(value)[:60]}")
    return float(value)
