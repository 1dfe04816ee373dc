"""The result of a load test as Markdown; docs/serving.md holds what this makes of the recorded one."""

from __future__ import annotations

from typing import Any


def table(result: dict[str, Any]) -> str:
    """Three tables and a line that says where."""
    return "\n\n".join(
        [where(result), closed(result["closed"]), opened(result["open"]), overload(result)]
    )


def where(result: dict[str, Any]) -> str:
    place, settings = result["environment"], result["settings"]
    return (
        f"{settings['video_seconds']:g} s videos, K = {settings['histories']}, "
        f"M = {settings['expansions']}; {place['cores']} cores of {place['cpu']}, "
        f"{place['gpu'] or 'no GPU'}, torch {place['torch']}, commit {place['commit']}, client on the "
        f"same cores.\n`{result['command']}`"
    )


def closed(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| users | videos / min | FPS | first settled chunk p50 / p95 | done p50 / p95 | videos |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['users']} | {row['videos_per_minute']:.1f} | {row['fps']:.1f} | "
            f"{_pair(row['first_s'])} | {_pair(row['done_s'])} | {_fates(row)} |"
        )
    return "\n".join(lines)


def opened(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| arrivals / min | of the best pace | first settled chunk p50 / p95 | done p50 / p95 | videos |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['asked_per_minute']:.1f} | {row['share']:.0%} | {_pair(row['first_s'])} | "
            f"{_pair(row['done_s'])} | {_fates(row)} |"
        )
    return "\n".join(lines)


def overload(result: dict[str, Any]) -> str:
    row = result["overload"]
    weights = [one for one in row["weights"] if one]
    memory = [f"{one['memory_mb']:.0f}" for one in weights]
    files = [f"{one['open_files']}" for one in weights]
    lines = [
        f"| {row['crowds']} crowds of {row['orders']} orders at once, {row['capacity']} may be open | |",
        "|---|---|",
        f"| accepted, and of these not finished | {row['accepted']}, {row['lost']} |",
        f"| refused with 429, and of these without Retry-After | {row['refused']}, "
        f"{row['refused_without_retry_after']} |",
        f"| Retry-After p50 / p95 | {_pair(row['retry_after_s'])} |",
        f"| accepted: first settled chunk p50 / p95 | {_pair(row['first_s'])} |",
        f"| accepted: done p50 / p95 | {_pair(row['done_s'])} |",
    ]
    if weights:
        lines.append(f"| MB of server and worker, before and after each | {', '.join(memory)} |")
        lines.append(f"| open files, before and after each | {', '.join(files)} |")
    return "\n".join(lines)


def _pair(spread: dict[str, float] | None) -> str:
    return "none" if spread is None else f"{spread['p50']:.1f} / {spread['p95']:.1f} s"


def _fates(row: dict[str, Any]) -> str:
    told = [f"{row['done']}"]
    told += [f"{row[kind]} {kind}" for kind in ("failed", "refused", "unfinished") if row[kind]]
    return ", ".join(told)
