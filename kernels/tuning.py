"""Launch configurations as data: the nearest measured one for this GPU, a conservative default otherwise.

``kernels/tuned/<kernel>.<gpu>.json`` holds what ``python -m runtime.bench.tune <kernel>`` measured on that GPU,
``kernels/tuned/<kernel>.default.json`` what is safe everywhere. Both are a list of rows under "rows":

    {"shape": {"head_dim": 128, "tokens": 4680}, "config": {"BLOCK_M": 128, "num_warps": 8, "num_stages": 3}}

Numbers in "shape" are compared by the ratio, words must be equal; the nearest row wins, the first of equals. Nothing is
ever timed here: a launch inside a graph capture must not measure.
"""

import functools
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "tuned"
Config = dict[str, int]
Shape = Mapping[str, int | str]

log = logging.getLogger(__name__)


def gpu_name(device: torch.device | str | None = None) -> str:
    """The GPU's name as file names spell it; "default" where there is none."""
    if not torch.cuda.is_available():
        return "default"
    return torch.cuda.get_device_name(device).replace(" ", "_").replace("/", "-")


def nearest(kernel: str, shape: Shape, gpu: str = "default", folder: Path = FOLDER) -> Config:
    """The configuration of the row of ``kernel`` that lies nearest to ``shape``, measured on ``gpu`` if there is one."""
    return dict(_nearest(kernel, tuple(sorted(shape.items())), gpu, folder))


def rows(kernel: str, gpu: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Every row of one file; an empty list where there is no such file."""
    path = folder / f"{kernel}.{gpu}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []


def shipped(kernel: str, folder: Path = FOLDER) -> list[Config]:
    """Every configuration of ``kernel`` that a launch could choose, each once."""
    found: list[Config] = []
    for path in sorted(folder.glob(f"{kernel}.*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if row["config"] not in found:
                found.append(row["config"])
    return found


@functools.lru_cache(maxsize=4096)
def _nearest(
    kernel: str, items: tuple[tuple[str, int | str], ...], gpu: str, folder: Path
) -> Config:
    shape = dict(items)
    for name in dict.fromkeys((gpu, "default")):
        near = [
            (_distance(row["shape"], shape), row["config"]) for row in rows(kernel, name, folder)
        ]
        near = [pair for pair in near if math.isfinite(pair[0])]
        if near:
            if name != gpu:
                log.info("%s: not tuned for %s at %s; its default is used", kernel, gpu, shape)
            return min(near, key=lambda pair: pair[0])[1]
    raise ValueError(
        f"{kernel}: no configuration for {shape}; kernels/tuned/{kernel}.default.json must have a row for it"
    )


def _distance(row: Shape, shape: Shape) -> float:
    """Sum of the logarithms of the ratios; infinite where a word differs. What the row leaves out does not count."""
    total = 0.0
    for name, want in row.items():
        got = shape.get(name)
        if isinstance(want, str) or isinstance(got, str) or got is None:
            if want != got:
                return math.inf
            continue
        total += abs(math.log(max(got, 1) / max(want, 1)))
    return total
