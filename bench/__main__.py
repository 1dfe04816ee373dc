"""``python -m runtime.bench``: how long each room of the line takes, and how much faster it is than the released order."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from runtime.bench.measure import Timing, environment, peak_memory_mb, time_videos
from runtime.engine import Engine
from runtime.settings import OPS, POLICIES, PRESETS, Settings, preset

PROMPTS = (
    "a red circle moving right quickly on a navy background",
    "a yellow star bouncing sideways slowly on a black background",
    "a cyan cross moving up slowly on a gray background",
)


def main() -> int:
    args = _arguments()
    try:
        settings = _settings(args)
        Engine(settings)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.threads:
        torch.set_num_threads(args.threads)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(args.repeats)]
    timing = time_videos(settings, prompts, args.warmups)
    baselines = {}
    if args.against:
        released = settings.with_changes({"run.schedule": args.against})
        again = prompts[: args.baseline_repeats]
        baselines[args.against] = time_videos(released, again, args.warmups)
    result = _result(settings, timing, baselines)
    _print(result, settings)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--preset", choices=PRESETS, default="sprites")
    parser.add_argument("--policy", choices=POLICIES, default="stream-t1")
    parser.add_argument("--histories", type=int, default=2, help="K")
    parser.add_argument("--expansions", type=int, default=2, help="M")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--repeats", type=int, default=3, help="videos timed per schedule")
    parser.add_argument("--baseline-repeats", type=int, default=1, help="videos timed per baseline")
    parser.add_argument("--warmups", type=int, default=1, help="2 s videos run before timing")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--ops", choices=OPS, default="auto", help="implementation of the kernels")
    parser.add_argument("--schedule", choices=("survivors", "released"), default="survivors")
    parser.add_argument(
        "--against",
        choices=("released", "none"),
        default="released",
        help="baseline of the same run",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of torch; 0 leaves the default"
    )
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    if min(args.repeats, args.baseline_repeats) < 1 or args.warmups < 0:
        parser.error("--repeats and --baseline-repeats: want at least 1, --warmups at least 0")
    args.against = None if args.against in ("none", args.schedule) else args.against
    return args


def _settings(args: argparse.Namespace) -> Settings:
    return preset(args.preset).with_changes(
        {
            "search.policy": args.policy,
            "search.histories": args.histories,
            "search.expansions": args.expansions,
            "search.seed": args.seed,
            "seconds": args.seconds,
            "run.schedule": args.schedule,
            "run.device": args.device,
            "run.dtype": args.dtype,
            "run.ops": args.ops,
        }
    )


def _result(settings: Settings, timing: Timing, baselines: dict[str, Timing]) -> dict[str, Any]:
    engine = Engine(settings)
    return {
        "speedup": {name: timing.pixel_fps / base.pixel_fps for name, base in baselines.items()},
        "pixel_fps": timing.pixel_fps,
        "pixel_fps_baseline": {name: base.pixel_fps for name, base in baselines.items()},
        "first_chunk_ms": sorted(timing.first_chunk_ms)[len(timing.first_chunk_ms) // 2],
        "stages": timing.stages(),
        "stages_baseline": {name: base.stages() for name, base in baselines.items()},
        "peak_memory_mb": peak_memory_mb(),
        "kv_bytes": engine.pool.nbytes,
        "videos": len(timing.video_seconds),
        "frames": timing.frames,
        "environment": environment(settings, engine.implementations),
    }


def _print(result: dict[str, Any], settings: Settings) -> None:
    search, place = settings.search, result["environment"]
    print(
        f"{search.policy}, K={search.histories} M={search.expansions}, {settings.seconds:g} s videos, "
        f"{result['videos']} timed, {place['dtype']} on {place['gpu'] or place['cpu']}, {place['threads']} threads"
    )
    print(f"{'stage':<14}{'median ms':>11}{'p95 ms':>10}{'share':>8}   per chunk")
    for name, row in result["stages"].items():
        print(f"{name:<14}{row['median_ms']:>11.2f}{row['p95_ms']:>10.2f}{row['share']:>8.1%}")
    print(
        f"pixel FPS {result['pixel_fps']:.1f} (frames over wall time: text, denoising, decoder, both rewards, search and "
        f"writing inside; frames {place['output']}), first chunk {result['first_chunk_ms']:.0f} ms"
    )
    for name, ratio in result["speedup"].items():
        slow = result["pixel_fps_baseline"][name]
        print(f"{ratio:.2f}x the {name} schedule ({slow:.1f} FPS) in the same run")
    ops = ", ".join(f"{op} {impl}" for op, impl in place["implementations"].items())
    print(
        f"peak memory {result['peak_memory_mb']:.0f} MB, KV pool {result['kv_bytes'] / 1e6:.1f} MB; {ops}"
    )


if __name__ == "__main__":
    sys.exit(main())
