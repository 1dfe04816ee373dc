"""Times chunks of one video over ranks: started by torchrun, one process per rank, the first one says what it saw.

python -m torch.distributed.run --nproc-per-node 2 -m runtime.bench.planner.ranked sprites 3 2x2
"""

from __future__ import annotations

import json
import sys
from statistics import median

from runtime.bench.planner.measure import video

TIMEOUT_S = 120.0


def main(arguments: list[str]) -> None:
    import torch

    from runtime.engine import Engine
    from runtime.presets import preset
    from runtime.ranks.door import ranked_engine
    from runtime.settings import launch

    torch.set_num_threads(1)
    name, rounds, size = arguments
    k, m = map(int, size.split("x"))
    ranks = launch()
    if ranks is None:
        raise SystemExit("want to be started by torchrun")
    settings = preset(name).with_changes({"search.histories": k, "search.expansions": m})
    # A trace and a progress bar watch the first rank alone; the frames that they see travel there, and that is timed.
    first = ranks.rank == 0
    with ranked_engine(settings, ranks, TIMEOUT_S, Engine) as engine:
        turns = [turn for _ in range(int(rounds)) for turn in video(engine, settings, first)]
    if first:
        cpu, wall = median(t.cpu_ms for t in turns), median(t.wall_ms for t in turns)
        row = {"histories": k, "expansions": m, "cpu_ms": cpu, "wall_ms": wall}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
