"""What one job has on disk: video.mp4, trace.json, its snapshots, at last done.json. Every call waits for the disk; a thread makes them.

Whatever fails, what was settled before plays. A snapshot remembers how much of both files belongs to it, so a job that
goes on from one cuts them there and ends with the bytes of a job that was never interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from runtime import snapshot
from runtime.manifest import sync
from runtime.packing import Packed
from runtime.scenes import spelled
from runtime.settings import Settings
from runtime.thumbnails import small
from runtime.trace import TraceWriter, turn_of
from runtime.types import ChunkEvent, ChunkRecord, Trajectory
from runtime.video import VideoWriter, Written

log = logging.getLogger(__name__)
VIDEO, TRACE, SNAPSHOTS, DONE = "video.mp4", "trace.json", "snapshot", "done.json"
NOTHING = torch.empty(0)


@dataclass(frozen=True, slots=True)
class Made:
    """Of what a job's video is made, and by whom."""

    prompts: tuple[tuple[int, str], ...]
    settings: Settings
    fps: int
    implementations: Mapping[str, str]
    identity: str  # of the engine, as JSON

    @property
    def config(self) -> str:
        """What must be the same where the video goes on, as JSON. Which of ``run`` that is, the identity knows."""
        settings = {k: v for k, v in asdict(self.settings).items() if k != "run"}
        who = {"engine": json.loads(self.identity), "implementations": dict(self.implementations)}
        video = {"prompts": spelled(self.prompts), "fps": self.fps, "settings": settings}
        return json.dumps(who | video, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Mark:
    """How much of a job's files belongs to one snapshot."""

    chunks: int  # settled
    frames: int
    bytes: int
    turns: int  # told by the trace
    trace_bytes: int
    seeds: tuple[int, ...]  # of the settled chunks


def light(record: ChunkRecord) -> ChunkRecord:
    """``record`` for a thread that is not the engine's: no latents, small pictures. Whoever reads those waits for the
    device, and the engine does not."""
    candidates = tuple(
        replace(
            one, branch=replace(one.branch, parent=Trajectory()), noise=NOTHING, latents=NOTHING
        )
        for one in record.candidates
    )
    return replace(record, candidates=candidates, survivors=(), frames=small(record.frames).clone())


class JobFiles:
    """Opens a job's files and keeps them in step. Not thread-safe but for ``save``, which may run beside the others."""

    def __init__(self, folder: Path, made: Made) -> None:
        """Raises ValueError when a file cannot be written."""
        self._folder, self._made = folder, made
        self._sizes = [(0, 0)]  # (frames, bytes) of the video after so many chunks
        self._told: dict[int, int] = {}  # bytes of the trace after so many turns
        self._seeds: list[int] = []
        self._video = VideoWriter(folder / VIDEO, made.fps, name="video", ops=made.settings.run.ops)
        try:
            self._trace = TraceWriter(folder / TRACE)
        except ValueError:
            self._video.close()
            raise

    def begin(self, chunks: int) -> None:
        """Begin anew a video of so many chunks; what lay in the folder goes as the first one comes."""
        shutil.rmtree(self._folder / SNAPSHOTS, ignore_errors=True)
        made = self._made
        prompt = spelled(made.prompts)
        self._trace.begin(prompt, made.settings, made.fps, chunks, made.implementations)
        self._told[0] = self._trace.size_bytes

    def resume(self, mark: Mark) -> None:
        """Cut both files to ``mark`` and go on there. Raises ValueError when they are shorter."""
        self._video.resume(Written(mark.chunks, mark.frames), mark.bytes)
        self._trace.resume(mark.trace_bytes, mark.turns, mark.seeds)
        # What came before is never asked for again.
        self._sizes = [(0, 0)] * mark.chunks + [(mark.frames, mark.bytes)]
        self._told[mark.turns] = mark.trace_bytes
        self._seeds = list(mark.seeds)

    @property
    def written(self) -> Written:
        return self._video.written

    @property
    def size_bytes(self) -> int:
        """Of the video: all of them valid."""
        return self._video.size_bytes

    def turn(self, record: ChunkRecord) -> dict[str, Any]:
        """Add a chunk's candidates to the trace; what was added. Raises RuntimeError when the disk is full."""
        told = turn_of(record)
        self._trace.add(told)
        self._told[record.index + 1] = self._trace.size_bytes
        return told

    def settle(self, event: ChunkEvent) -> None:
        """Add a settled chunk to the video. Raises RuntimeError when the disk is full."""
        self._video.add(event.frames)
        self._trace.settled(event)
        self._seeds.append(event.seed)
        self._sizes.append((self._video.written.frames, self._video.size_bytes))

    def has(self, turns: int, settled: int) -> bool:
        """Whether both files have come as far."""
        return turns in self._told and settled < len(self._sizes)

    def save(self, packed: Packed, turns: int, settled: int) -> None:
        """Write a snapshot that both files have come as far as. Raises RuntimeError when the disk is full."""
        frames, size = self._sizes[settled]
        mark = Mark(settled, frames, size, turns, self._told[turns], tuple(self._seeds[:settled]))
        for name in (VIDEO, TRACE):
            sync(self._folder / name)  # a snapshot must not outlive what it goes on from
        whole = Packed({"video": packed.tree, "files": asdict(mark)}, packed.tensors)
        snapshot.write(self._folder / SNAPSHOTS, whole, self._made.config, f"{turns:06d}")
        self._told = {at: size for at, size in self._told.items() if at >= turns}

    def finish(self, told: Mapping[str, Any]) -> None:
        """Leave word that the video is whole, for a server that did not live to hear it; snapshots have had their time."""
        fresh = self._folder / f"{DONE}.new"
        try:
            fresh.write_text(json.dumps(told))
            os.replace(fresh, self._folder / DONE)
        except OSError as error:
            log.warning("%s cannot be written: %s", DONE, error.strerror)
            return  # a server that did not hear of it goes on from the snapshot
        self.forget_snapshots()

    def forget_snapshots(self) -> None:
        shutil.rmtree(self._folder / SNAPSHOTS, ignore_errors=True)

    def close(self, outcome: str) -> None:
        """Close both files. Raises RuntimeError when the disk refuses the trace's end."""
        try:
            self._trace.close(outcome)
        finally:
            self._video.close()


def last_saved(folder: Path, made: Made) -> tuple[Packed, Mark] | None:
    """The newest snapshot from which this job can go on; None when none was ever written.

    Raises ValueError with the reasons when there are some and none can be used.
    """
    refused: list[str] = []
    for path in snapshot.snapshots(folder / SNAPSHOTS):
        try:
            whole = snapshot.read(path, made.config)
            mark = _mark(whole.tree.get("files"), path)
            _check_length(folder / VIDEO, mark.bytes)
            _check_length(folder / TRACE, mark.trace_bytes)
            return Packed(whole.tree["video"], whole.tensors), mark
        except (ValueError, KeyError) as error:
            refused.append(str(error))
    if refused:
        raise ValueError(f"cannot go on from any snapshot: {'; '.join(refused)}")
    return None


def has_snapshot(folder: Path) -> bool:
    return bool(snapshot.snapshots(folder / SNAPSHOTS))


def _mark(fields: Any, path: Path) -> Mark:
    """The digest has vouched for the bytes; this is about another program's."""
    try:
        return Mark(**fields | {"seeds": tuple(fields["seeds"])})
    except (TypeError, KeyError):
        raise ValueError(f"{path}: does not say which files it belongs to") from None


def _check_length(path: Path, least: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size < least:
        raise ValueError(f"{path}: want at least {least} bytes to go on, got {size}")
