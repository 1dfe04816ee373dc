"""``python -m runtime.bench``: how long each room of the line takes, what it could take, and how much faster it is than a baseline.

Exit status: 0 done, 1 the settings do not fit this machine (``--dry-run``), 2 the call was wrong or the machine lacks something.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from runtime.__main__ import complain
from runtime.bench.options import baselines_of, parse, settings_of
from runtime.bench.run import Plan, take
from runtime.bench.show import show
from runtime.settings import Settings


def main() -> int:
    try:
        args = parse()
        if args.threads:
            torch.set_num_threads(args.threads)
        settings = settings_of(args)
        if args.dry_run:
            return dry_run(settings, args.memory_gib)
        result = take(_plan(args, settings))
    except (ValueError, RuntimeError) as error:
        complain("error", error)
        return 2
    print(show(result))
    _write(args, result)
    return 0


def dry_run(settings: Settings, memory_gib: float | None) -> int:
    """Print what memory the settings need; 1 when that is more than there is, or more than ``memory_gib``."""
    from runtime.sizing import GIB, plan_memory

    needed = plan_memory(settings, None if memory_gib is None else int(memory_gib * GIB))
    print(needed.table())
    if needed.fits is None:
        print(
            f"device {settings.run.device!r} is not here to be compared with: give its memory, --memory-gib 80"
        )
    return 1 if needed.fits is False else 0


def _plan(args: argparse.Namespace, settings: Settings) -> Plan:
    return Plan(
        settings,
        baselines_of(args.against, settings),
        repeats=args.repeats,
        baseline_repeats=min(args.baseline_repeats or args.repeats, args.repeats),
        warmups=args.warmups,
        sweep=args.sweep,
        sweep_seconds=args.sweep_seconds,
        profile=args.profile,
        preset=args.preset,
        say=_progress,
    )


def _progress(text: str) -> None:
    """Where it is, on a terminal only, in place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text} ...\r", end="", file=sys.stderr, flush=True)


def _write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    _clear()
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    if args.report:
        from runtime.bench import report

        report.write(result, args.report)
    if args.profile:
        print(f"\ntrace of a video: {result['profile']} (chrome://tracing or ui.perfetto.dev)")


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
