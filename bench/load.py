"""How many videos a server makes at once, how long each takes, and what it does when it is asked for more.

    python -m runtime.bench.load --minutes 12 --json load.json
    python -m runtime.bench.load --url http://127.0.0.1:8000/ --minutes 5

Starts ``python -m runtime.serve`` on a free port (or takes ``--url``) and is its client on the same machine, so its own
work is part of the result. Closed loop: N users, each of whom orders a video, reads it to its end and orders the next.
Open loop: random arrivals at a share of the closed loop's best pace. Overload: more orders at once than the server takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.__main__ import complain
from runtime.bench.environment import environment, load, version
from runtime.bench.load_client import DONE, REFUSED, Client, Phase, summary, with_client
from runtime.bench.load_server import ServerProcess, server
from runtime.bench.load_table import table
from runtime.presets import preset

USERS = (1, 2, 4, 8, 16)
SHARES = (0.5, 0.8, 1.0)  # of the closed loop's best pace
CROWDS = 2  # one after the other
PHASES = len(USERS) + len(SHARES) + CROWDS
SERVER_PACKAGES = ("fastapi", "uvicorn", "httpx", "av")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked of the server, and for how long."""

    minutes: float
    seconds: float  # of every video
    users: tuple[int, ...]
    capacity: int  # videos that the server lets wait or run
    extra: int  # orders beyond that in the overload
    order: dict[str, Any]

    @property
    def phase_s(self) -> float:
        return self.minutes * 60 / PHASES


async def take(client: Client, plan: Plan, process: ServerProcess | None) -> dict[str, Any]:
    """All phases, one after the other. Raises RuntimeError for a server that makes no videos at all."""
    first = await client.one()
    if first.kind != DONE:
        raise RuntimeError(f"the server made no video: {first.reason or first.kind}")
    closed = []
    for users in plan.users:
        _progress(f"{users} users")
        closed.append({"users": users, **summary(await client.closed(users, plan.phase_s))})
    best = max(row["videos_per_minute"] for row in closed)
    opened = []
    for share in SHARES if best else ():
        _progress(f"arrivals at {share:.0%} of the best pace")
        phase = await client.open(share * best / 60, plan.phase_s, seed=round(share * 100))
        told = {"share": share, "asked_per_minute": share * best, "orders": len(phase.outcomes)}
        opened.append(told | summary(phase))
    _progress("overload")
    return {"closed": closed, "open": opened, "overload": await overload(client, plan, process)}


async def overload(client: Client, plan: Plan, process: ServerProcess | None) -> dict[str, Any]:
    """Everybody at once, and once more: memory that the first crowd took must do for the second."""
    weights = [_weight(process)]
    phases = []
    for _ in range(CROWDS):
        phases.append(await client.crowd(plan.capacity + plan.extra))
        weights.append(_weight(process))
    outcomes = tuple(one for phase in phases for one in phase.outcomes)
    whole = Phase(outcomes, sum(phase.seconds for phase in phases))
    accepted = len(outcomes) - len(whole.of(REFUSED))
    return {
        "crowds": CROWDS,
        "orders": plan.capacity + plan.extra,
        "capacity": plan.capacity,
        "accepted": accepted,
        "lost": accepted - len(whole.of(DONE)),
        "weights": weights,
        **summary(whole),
    }


def _weight(process: ServerProcess | None) -> dict[str, float] | None:
    if process is None:
        return None
    return {"memory_mb": process.memory_mb(), "open_files": process.open_files()}


def run(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Take everything and say where it was taken."""

    def measured(url: str, process: ServerProcess | None) -> dict[str, Any]:
        # Phases end what they began, so they may take longer than planned; twice as long is the end.
        end = time.perf_counter() + 2 * 60 * plan.minutes
        work = with_client(url, args.key, plan.order, end, lambda c: take(c, plan, process))
        return asyncio.run(work)

    busy = load()
    if args.url:
        found = measured(args.url.rstrip("/") + "/", None)
    else:
        arguments = ["--preset", args.preset, *args.serve]
        with server(arguments) as process:
            found = measured(process.url, process)
    where = environment(preset(args.preset), {})
    where |= {name: version(name) for name in SERVER_PACKAGES}
    where |= {"load_before": busy}
    command = " ".join(["python -m runtime.bench.load", *sys.argv[1:]])
    settings = {"video_seconds": plan.seconds, **plan.order.get("search", {})}
    return {"settings": settings, **found, "environment": where, "command": command}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.load", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="about how long in all (%(default)s)")
    add("--seconds", type=float, default=5.0, help="of every video (%(default)s)")
    add("--users", type=int, nargs="+", default=list(USERS), metavar="N", help="closed loops")
    add("--capacity", type=int, default=64, help="the server's limit of open jobs (%(default)s)")
    add("--extra", type=int, default=64, help="orders beyond it in the overload (%(default)s)")
    add("--histories", type=int, default=2, help="K (%(default)s)")
    add("--expansions", type=int, default=2, help="M (%(default)s)")
    add("--preset", default="sprites", help="of the server that is started (%(default)s)")
    add("--url", help="a server that runs already; its memory is not measured")
    add("--key", help="its API key")
    add("--json", type=Path, metavar="FILE", help="write the result here")
    add("serve", nargs="*", help="after --: options for the server that is started")
    args = parser.parse_args(arguments)
    for name in ("minutes", "seconds", "capacity", "extra", "histories", "expansions"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name}: want more than 0, got {getattr(args, name)}")
    if min(args.users) < 1:
        parser.error(f"--users: want at least 1, got {min(args.users)}")
    return args


def main() -> int:
    args = parse()
    search = {"histories": args.histories, "expansions": args.expansions}
    plan = Plan(
        minutes=args.minutes,
        seconds=args.seconds,
        users=tuple(args.users),
        capacity=args.capacity,
        extra=args.extra,
        order={"seconds": args.seconds, "search": search},
    )
    try:
        result = run(plan, args)
    except (ValueError, RuntimeError) as error:
        complain("error", error)
        return 2
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    lost = result["overload"]["lost"] + sum(row["failed"] for row in result["closed"])
    return 1 if lost else 0


def _progress(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
