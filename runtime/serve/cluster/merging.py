"""One answer out of many replicas' answers: a page of the list, the health, the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runtime.serve.cluster.directory import Replica

STATES = ("ready", "starting", "silent", "stopping", "gone")  # the best first


def one_page(
    found: Iterable[Sequence[Mapping[str, Any]]], limit: int, newest_first: bool
) -> dict[str, Any]:
    """A page of the list out of pages that are one longer than ``limit``, in the order of the moments."""
    rows = [row for page in found for row in page]
    rows.sort(key=lambda row: (row["created"], row["video"]["id"]), reverse=newest_first)
    videos = [row["video"] for row in rows[:limit]]
    first, last = (videos[0]["id"], videos[-1]["id"]) if videos else (None, None)
    return {"object": "list", "data": videos, "first_id": first, "last_id": last,
            "has_more": len(rows) > limit}  # fmt: skip


def one_health(replicas: Sequence[Replica]) -> dict[str, Any]:
    """As well as the best of them: one that is ready can take orders."""
    states = {replica.state for replica in replicas}
    best = next((state for state in STATES if state in states), "gone")
    shown = [{"name": one.name, "state": one.state, "videos": one.videos} for one in replicas]
    return {"state": best, "replicas": shown}


def one_exposition(texts: Mapping[str, str]) -> str:
    """Prometheus' text of all replicas: every sample gets a label ``replica``, and each family is one block."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, replica))
    lines = [line for family in heads for line in (*heads[family], *samples.get(family, ()))]
    return "\n".join([*lines, ""])


def _labelled(line: str, replica: str) -> str:
    label = f'replica="{replica}"'
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{rest}"
    name, _, value = line.partition(" ")
    return f"{name}{{{label}}} {value}"
