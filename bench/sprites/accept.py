"""How often the embedded generator shows what it was told, judged by the analytic checker on captions it never saw.

``python -m runtime.bench.sprites.accept`` generates one video per held-out caption and prints the share of clips in which
each attribute is right, and the share in which shape, colour, motion and background all are, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.environment import environment
from runtime.bench.sprites.checker import Verdict, check_clip
from runtime.bench.sprites.world import Caption, held_out_captions
from runtime.engine import Engine
from runtime.presets import preset

ATTRIBUTES = ("shape", "colour", "motion", "background", "speed")
MEASURES = ("subject_consistency", "background_consistency", "smoothness", "presence", "imaging")


@dataclass(frozen=True, slots=True)
class Accepted:
    """Rates over a set of captions."""

    verdicts: tuple[Verdict, ...]
    seconds: float  # wall time of generation

    def rate(self, attribute: str) -> float:
        """Share of clips in which ``attribute`` (or "all") is right."""
        hits = [v.all_right if attribute == "all" else v.right(attribute) for v in self.verdicts]
        return sum(hits) / len(hits)

    def measure(self, name: str) -> float:
        """Mean of one of the checker's continuous measures."""
        return sum(getattr(verdict, name) for verdict in self.verdicts) / len(self.verdicts)

    def table(self) -> dict[str, float]:
        rates = {name: self.rate(name) for name in (*ATTRIBUTES, "all")}
        return rates | {name: self.measure(name) for name in MEASURES}


def wilson(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson score)."""
    centre = rate + z * z / (2 * count)
    spread = z * ((rate * (1 - rate) + z * z / (4 * count)) / count) ** 0.5
    scale = 1 + z * z / count
    return (centre - spread) / scale, (centre + spread) / scale


def generate(engine: Engine, caption: Caption) -> Tensor:
    """One whole video, [T, 3, H, W] in [0, 1]."""
    return torch.cat([event.frames for event in engine.stream(caption.text)])


def accept(engine: Engine, captions: Sequence[Caption]) -> Accepted:
    """Generate and check every caption."""
    verdicts, spent = [], 0.0
    for caption in captions:
        began = time.perf_counter()
        frames = generate(engine, caption)
        spent += time.perf_counter() - began
        verdicts.append(check_clip(frames, caption))
    return Accepted(tuple(verdicts), spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.sprites.accept", description=__doc__
    )
    parser.add_argument("--captions", type=int, default=128)
    parser.add_argument("--policy", default="single")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    changes = {"search.policy": args.policy, "seconds": args.seconds, "search.seed": args.seed}
    engine = Engine(preset("sprites").with_changes(changes))
    result = accept(engine, held_out_captions(args.captions))
    count = args.captions
    print(
        f"{count} held-out captions, {args.policy}, {args.seconds} s, seed {args.seed}, {result.seconds:.0f} s"
    )
    for name in (*ATTRIBUTES, "all"):
        low, high = wilson(result.rate(name), count)
        print(f"{name:<11}{result.rate(name):7.1%}   ({low:.1%} to {high:.1%})")
    for name in MEASURES:
        print(f"{name:<24}{result.measure(name):.3f}")
    if args.json:
        facts = {
            "captions": count,
            "policy": args.policy,
            "seconds": args.seconds,
            "seed": args.seed,
        }
        place = environment(engine.settings, engine.implementations)
        rows = facts | result.table() | {"environment": place}
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
