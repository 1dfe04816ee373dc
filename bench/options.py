"""What ``python -m runtime.bench`` was asked for: options, the settings they make, and the baselines there are."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.arguments import Parser, typed
from runtime.bench.sweep import AXES
from runtime.presets import PRESETS, preset
from runtime.rewards import PUBLISHED
from runtime.rewards.ensemble import members_of
from runtime.settings import ATTENTIONS, GRAPHS, OPS, POLICIES, SCHEDULES, Settings

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"run.dtype": "float32", "run.linears": "dense"},
    "bf16": {"run.dtype": "bfloat16", "run.linears": "dense"},
    "fp8": {"run.dtype": "bfloat16", "run.linears": "fp8-row"},
}
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
# What the measured settings can be held against: what that is in words, and the settings it changes.
BASELINES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "released": (
        "the released order of work: candidates one by one, cold decodes, a clean pass for every candidate",
        {"run.schedule": "released"},
    ),
    "eager": (
        "the same order of work without captured graphs, with plain torch kernels and torch's own attention",
        {"run.graphs": "off", "run.ops": "torch", "run.attention": "sdpa"},
    ),
}
FLAGS = {  # option -> the setting it changes
    "policy": "search.policy",
    "histories": "search.histories",
    "expansions": "search.expansions",
    "seed": "search.seed",
    "seconds": "seconds",
    "schedule": "run.schedule",
    "device": "run.device",
    "ops": "run.ops",
    "attention": "run.attention",
    "graphs": "run.graphs",
    "prompts": "run.prompts",
}


def parse() -> argparse.Namespace:
    """The options, checked as far as they can be without a model."""
    parser = Parser(
        prog="python -m runtime.bench",
        description="Where the time goes, chunk by chunk and stage by stage, and how much faster it is than a baseline.",
        allow_abbrev=False,
    )
    _add_what(parser)
    _add_how(parser)
    args = parser.parse_args()
    if min(args.repeats, args.baseline_repeats or 1) < 1 or args.warmups < 0:
        parser.error("--repeats and --baseline-repeats: want at least 1, --warmups at least 0")
    if args.threads < 0 or args.sweep_seconds <= 0:
        parser.error("--threads: want at least 0, --sweep-seconds more than 0")
    for option in ("json", "report"):
        path = getattr(args, option)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{option}: there is no folder {path.parent}")
    args.against = [] if "none" in args.against else list(dict.fromkeys(args.against))
    args.sweep = list(dict.fromkeys(args.sweep))
    return args


def _add_what(parser: argparse.ArgumentParser) -> None:
    """Options that say what runs; each is a setting, whose default is the preset's."""
    group = parser.add_argument_group("what runs (defaults are the preset's)")
    add = group.add_argument
    add("--preset", choices=PRESETS, default="sprites")
    add("--random-weights", action="store_true", help="weights drawn at random: speed is the same")
    add("--policy", choices=POLICIES)
    add("--histories", type=int, metavar="K", help="histories kept after each chunk")
    add("--expansions", type=int, metavar="M", help="candidates drawn per history")
    add("--prompts", type=int, metavar="N", help="prompts in one batch")
    add("--seconds", type=float, metavar="S", help="length of a video")
    add("--seed", type=int, metavar="N")
    add("--device", help="cpu, cuda or cuda:N")
    precision = group.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision", choices=PRECISIONS, help="fp8: 8-bit products in the DiT, bf16 elsewhere"
    )
    precision.add_argument(
        "--dtype", choices=DTYPES, help="another name for --precision fp32 or bf16"
    )
    add("--ops", choices=OPS, help="implementation of the kernels")
    add("--attention", choices=ATTENTIONS, help="implementation of self attention")
    add("--graphs", choices=GRAPHS, help="captured denoising")
    add("--schedule", choices=SCHEDULES, help="order of work")
    text = "any setting of runtime/settings.py; wins over the options above"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=text)


def _add_how(parser: argparse.ArgumentParser) -> None:
    """Options that say how it is measured and where the numbers go."""
    add = parser.add_argument_group("how it is measured").add_argument
    add("--repeats", type=int, default=3, metavar="N", help="videos timed (default: 3)")
    add("--warmups", type=int, default=1, metavar="N", help="videos before, cut at 12 chunks")
    text = "baselines, timed in turns with the rest: released (default), eager; none"
    add("--against", nargs="+", choices=(*BASELINES, "none"), default=["released"], help=text)
    text = "of the videos, how many the baselines make too (default: all)"
    add("--baseline-repeats", type=int, metavar="N", help=text)
    add("--threads", type=int, default=0, metavar="N", help="CPU threads of torch (0: its default)")
    add("--sweep", nargs="+", choices=AXES, default=[], help="how a chunk's time grows with ...")
    text = "bound of one sweep (default: 60)"
    add("--sweep-seconds", type=float, default=60.0, metavar="S", help=text)
    add("--profile", type=Path, metavar="DIR", help="write a trace of one video there")
    add("--json", type=Path, metavar="FILE", help="write every number there")
    add("--report", type=Path, metavar="HTML", help="write a page with pictures there")
    add("--dry-run", action="store_true", help="say what memory it needs, and stop")
    text = "for --dry-run: compare with this much free memory, not with the device's"
    add("--memory-gib", type=float, metavar="N", help=text)


def settings_of(args: argparse.Namespace) -> Settings:
    """Preset, then options, then ``--set``. ValueError names the setting."""
    changes = {
        name: getattr(args, option)
        for option, name in FLAGS.items()
        if getattr(args, option) is not None
    }
    if args.random_weights:
        changes["run.weights"] = "random"
        rewards = preset(args.preset).reward
        names = {*members_of(rewards.image), *members_of(rewards.video)}
        if names & PUBLISHED.keys():  # the others come with theirs
            changes["reward.weights"] = "random"
    if precision := args.precision or DTYPES.get(args.dtype):
        changes |= PRECISIONS[precision]
    for pair in args.set:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: want NAME=VALUE, got {pair!r}")
        changes[name.strip()] = typed(name.strip(), text.strip())
    settings = preset(args.preset).with_changes(changes)
    if settings.run.prompts < 1:
        raise ValueError("run.prompts: want at least 1 to time, got 0; --dry-run says what fits")
    if "candidates" in args.sweep and settings.search.policy == "single":
        raise ValueError("--sweep candidates: policy 'single' draws one whatever K and M are")
    return settings


def baselines_of(names: list[str], settings: Settings) -> dict[str, Settings]:
    """Name -> settings of each baseline that differs from ``settings``."""
    made = {name: settings.with_changes(BASELINES[name][1]) for name in names}
    return {name: other for name, other in made.items() if other != settings}
