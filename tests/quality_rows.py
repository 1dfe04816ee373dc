"""Rows as a comparison writes them, made up: several methods, prompts and seeds, two lengths, with effects that are known."""

import math
import random
from collections.abc import Sequence

from runtime.bench.quality.curves import candidates
from runtime.bench.quality.methods import METHODS, SCALING
from runtime.bench.quality.row import COLUMNS, RIGHT, SPAN, Cost, Key, Row
from runtime.bench.quality.sweeps import SWEEPS

GAIN = {"single": 0.0, "best-of-n": 0.01, "beam": 0.015, "stream-t1": 0.03, "released": 0.02}


def row(method: str, prompt: int = 0, seed: int = 0, seconds: float = 5.0, **more) -> Row:
    """One video. Everything is drawn from its key, so the same key gives the same row."""
    draw = random.Random(f"{method}/{prompt}/{seed}/{seconds}")
    level = GAIN.get(method.partition("[")[0], 0.022) + 0.05 * math.sin(prompt)
    scores = {c: 0.9 + level - 0.02 * i + draw.gauss(0, 0.004) for i, c in enumerate(COLUMNS)}
    scores[RIGHT] = float(draw.random() < 0.8 + 4 * GAIN.get(method, 0.02))
    spans = math.ceil((seconds * 16 + 1) / SPAN)
    falls = 0.002 if method == "stream-t1" else 0.012
    over_time = {
        c: tuple(v - falls * s + draw.gauss(0, 0.003) for s in range(spans))
        for c, v in scores.items()
        if c != RIGHT
    }
    over_time[RIGHT] = tuple(float(draw.random() < 0.95 - 4 * falls * s) for s in range(spans))
    chunks = round(seconds * 16 / 12)
    weights = (1, 0, 0) if method in ("single", "best-of-n", "beam", "no-sinking") else (5, 4, 1)
    drawn = candidates(method) or 1
    kept = 1 if method == "single" else 2
    counts = (chunks * n * drawn for n in (12, 12, 1))
    cost = Cost(chunks * (4 * drawn + kept), *counts, 0.7 * drawn)
    values = {
        "text": f"a red circle, number {prompt}",
        "scores": scores,
        "cost": cost,
        "right": {"colour": True, "shape": scores[RIGHT] == 1.0},
        "seen": {"colour": "red", "shape": "circle" if scores[RIGHT] else "square"},
        "over_time": over_time,
        "routes": tuple(draw.choices(("discard", "ema", "append"), weights, k=chunks)),
    }
    return Row(Key("sprites", seconds, method, prompt, seed), **{**values, **more})


def rows(
    methods: Sequence[str], prompts=12, seeds=2, seconds: Sequence[float] = (5.0,)
) -> list[Row]:
    """A row for every combination."""
    return [
        row(method, prompt, seed, length)
        for length in seconds
        for method in methods
        for prompt in range(prompts)
        for seed in range(seeds)
    ]


def everything() -> list[Row]:
    """All tables' methods at both lengths, the scaling law and two sweeps at five seconds."""
    swept = [m for name in ("noise.beta", "memory.ema_alpha") for m in SWEEPS[name].methods]
    short = dict.fromkeys((*METHODS, *SCALING, "stream-t1[8x2]", "best-of-n[4x4]", *swept))
    return rows(list(short), 8, 1) + rows(list(METHODS), 8, 1, (30.0,))
