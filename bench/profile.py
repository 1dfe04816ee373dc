"""A trace of one video for chrome://tracing or Perfetto: every operation, and the line's stages as ranges around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from runtime.bench.measure import make_video
from runtime.engine import Engine

PROFILED_CHUNKS = 4  # what follows looks alike, and the file grows with every operation
ROWS = 40


def profile(engine: Engine, prompts: Sequence[str], folder: Path) -> Path:
    """Make the first chunks of a video under torch's profiler; writes trace.json.gz and operations.txt to ``folder``.

    Call it on a warm engine. The profiler slows the host down: read shares and gaps from it, not times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = engine.parts.generator.device.type == "cuda"
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as taken:
        make_video(engine, prompts, most=PROFILED_CHUNKS)
    trace = folder / "trace.json.gz"
    taken.export_chrome_trace(str(trace))
    by = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = taken.key_averages().table(sort_by=by, row_limit=ROWS)
    (folder / "operations.txt").write_text(table + "\n")
    return trace
