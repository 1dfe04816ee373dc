"""``python -m runtime.bench.planner``: a chunk's time on 1 to 64 GPUs, and the GPUs that a rate of requests needs.

python -m runtime.bench.planner                                           one video over 1..64 ranks (H100: computed)
python -m runtime.bench.planner --machine bench/results/sprites_cpu.json  the same from measured stage costs
python -m runtime.bench.planner --rate 1000 --seconds 5 --target-p95 30   the smallest fleet that keeps the promise
python -m runtime.bench.planner --rate 2 --replicas 4 --machine FILE      what such a fleet would do
python -m runtime.bench.planner --measure --json planner.json             measure this machine and check the model on it
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from runtime.__main__ import complain
from runtime.arguments import Parser
from runtime.bench.planner import measure, show
from runtime.bench.planner.chunk import Layout, Link, chunk_time
from runtime.bench.planner.machine import Machine, from_result, h100
from runtime.bench.planner.queueing import DISPATCHES, SPREADS, Fleet, Load, simulate
from runtime.bench.planner.sizing import Promise, smallest
from runtime.plan import chunks_for

CANDIDATES = ((1, 1), (2, 2), (4, 4), (8, 8), (16, 4), (64, 4))
RANKS = (1, 2, 4, 8, 16, 32, 64)
MOST_RATE = 1000.0
TIME_STRIDE = 4
COUNTED = 20_000


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m runtime.bench.planner", allow_abbrev=False)
    parser.description = "Expected time of a chunk over ranks, and GPUs for a rate of requests."
    group = parser.add_argument_group("the machine")
    add = group.add_argument
    text = "h100 (computed, not measured), or a file of runtime.bench --json or of --measure"
    add("--machine", default="h100", metavar="NAME|FILE", help=text + " (default: h100)")
    add("--link-gb-per-s", type=float, default=300.0, help="between two ranks (default: 300)")
    add("--gather-ms", type=float, default=0.05, help="an exchange of scores, per doubling")
    group = parser.add_argument_group("one video over ranks")
    add = group.add_argument
    add("--candidates", nargs="+", type=pair, metavar="KxM", help="default: 1x1 to 64x4")
    add("--ranks", nargs="+", type=int, default=RANKS, metavar="N")
    add("--reward-ranks", type=int, default=0, metavar="N", help="ranks that only judge")
    add("--stride", type=int, default=1, metavar="N", help="of the image reward")
    add("--parts", action="store_true", help="stage by stage")
    group = parser.add_argument_group("many requests")
    add = group.add_argument
    add("--rate", type=float, metavar="N", help=f"requests a second, at most {MOST_RATE:g}")
    add("--seconds", type=float, default=5.0, metavar="S", help="of each video (default: 5)")
    add("--target-p95", type=float, default=math.inf, metavar="S", help="95 %% done within S")
    add("--target-first", type=float, default=math.inf, metavar="S", help="first chunk, likewise")
    add("--refused", type=float, default=0.01, metavar="SHARE", help="allowed (default: 0.01)")
    add("--replicas", type=int, metavar="N", help="simulate these instead of looking for a number")
    add("--gpus", type=int, default=1, metavar="N", help="of one replica (default: 1)")
    add("--batch", nargs="+", type=int, default=[1, 4], metavar="N", help="videos in a turn")
    add("--room", type=float, default=8, metavar="N", help="that may wait per replica (default: 8)")
    add("--dispatch", choices=DISPATCHES, default="shortest")
    add("--spread", choices=SPREADS, default="lognormal", help="of a turn's time")
    text = (
        f"simulated seconds that count (default: {COUNTED} requests, at least 60 s and 10 videos)"
    )
    add("--window", type=float, metavar="S", help=text)
    add("--seed", type=int, default=0, metavar="N")
    group = parser.add_argument_group("measurement")
    add = group.add_argument
    add("--measure", action="store_true", help="time this machine and hold the model against it")
    add("--rounds", type=int, default=3, metavar="N", help="videos of each size (default: 3)")
    add("--preset", default="sprites", help="what is measured (default: sprites)")
    add("--json", type=Path, metavar="FILE", help="write what was measured there")
    args = parser.parse_args(arguments)
    if args.rate is not None and not 0 < args.rate <= MOST_RATE:
        parser.error(f"--rate: want a rate above 0 and at most {MOST_RATE:g}, got {args.rate:g}")
    if not (args.link_gb_per_s > 0 and args.gather_ms >= 0):
        parser.error("--link-gb-per-s: want more than 0, --gather-ms at least 0")
    if min(args.batch) < 1 or args.gpus < 1 or (args.replicas or 1) < 1 or args.rounds < 1:
        parser.error("--batch, --gpus, --replicas, --rounds: want at least 1")
    return args


def pair(text: str) -> tuple[int, int]:
    """ "4x2" -> (4, 2)."""
    left, _, right = text.partition("x")
    if not (left.isdecimal() and right.isdecimal() and int(left) and int(right)):
        raise argparse.ArgumentTypeError(f"want K x M as 4x2, got {text!r}")
    return int(left), int(right)


def main(arguments: list[str] | None = None) -> int:
    try:
        args = parse(arguments)
        if args.measure:
            return _measure(args)
        machine = machine_of(args.machine)
        link = Link(args.link_gb_per_s, args.gather_ms)
        print(show.head(machine, link))
        print()
        print(_chunks(args, machine, link) if args.rate is None else _fleets(args, machine, link))
    except (ValueError, RuntimeError, OSError) as error:
        complain("error", error)
        return 2
    return 0


def machine_of(name: str) -> Machine:
    """ValueError for a file that is none of the kinds that are read."""
    if name == "h100":
        return h100()
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"--machine: want h100 or a file, got {name!r}")
    return measure.machine_from(path) if measure.is_ours(path) else from_result(path)


def _chunks(args: argparse.Namespace, machine: Machine, link: Link) -> str:
    columns = []
    for k, m in args.candidates or CANDIDATES:
        layouts = [Layout(n, k, m, args.stride, min(args.reward_ranks, n - 1)) for n in args.ranks]
        columns.append([chunk_time(machine, layout, link) for layout in layouts])
    if args.parts:
        return show.parts_table([time for column in columns for time in column])
    return show.chunk_table(columns, machine)


def _fleets(args: argparse.Namespace, machine: Machine, link: Link) -> str:
    chunks = chunks_for(args.seconds, machine.fps, TIME_STRIDE)
    promise = Promise(args.target_p95, args.target_first, args.refused)
    lines = []
    for k, m in args.candidates or ((2, 2),):
        layout = Layout(args.gpus, k, m, args.stride, min(args.reward_ranks, args.gpus - 1))
        alone = chunk_time(machine, layout, link).total * chunks / 1e3
        window = args.window or max(60.0, COUNTED / args.rate, 10 * alone)
        # Long enough for the fleet to be as full as it gets.
        load = Load(args.rate, chunks, window, max(3 * alone, window / 10), args.seed)
        title = f"K={k} M={m} stride {args.stride}, {args.gpus} GPU a replica; {{}}"
        lines += [title.format(show.load_line(load, args.seconds)), show.FLEET_HEAD]
        for batch in args.batch:
            turns = {b: chunk_time(machine, layout, link, b).total for b in range(1, batch + 1)}

            def fleet_of(replicas: int, batch: int = batch, turns: dict = turns) -> Fleet:
                return Fleet(
                    replicas, batch, turns.__getitem__, args.room, args.dispatch, args.spread
                )

            lines.append(_row(args, fleet_of, load, promise, batch))
    return "\n".join(lines)


def _row(args, fleet_of, load: Load, promise: Promise, batch: int) -> str:
    if args.replicas is not None:
        return show.fleet_row(
            args.replicas, args.gpus, batch, simulate(fleet_of(args.replicas), load)
        )
    try:
        return show.sized_row(smallest(fleet_of, load, promise), args.gpus)
    except ValueError as error:
        return f"batch {batch}: {error}"


def _measure(args: argparse.Namespace) -> int:
    result = measure.take(args.preset, args.rounds)
    print(measure.table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
