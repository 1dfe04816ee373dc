"""Why does search help, or not? Rewards, gates and noise held against the analytic judge, candidate by candidate.

    python -m runtime.bench.quality.why --prompts 8 --seconds 5 --json why.json

Three engines make videos of the same tuning captions: the search as it is set, the same search steered by the judge itself,
and plain streaming several times over. Every candidate on the way is judged. docs/quality-why.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from runtime.__main__ import complain
from runtime.arguments import Parser, typed
from runtime.bench.environment import environment
from runtime.bench.quality.prompts import FIRST_SEED, tuning
from runtime.bench.quality.why_agreement import agreement, regret, siblings
from runtime.bench.quality.why_memory import drift, gates, routes
from runtime.bench.quality.why_noise import noise
from runtime.bench.quality.why_runs import Found, Plan, Runs, ceiling
from runtime.bench.quality.why_seen import of_run
from runtime.bench.quality.why_text import page
from runtime.presets import preset
from runtime.settings import Settings


def diagnose(settings: Settings, plan: Plan, prompts: int) -> tuple[dict[str, Any], Found]:
    """Make and judge everything: the report, plain values as JSON has them, and what it was counted from.

    An interrupt ends it after the prompts that are finished.
    """
    captions = tuning(prompts)
    began, runs, found = time.perf_counter(), Runs(settings, plan), Found()
    done = 0
    try:
        for caption in captions:
            found.extend(runs.prompt(done, caption))
            done += 1
            _progress(done, prompts, time.perf_counter() - began)
    except KeyboardInterrupt:
        if not done:
            raise
        print(f"\nstopped: what follows is about {done} of {prompts} prompts", file=sys.stderr)
    about = {
        "prompts": done,
        "captions": [caption.text for caption in captions[:done]],
        "seconds": settings.seconds,
        "seed": settings.search.seed,
        "candidates": len(found.seen),
        "walks": plan.walks,
        "probed": plan.probed,
        "probes": plan.probes,
        "rewards": settings.reward.weights or "packaged",
        "settings": json.loads(settings.to_json()),
        "wall_seconds": time.perf_counter() - began,
        "environment": environment(settings, runs.search.implementations),
    }
    return {"about": about, **report(found, settings)}, found


def report(found: Found, settings: Settings) -> dict[str, Any]:
    """Every section of the diagnosis."""
    searched, walked, probed = (of_run(found.seen, run) for run in ("search", "walk", "probe"))
    return {
        "agreement": agreement(searched, walked),
        "regret": regret(searched),
        "oracle": ceiling(found),
        "siblings": siblings(searched),
        "routes": routes(searched),
        "gates": gates(searched, settings.memory),
        "noise": noise(walked, probed),
        "drift": drift(walked),
    }


def _progress(done: int, of: int, spent: float) -> None:
    left = spent / done * (of - done)
    print(f"\r{done} of {of} prompts, {spent:.0f} s, {left:.0f} s left ", end="", file=sys.stderr)
    if done == of:
        print(file=sys.stderr)


def main() -> int:
    args = _arguments()
    try:
        plan = Plan(args.walks, args.probed, args.probes)
        result, found = diagnose(_settings(args), plan, args.prompts)
        if args.json is not None:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if args.rows is not None:
            lines = (json.dumps(one.to_json()) + "\n" for one in found.seen)
            args.rows.write_text("".join(lines), encoding="utf-8")
    except (ValueError, RuntimeError, OSError) as error:
        complain("error", error)
        return 2
    print(page(result))
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    changes: dict[str, Any] = {
        "seconds": args.seconds,
        "search.seed": args.seed,
        "run.device": args.device,
        "run.weights": args.weights,
        "reward.weights": args.rewards,
    }
    for pair in args.set:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: want NAME=VALUE, got {pair!r}")
        changes[name.strip()] = typed(name.strip(), text.strip())
    return preset("sprites").with_changes(changes)


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m runtime.bench.quality.why", description=__doc__.partition("\n")[0]
    )
    add, usual = parser.add_argument, Plan()
    add("--prompts", type=int, default=8, metavar="N", help="captions of the tuning list")
    add("--seconds", type=float, default=5.0)
    add("--seed", type=int, default=FIRST_SEED)
    add("--device", default="cpu")
    add("--weights", default="", metavar="FOLDER", help="of the generator; default: the package's")
    add("--rewards", default="", metavar="FOLDER", help="of the rewards; default: the package's")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any other setting")
    add("--walks", type=int, default=usual.walks, help="plain videos of each prompt")
    add("--probed", type=int, default=usual.probed, help="of them, for trying the same noises")
    add("--probes", type=int, default=usual.probes, help="noises that are tried under each")
    add("--json", type=Path, metavar="FILE")
    add("--rows", type=Path, metavar="FILE", help="every judged candidate, one JSON line each")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
