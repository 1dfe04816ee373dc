"""An engine made of true costs and noise, to hold a budget against: milliseconds per stage for the work of a turn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.budget import Budget
from runtime.costs import Work

SPRITES = {  # stage -> (fixed ms, ms per row, kept history or picture): like the embedded model on two cores
    "noise": (0.1, 0.03),
    "denoise": (15.0, 12.0),
    "decode": (4.0, 13.0),
    "video reward": (2.0, 3.0),
    "image reward": (1.0, 0.18),
    "memory": (2.0, 3.5),
    "emit": (0.1, 0.1),
}
PICTURES = {  # the image reward is most of the work, as at full size
    "denoise": (6.0, 143.0),
    "decode": (1.0, 51.0),
    "video reward": (3.0, 23.0),
    "image reward": (2.0, 16.9),
    "memory": (1.0, 32.0),
}
GROWS = {"memory": "kept", "emit": "kept", "image reward": "pictures"}


@dataclass
class Simulated:
    """True costs. ``slow`` and ``others`` say for a chunk how slow the machine is and how many rows are not ours."""

    stages: dict[str, tuple[float, float]]
    noise: float = 0.05  # relative, per stage
    slow: Callable[[int], float] = lambda index: 1.0
    others: Callable[[int], int] = lambda index: 0
    seed: int = 0
    spikes: float = 0.0  # share of chunks that take four times as long
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def turn(self, index: int, work: Work) -> dict[str, float]:
        hiccup = 4.0 if self._random.random() < self.spikes else 1.0
        times = {}
        for name, (fixed, each) in self.stages.items():
            ms = fixed + each * getattr(work, GROWS.get(name, "rows"))
            times[name] = (
                ms * hiccup * self.slow(index) * math.exp(self._random.gauss(0, self.noise))
            )
        if index == 0:
            times["text"] = 4.0
        return times

    def true_ms(self, histories: int, expansions: int, stride: int, frames: int = 12) -> float:
        """What a chunk takes without noise, slowness and company."""
        rows = histories * expansions
        work = Work(rows, histories, rows * math.ceil(frames / stride))
        return sum(
            fixed + each * getattr(work, GROWS.get(name, "rows"))
            for name, (fixed, each) in self.stages.items()
        )

    def run(self, budget: Budget, chunks: int) -> list[tuple[int, int, int]]:
        """Make a video; what was chosen, chunk by chunk."""
        histories, chosen = 1, []
        for index in range(chunks):
            choice = budget.choose(index, histories)
            now = histories if index else choice.histories
            rows = now * choice.expansions
            histories = min(choice.histories, rows)
            frames = 12 if index else 9
            others = self.others(index)
            share = rows / (rows + others)
            pictures = rows * math.ceil(frames / choice.stride) + others * 12
            times = self.turn(index, Work(rows + others, histories / share, pictures))
            budget.observe(choice, rows, histories, frames, times, share)
            chosen.append((choice.histories, choice.expansions, choice.stride))
        return chosen
