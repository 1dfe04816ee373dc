"""``python -m runtime.bench.tune <kernel>``: measures every sensible launch configuration on this GPU and keeps the fastest.

The winners go to ``kernels/tuned/<kernel>.<gpu>.json``, where launches find them. A configuration that does not fit the
GPU or is less exact than it must be cannot win. Nothing is written when any shape has no winner.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from runtime.bench.clock import Times, time_in_turns
from runtime.bench.environment import commit
from runtime.kernels import triton_lang, tuning
from runtime.kernels.tuning import Config, Shape

KERNELS = (
    "slerp_noise",
    "window_attention",
    "ema_merge",
    "qk_norm_rope_store",
    "adaln",
    "frame_pack",
    "reward_patches",
    "fp8_quantize",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tunable:
    """One shape of a kernel. ``bench/<kernel>.py`` yields these from ``tunables(device)``."""

    shape: Shape  # as the launcher asks ``tuning.nearest``
    space: list[Config]
    run: Callable[[Config], Any]  # one launch and what it made
    error: Callable[[Any], float]  # the largest error of what a launch made
    allowed_error: float


def rounding(exact: Any, dtype: torch.dtype = torch.bfloat16) -> float:
    """The error that one rounding step of the largest value makes, twice: a bound for a sound kernel."""
    values = (exact,) if isinstance(exact, torch.Tensor) else exact
    return 2 * torch.finfo(dtype).eps * max(float(value.abs().max()) for value in values)


def main() -> int:
    args = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not torch.cuda.is_available():
        print(
            "error: tuning measures on a GPU, and this machine has no usable one", file=sys.stderr
        )
        return 2
    device = torch.device("cuda")
    bench = importlib.import_module(f"runtime.bench.{args.kernel}")
    gpu = tuning.gpu_name(device)
    path = args.out or tuning.FOLDER / f"{args.kernel}.{gpu}.json"
    write(path, args.kernel, gpu, tune(bench.tunables(device), device))
    print(f"wrote {path}")
    return 0


def tune(
    tunables: Iterable[Tunable], device: torch.device, clock: Callable[..., Any] = time_in_turns
) -> list[dict[str, Any]]:
    """The fastest sound configuration of each shape, as rows of a tuned file. RuntimeError if a shape has none."""
    rows = []
    for tunable in tunables:
        sound = {place: c for place, c in enumerate(tunable.space) if _is_sound(tunable, c)}
        if not sound:
            raise RuntimeError(f"no configuration works for {dict(tunable.shape)}")
        times: dict[int, Times] = clock(
            {place: partial(tunable.run, config) for place, config in sound.items()}, device
        )
        best = min((spent.median_ms, place) for place, spent in times.items())[1]
        log.info(
            "%s: %s, %.4f ms, %d of %d configurations sound",
            dict(tunable.shape),
            sound[best],
            times[best].median_ms,
            len(sound),
            len(tunable.space),
        )
        rows.append(
            {
                "shape": dict(tunable.shape),
                "config": sound[best],
                "median_ms": times[best].median_ms,
                "max_error": tunable.error(tunable.run(sound[best])),
            }
        )
    return rows


def _is_sound(tunable: Tunable, config: Config) -> bool:
    """Whether the configuration launches and is exact; anything but a lack of resources is passed on."""
    try:
        error = tunable.error(tunable.run(config))
    except triton_lang.triton.runtime.errors.OutOfResources as reason:
        log.info("%s: %s", config, reason)
        return False
    if not error <= tunable.allowed_error:
        log.warning("%s: error %.2e, want at most %.2e", config, error, tunable.allowed_error)
        return False
    return True


def write(path: Path, kernel: str, gpu: str, rows: list[dict[str, Any]]) -> None:
    """One file: what was measured, with what."""
    record = {
        "kernel": kernel,
        "gpu": gpu,
        "torch": torch.__version__,
        "triton": triton_lang.triton.__version__,
        "commit": commit(),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.tune", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("--out", type=Path, help="write here instead of kernels/tuned/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
