"""On what scale does each reward score a generator's candidates? The numbers that an ensemble of rewards needs.

    python -m runtime.bench.calibrate hpsv3 imagereward --preset longlive --prompts-file mine.txt -o statistics.json

A search runs on the prompts as it always does, with the rewards that it always asks. Beside them every named reward scores the very
same clips: a model that wants one chunk sees what the image reward sees, one that wants more what the video reward sees.
Written are mean, standard deviation (with n - 1) and number of the scores that are finite, and under "about" what made them.
``reward.statistics`` takes the file.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import runtime
from runtime.__main__ import complain
from runtime.arguments import Parser, read_prompts, typed
from runtime.bench.agreement import SEED_STEP
from runtime.bench.environment import commit, cpu_name, version, weights_of
from runtime.engine import Engine
from runtime.output import OutputFile
from runtime.parts import DTYPES, Parts
from runtime.presets import PRESETS, preset
from runtime.rewards import load_reward
from runtime.rewards.ensemble import ABOUT, LEAST_SAMPLES, members_of
from runtime.settings import Settings, weights_home
from runtime.types import Clip, RewardModel


@dataclass
class Spread:
    """Mean and deviation of numbers that come one after the other (Welford's sums)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # of distances from the mean
    lost: int = 0  # that were not finite

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            self.lost += 1
            return
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def table(self) -> dict[str, float | int]:
        return {"mean": self.mean, "std": self.std, "samples": self.count, "not_finite": self.lost}


@dataclass
class Listener:
    """A reward that is asked as before, beside which others are asked the same."""

    asked: RewardModel
    others: Mapping[str, RewardModel]
    found: dict[str, Spread] = field(default_factory=dict)

    @property
    def horizon(self) -> int:
        return self.asked.horizon

    def score(self, clip: Clip) -> Tensor:
        for name, model in self.others.items():
            spread = self.found.setdefault(name, Spread())
            for value in model.score(clip).double().cpu().tolist():
                spread.add(value)
        return self.asked.score(clip)


def measure(
    settings: Settings,
    models: Mapping[str, RewardModel],
    prompts: Sequence[str],
    videos: int,
    parts: Parts | None = None,
) -> dict[str, Spread]:
    """How every model scores the candidates of ``videos`` videos of each prompt, from seeds of their own.

    RuntimeError where the search does not ask rewards at every chunk, or also asks them for whole videos.
    """
    parts = parts or Parts.load(settings)
    if parts.image is None or parts.video is None:
        raise RuntimeError(f"search.policy: {settings.search.policy!r} asks no rewards; use 'stream-t1' or 'beam'")  # fmt: skip
    image = Listener(parts.image, {n: m for n, m in models.items() if m.horizon == 1})
    video = Listener(parts.video, {n: m for n, m in models.items() if m.horizon > 1})
    heard = replace(parts, image=image, video=video, final=parts.final or parts.video)
    for number in range(videos):
        seed = settings.search.seed + number * SEED_STEP
        engine = Engine(settings.with_changes({"search.seed": seed}), heard)
        if not engine.policy.judges:
            raise RuntimeError(f"search.policy: {settings.search.policy!r} asks rewards about whole videos only; use 'stream-t1' or 'beam'")  # fmt: skip
        for prompt in prompts:
            for _ in engine.stream(prompt):
                pass
    return image.found | video.found


def report(found: Mapping[str, Spread], about: Mapping[str, Any]) -> dict[str, Any]:
    """The file's content. ValueError for a reward that said too little, or always the same."""
    for name, spread in found.items():
        if spread.count < LEAST_SAMPLES or not spread.std > 0.0:
            raise ValueError(
                f"{name}: gave {spread.count} finite scores that differ by {spread.std}; an ensemble cannot use it so"
            )
    return {name: found[name].table() for name in sorted(found)} | {ABOUT: dict(about)}


def about(settings: Settings, prompts: Sequence[str], videos: int) -> dict[str, Any]:
    """What somebody needs to measure the same again."""
    joined = "\n".join(prompts).encode()
    return {
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(joined).hexdigest(),
        "videos_of_each": videos,
        "generator": settings.run.generator,
        "generator_weights": weights_of(settings.run.generator, settings.run.weights),
        "reward_weights": settings.reward.weights or f"packaged, else in {weights_home()}",
        "searched_with": [settings.reward.image, settings.reward.video],
        "seconds": settings.seconds,
        "seed": settings.search.seed,
        "candidates": settings.search.histories * settings.search.expansions,
        "stride": settings.reward.stride,
        "window_chunks": settings.reward.window_chunks,
        "runtime": runtime.__version__,
        "torch": version("torch"),
        "cpu": cpu_name(),
        "device": settings.run.device,
        "commit": commit(),
    }


def main() -> int:
    try:
        args = _arguments()
        settings = _settings(args)
        prompts = _prompts(args)
        names = list(dict.fromkeys(name for text in args.names for name in members_of(text)))
        with contextlib.closing(OutputFile(args.output, "--output")) as output:
            parts = Parts.load(settings)  # first, for it looks whether the device is there
            models = {name: _load(name, settings) for name in names}
            found = measure(settings, models, prompts, args.videos, parts)
            table = report(found, about(settings, prompts, args.videos))
            output.append((json.dumps(table, indent=1) + "\n").encode())
    except (ValueError, RuntimeError, OSError) as error:
        complain("error", error)
        return 2
    for name, spread in found.items():
        print(f"{name:<16}mean {spread.mean:>9.4f}  std {spread.std:>8.4f}  of {spread.count}")
    return 0


def _load(name: str, settings: Settings) -> RewardModel:
    return load_reward(
        name, settings.run.device, settings.reward.weights, DTYPES[settings.run.dtype]
    )


def _settings(args: argparse.Namespace) -> Settings:
    changes: dict[str, Any] = {}
    for pair in args.set:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: want NAME=VALUE, got {pair!r}")
        changes[name.strip()] = typed(name.strip(), text.strip())
    return preset(args.preset).with_changes(changes)


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts_file is not None:
        return read_prompts(args.prompts_file)
    if not args.preset.startswith("sprites"):
        raise ValueError("--prompts-file: give prompts, for captions of the embedded world say little about this generator's scores")  # fmt: skip
    from runtime.bench.sprites.world import held_out_captions

    return [caption.text for caption in held_out_captions(args.prompts)]


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m runtime.bench.calibrate", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="rewards, or ensembles of them")
    add("-o", "--output", type=Path, required=True, metavar="JSON")
    add("--preset", choices=PRESETS, default="sprites")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting")
    add("--prompts", type=int, default=16, metavar="N", help="captions that training never saw")
    add("--prompts-file", type=Path, metavar="FILE", help="prompts of yours instead, one a line")
    add("--videos", type=int, default=1, metavar="N", help="of each prompt")
    args = parser.parse_args()
    if min(args.prompts, args.videos) < 1:
        parser.error("--prompts and --videos: want at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
