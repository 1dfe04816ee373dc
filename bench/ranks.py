"""How long a chunk takes over some ranks: ``torchrun --nproc-per-node=N -m runtime.bench.ranks [--set NAME=VALUE]``.

Without torchrun it measures one process. The first rank prints one JSON object: seconds of a video without its first two
chunks, which load and warm up, and of every rank the processor's seconds and the milliseconds of its stages per chunk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import Counter
from collections.abc import Sequence

from runtime.arguments import typed
from runtime.engine import Engine
from runtime.ranks.door import ranked_engine
from runtime.ranks.engine import RankedEngine
from runtime.ranks.launch import launch
from runtime.settings import Settings

WARM_CHUNKS = 2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.ranks", description=__doc__)
    parser.add_argument("--prompt", default="a red circle moves left")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rank-timeout", type=float, default=600.0)
    options = parser.parse_args(argv)
    pairs = [pair.partition("=") for pair in options.set]
    settings = Settings().with_changes({name: typed(name, text) for name, _, text in pairs})
    here = launch()
    with contextlib.ExitStack() as stack:
        if here is None:
            print(json.dumps(whole(settings, [measured(Engine(settings), options.prompt)])))
            return
        ranked = ranked_engine(settings, here, options.rank_timeout, Engine)
        engine = stack.enter_context(ranked)
        told = engine.world.texts("times", json.dumps(measured(engine, options.prompt)))
        if here.rank == 0:
            print(json.dumps(whole(settings, [json.loads(text) for text in told])))


def measured(engine: Engine | RankedEngine, prompt: str) -> dict:
    """One rank's times of one video."""
    stages: Counter[str] = Counter()
    marks: list[tuple[float, float]] = []

    def watch(record) -> None:
        marks.append((time.perf_counter(), time.process_time()))
        if record.index >= WARM_CHUNKS:
            stages.update(record.stage_ms)

    for _ in engine.stream(prompt, watch=watch):
        pass
    (wall, cpu), (last_wall, last_cpu) = marks[WARM_CHUNKS - 1], marks[-1]
    chunks = len(marks) - WARM_CHUNKS
    return {
        "chunks": chunks,
        "chunk_ms": round(1000 * (last_wall - wall) / chunks, 1),
        "chunk_cpu_ms": round(1000 * (last_cpu - cpu) / chunks, 1),
        "stage_ms": {name: round(ms / chunks, 1) for name, ms in sorted(stages.items())},
    }


def whole(settings: Settings, ranks: Sequence[dict]) -> dict:
    """What is printed."""
    search = settings.search
    return {
        "histories": search.histories,
        "expansions": search.expansions,
        "generator": settings.run.generator,
        "litters": settings.run.litters,
        "ranks": ranks,
    }


if __name__ == "__main__":
    main()
