"""Times chunks of one video over ranks: started by torchrun, one process per rank, the first one says what it saw.

python -m torch.distributed.run --nproc-per-node 2 -m runtime.bench.planner.ranked sprites 3 2x2 4x2
"""

from __future__ import annotations

import json
import sys
from statistics import median
from typing import Any

from runtime.bench.planner.measure import video

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
            # A trace and a progress bar watch the first rank alone; the frames that they see travel there: that is timed.
            mine = [
                turn
                for _ in range(int(rounds))
                for turn in video(engine, settings, watched=ranks.rank == 0)
            ]
        if mine:
            cpu, wall = median(t.cpu_ms for t in mine), median(t.wall_ms for t in mine)
            found.append({"histories": k, "expansions": m, "ms": cpu, "wall_ms": wall})
    if ranks.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
