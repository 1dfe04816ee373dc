"""``python -m runtime.bench.reward_backends GRAPHS``: whole videos with the rewards on torch and on onnxruntime, in turns.

One process, one thread, both engines loaded; each turn makes the same video with either, first one first, then the other.
The ratio of processor times is the figure to read on a machine with other work; that of wall times is beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from runtime.engine import Engine
from runtime.settings import Settings

PROMPT = "a red circle moving right quickly on a navy background"
BACKENDS = ("torch", "onnxruntime")


def timed(engine: Engine) -> tuple[float, float]:
    """Seconds of wall time and of processor time that one video takes."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in engine.stream(PROMPT):
        pass
    return time.perf_counter() - wall, time.process_time() - processor


def ratios(engines: dict[str, Engine], turns: int) -> list[tuple[float, float]]:
    """Of each turn, how many times longer torch took: by wall time, by processor time."""
    found = []
    for turn in range(turns):
        order: Sequence[str] = BACKENDS if turn % 2 else BACKENDS[::-1]
        spent = {name: timed(engines[name]) for name in order}
        torch_time, ort_time = (spent[name] for name in BACKENDS)
        found.append((torch_time[0] / ort_time[0], torch_time[1] / ort_time[1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.reward_backends")
    parser.add_argument(
        "graphs", help="where `python -m runtime.export` wrote both embedded rewards"
    )
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a video")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = Settings().with_changes({"seconds": options.seconds, "reward.graphs": options.graphs})
    engines = {name: Engine(base.with_changes({"reward.backend": name})) for name in BACKENDS}
    for engine in engines.values():
        timed(engine)
    measured = ratios(engines, options.turns)
    for column, kind in enumerate(("wall", "processor")):
        values = sorted(turn[column] for turn in measured)
        low, high = values[len(values) // 5], values[-1 - len(values) // 5]
        print(
            f"{kind} time, torch over onnxruntime: median {statistics.median(values):.3f}, "
            f"p20 {low:.3f}, p80 {high:.3f}, {len(values)} turns"
        )


if __name__ == "__main__":
    main()
