"""What ``python -m runtime.bench.quality`` was asked for: options, checked before anything is loaded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.arguments import Parser, typed
from runtime.bench.quality.methods import METHODS, SCALING, named
from runtime.bench.quality.prompts import FILES, seeds
from runtime.bench.quality.store import TUNING
from runtime.bench.quality.worlds import WORLDS
from runtime.presets import PRESETS

BATCH = 4  # prompts of the embedded world in one batch: more bring nothing on a CPU
PROMPTS = {"held-out": 128, "tuning": 64}
QUICK = {"prompts": 24, "seeds": 1}  # 5 s videos of every method in about five minutes on two cores
KEPT = 4  # prompts whose videos are kept as frames
# Of the worlds with prompts of the user's: as the paper has it. Their videos are kept as files anyway.
REAL = {
    "vbench": {"prompts": 946, "seconds": [5.0], "keep": 0},
    "moviegen": {"prompts": 128, "seconds": [30.0], "keep": 0},
}
OF_REAL = (
    "prompts_file",
    "preset",
    "vbench_results",
    "vbench_python",
    "vbench_long",
)  # options of theirs alone
# The same candidates without the search, for the scaling law.
SCALING_BASELINE = ("best-of-n[1x2]", "best-of-n", "best-of-n[2x4]", "best-of-n[4x4]")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with their defaults. ValueError for one that makes no sense."""
    parser = Parser(
        prog="python -m runtime.bench.quality",
        description="Does the search help? The paper's tables for this world, with intervals and costs.",
        epilog="Stop it whenever you like: the same command goes on where it was.",
        allow_abbrev=False,
    )
    _add_what(parser)
    _add_how(parser)
    _add_where(parser)
    args = parser.parse_args(list(argv))
    args.split = args.split or ("tuning" if args.sweep else "held-out")
    usual = {"prompts": PROMPTS[args.split], "seconds": [5.0], "keep": KEPT, "seeds": 1}
    usual |= REAL.get(args.world, {}) | (QUICK if args.quick else {})
    for name, value in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    own = [name for name in OF_REAL if getattr(args, name)]
    if own and args.world in WORLDS and args.world not in REAL:
        parser.error(f"--{own[0].replace('_', '-')}: is of the worlds {' and '.join(REAL)}")
    args.methods = methods(args)
    for name in ("prompts", "seeds", "workers", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: want at least 1, got {value}")
    if args.keep < 0:
        parser.error(f"--keep: want at least 0, got {args.keep}")
    if min(args.seconds) <= 0:
        parser.error(f"--seconds: want lengths above 0, got {min(args.seconds)}")
    for path in filter(None, [args.report]):
        if not path.parent.is_dir():
            parser.error(f"--report: there is no folder {path.parent}")
    args.seeds, args.seconds = seeds(args.seeds), tuple(dict.fromkeys(args.seconds))
    # The lists are not mixed: what was tuned on one is no test.
    args.out = args.out / TUNING if args.split == "tuning" else args.out
    return args


def _add_what(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is compared").add_argument
    add(
        "--world", default="sprites", metavar="NAME", help=f"{', '.join(WORLDS)} (default: sprites)"
    )
    text = "lengths of the videos (default: 5, of moviegen 30)"
    add("--seconds", type=float, nargs="+", metavar="S", help=text)
    text = "any of %s; changes go into brackets: stream-t1[4x2], stream-t1[noise.beta=0.3] (default: all)"
    add("--methods", nargs="+", metavar="NAME", help=text % ", ".join(METHODS))
    text = "the first N of the world's list (default: 128, of vbench 946)"
    add("--prompts", type=int, metavar="N", help=text)
    add("--seeds", type=int, metavar="N", help="videos of each prompt and method (default: 1)")
    text = "of the embedded world: held-out for results, tuning for choices (default: held-out)"
    add("--split", choices=FILES, help=text)
    text = "of the other worlds: your own list, VBench_full_info.json or one prompt a line"
    add("--prompts-file", type=Path, metavar="FILE", help=text)
    text = "of the other worlds: generator and rewards (default: longlive)"
    add("--preset", choices=PRESETS, default="", metavar="NAME", help=text)
    text = f"{QUICK['prompts']} prompts of one seed: a first look in five minutes"
    add("--quick", action="store_true", help=text)
    text = "K*M in 1, 2, 4, 8, 16 for stream-t1 and best-of-n (in place of the default methods)"
    add("--scaling", action="store_true", help=text)
    text = "vary a setting, or 'all', on the tuning prompts (in place of the default methods)"
    add("--sweep", nargs="+", default=[], metavar="SETTING", help=text)
    text = "any setting of runtime/settings.py, for all methods"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the world's)")


def _add_how(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how the work is laid out").add_argument
    text = "processes of one thread each (default: one per core on a CPU, one on a GPU)"
    add("--workers", type=int, metavar="N", help=text)
    text = f"prompts that share every forward (default: {BATCH} of sprites, else 1)"
    add("--batch", type=int, metavar="N", help=text)


def _add_where(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where it goes").add_argument
    text = "folder of the rows; what is there is not made again (default: out/quality)"
    add("--out", type=Path, default=Path("out/quality"), metavar="DIR", help=text)
    text = f"keep the frames of the first N prompts, for pictures (default: {KEPT})"
    add("--keep", type=int, metavar="N", help=text)
    add("--report", type=Path, metavar="HTML", help="write a page with tables, curves and strips")
    text = "of the other worlds: read what VBench wrote there, instead of asking it"
    add("--vbench-results", type=Path, metavar="DIR", help=text)
    text = "of the other worlds: Python of the environment that VBench is installed in (default: this one)"
    add("--vbench-python", default="", metavar="FILE", help=text)
    text = "of the other worlds: VBench's long mode for videos of five seconds, too"
    add("--vbench-long", action="store_true", help=text)
    add("--tables-only", action="store_true", help="make nothing; tables of what is there")
    add("--debug", action="store_true", help="show the traceback of an error")


def methods(args: argparse.Namespace) -> tuple[str, ...]:
    """Every method that was asked for, each once and known."""
    asked = list(args.methods or ())
    if args.scaling:
        asked += [*SCALING, *SCALING_BASELINE]
    asked += [method for name in args.sweep for method in _sweep(name)]
    asked = list(dict.fromkeys(asked or METHODS))
    for method in asked:
        named(method)
    return tuple(asked)


def _sweep(name: str) -> tuple[str, ...]:
    from runtime.bench.quality.sweeps import SWEEPS

    wanted = [
        sweep
        for sweep in SWEEPS.values()
        if name in ("all", sweep.setting, sweep.setting.partition(".")[2])
    ]
    if not wanted:
        raise ValueError(f"--sweep: want all or one of {', '.join(SWEEPS)}, got {name!r}")
    return tuple(method for sweep in wanted for method in sweep.methods)


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The caller's own settings. ValueError for a pair that is none, or a value of the wrong kind."""
    found: dict[str, Any] = {"run.device": args.device} if args.device else {}
    for pair in args.set:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: want NAME=VALUE, got {pair!r}")
        if name.strip() in ("seconds", "search.seed", "search.policy", "run.prompts"):
            raise ValueError(
                f"--set: {name.strip()} is what --seconds, --seeds, --methods and --batch say"
            )
        found[name.strip()] = typed(name.strip(), text.strip())
    return found


def workers(asked: int | None, device: str) -> int:
    """How many processes: as asked, else one per core this process may use, on a GPU one."""
    if asked is not None or device != "cpu":
        return asked or 1
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
