"""Times the line stage by stage over whole videos and reduces the times to a table. No opinions, no printing."""

from __future__ import annotations

import importlib.util
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import runtime
from runtime.engine import Engine
from runtime.kernels.frame_pack import yuv420
from runtime.settings import Settings
from runtime.telemetry import STAGES
from runtime.types import ChunkRecord

WARMUP_SECONDS = 2.0


@dataclass
class Timing:
    """What one engine took: per stage and chunk, per video, and how much came out."""

    stage_ms: dict[str, list[float]] = field(default_factory=dict)
    chunk_ms: list[float] = field(default_factory=list)
    video_seconds: list[float] = field(default_factory=list)
    frames: int = 0
    first_chunk_ms: list[float] = field(default_factory=list)

    @property
    def pixel_fps(self) -> float:
        """Pixel frames over wall time; text, denoising, decoder, rewards, search and MP4 writing are inside."""
        return self.frames / sum(self.video_seconds)

    def stages(self) -> dict[str, dict[str, float]]:
        """Median and p95 ms per chunk (of the chunks in which the stage ran) and the share of all stages' time."""
        total = sum(sum(times) for times in self.stage_ms.values())
        return {
            name: {
                "median_ms": statistics.median(times),
                "p95_ms": percentile(times, 95),
                "share": sum(times) / total,
            }
            for name in STAGES
            if (times := self.stage_ms.get(name))
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered) + 0.5) - 1))]


def time_videos(settings: Settings, prompts: Sequence[str], warmups: int = 1) -> Timing:
    """Generate every prompt and write it to a temporary MP4, after ``warmups`` short videos that are not counted."""
    engine, timing = Engine(settings), Timing()
    short = Engine(settings.with_changes({"seconds": min(WARMUP_SECONDS, settings.seconds)}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        for _ in range(warmups):
            _time_video(short, prompts[0], path, Timing())
        for prompt in prompts:
            _time_video(engine, prompt, path, timing)
    return timing


def _time_video(engine: Engine, prompt: str, path: Path, timing: Timing) -> None:
    marks: list[float] = []

    def note(record: ChunkRecord) -> None:
        now = time.perf_counter()
        (timing.chunk_ms if marks else timing.first_chunk_ms).append(
            (now - (marks[-1] if marks else began)) * 1e3
        )
        marks.append(now)
        for name, spent in record.stage_ms.items():
            timing.stage_ms.setdefault(name, []).append(spent)

    began = time.perf_counter()
    written_ms = 0.0
    with open_writer(path, engine) as writer:
        for event in engine.stream(prompt, watch=note):
            before = time.perf_counter()
            writer.add(event.frames)
            written_ms += (time.perf_counter() - before) * 1e3
            timing.frames += len(event.frames)
    emit = timing.stage_ms.setdefault("emit", [0.0] * len(marks))
    for place in range(
        len(emit) - len(marks), len(emit)
    ):  # writing comes in bursts: spread over the video's chunks
        emit[place] += written_ms / len(marks)
    timing.video_seconds.append(time.perf_counter() - began)


class YuvWriter:
    """Stands in for the MP4 writer on a machine without PyAV: packs frames and writes the bytes an encoder would get."""

    def __init__(self, path: Path, ops: str) -> None:
        self.file, self.ops = path.open("wb"), ops

    def __enter__(self) -> YuvWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, frames: torch.Tensor) -> None:
        self.file.write(yuv420(frames.float().contiguous(), self.ops).cpu().numpy().tobytes())


def output_kind() -> str:
    """What happens to finished frames inside the measured time."""
    found = importlib.util.find_spec("av") is not None
    return "encoded to MP4" if found else "packed to yuv420, not encoded: PyAV is not installed"


def open_writer(path: Path, engine: Engine) -> Any:
    """The MP4 writer of ``python -m runtime``, or ``YuvWriter``; ``output_kind`` says which."""
    if importlib.util.find_spec("av") is None:
        return YuvWriter(path, engine.settings.run.ops)
    from runtime.video import VideoWriter

    return VideoWriter(path, engine.fps, ops=engine.settings.run.ops)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def environment(settings: Settings, implementations: dict[str, str]) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    cuda = torch.cuda.is_available()
    return {
        "runtime": runtime.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "device": settings.run.device,
        "dtype": settings.run.dtype,
        "output": output_kind(),
        "implementations": implementations,
        "seed": settings.search.seed,
    }


def commit() -> str | None:
    """The checkout's commit, with ``+`` when files differ from it; None outside a checkout."""
    root = Path(runtime.__file__).parent.parent
    try:
        run = ["git", "-C", str(root)]
        head = subprocess.run(
            [*run, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
