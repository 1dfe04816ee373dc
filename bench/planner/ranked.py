"""Times chunks of one video over ranks: started by torchrun, one process per rank, the first one says what it saw.

python -m torch.distributed.run --nproc-per-node 2 -m runtime.bench.planner.ranked sprites 3 2x2 4x2
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from runtime.bench.planner.measure import PROMPT, fast

TIMEOUT_S = 120.0


def main(arguments: list[str]) -> None:
    import torch

    from runtime.engine import Engine
    from runtime.presets import preset
    from runtime.ranks.door import ranked_engine
    from runtime.settings import launch

    torch.set_num_threads(1)
    name, rounds, *sizes = arguments
    ranks = launch()
    if ranks is None:
        raise SystemExit("want to be started by torchrun")
    found: list[dict[str, Any]] = []
    for size in sizes:
        k, m = map(int, size.split("x"))
        settings = preset(name).with_changes({"search.histories": k, "search.expansions": m})
        with ranked_engine(settings, ranks, TIMEOUT_S, Engine) as engine:
            _video(engine)
            turns = [ms for _ in range(int(rounds)) for ms in _video(engine)]
        found.append({"histories": k, "expansions": m, "chunks": len(turns), "ms": fast(turns)})
    if ranks.rank == 0:
        print(json.dumps(found), flush=True)


def _video(engine: Any) -> list[float]:
    """Milliseconds of the chunks that count, on this rank."""
    own = engine.engine
    first = own.settings.memory.window_chunks - 1
    times: list[float] = []
    mark = time.perf_counter()

    def watch(record: Any) -> None:
        nonlocal mark
        now = time.perf_counter()
        spent, mark = (now - mark) * 1e3, now
        if first <= record.index < record.chunks - 1:
            times.append(spent)

    # A trace and a progress bar watch the first rank alone; the frames that they see travel there, and that is timed.
    rank = engine.world.rank
    for _ in engine.stream(PROMPT, watch=watch if rank == 0 else None):
        pass
    return times or [0.0]


if __name__ == "__main__":
    main(sys.argv[1:])
