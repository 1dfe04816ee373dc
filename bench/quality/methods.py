"""The methods that are compared, each as what it changes in the settings; the generator, prompts and seeds are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the paper's tables."""

    label: str
    changes: Mapping[str, Any]


METHODS: dict[str, Method] = {
    "single": Method("Plain streaming", {"search.policy": "single"}),
    "best-of-n": Method("Best-of-N", {"search.policy": "best-of-n"}),
    "beam": Method("Beam search", {"search.policy": "beam"}),
    "stream-t1": Method("Stream-T1", {"search.policy": "stream-t1"}),
    "no-sinking": Method("without memory sinking", {"memory.sinking": False}),
    "no-propagation": Method("without noise propagation", {"search.propagation": False}),
    "no-pruning": Method("without reward pruning", {"search.pruning": False}),
    "released": Method("Stream-T1 as released", {"fidelity": "released"}),
}


@dataclass(frozen=True, slots=True)
class Table:
    """Which methods stand in one table, and which of them the others are held against."""

    title: str
    methods: tuple[str, ...]
    reference: str
    seconds: tuple[float, ...] | None = None  # lengths it is made for; None: all that were asked


TABLES: dict[str, Table] = {
    "short": Table("Five seconds", ("single", "stream-t1"), "single", (5.0,)),
    "long": Table("Thirty seconds", ("single", "stream-t1"), "single", (30.0,)),
    "passive": Table(
        "Ways to spend the same candidates",
        ("single", "best-of-n", "beam", "stream-t1"),
        "single",
    ),
    "ablation": Table(
        "What each part is worth",
        ("stream-t1", "no-sinking", "no-propagation", "no-pruning"),
        "stream-t1",
    ),
    "fidelity": Table(
        "As the paper says, as the code does", ("stream-t1", "released"), "stream-t1"
    ),
}


# The test-time scaling law: candidates a chunk, K * M.
SCALING = ("single", *(f"stream-t1[{k}x{m}]" for k, m in ((1, 2), (2, 2), (2, 4), (4, 4))))
_VARIANT = re.compile(r"(?P<base>[a-z0-9-]+)\[(?P<what>[^\[\]]+)\]")
_SIZE = re.compile(r"(\d+)x(\d+)")


def named(name: str) -> Method:
    """The method of a name: one of ``METHODS``, or one with changes in brackets.

    ``stream-t1[4x2]`` keeps four histories and draws two expansions of each; ``stream-t1[noise.beta=0.3,reward.tau=1.0]``
    changes any settings. ValueError for an unknown method; settings are checked where they are used.
    """
    if name in METHODS:
        return METHODS[name]
    parts = _VARIANT.fullmatch(name)
    if parts is None or parts["base"] not in METHODS:
        raise ValueError(
            f"method: want one of {', '.join(METHODS)}, or such a name with changes in brackets "
            f"(stream-t1[4x2], stream-t1[noise.beta=0.3]), got {name!r}"
        )
    base = METHODS[parts["base"]]
    changes: dict[str, Any] = {}
    for change in parts["what"].split(","):
        if size := _SIZE.fullmatch(change):
            changes |= {"search.histories": int(size[1]), "search.expansions": int(size[2])}
            continue
        setting, equals, value = change.partition("=")
        if not equals:
            raise ValueError(
                f"method {name}: want KxM or setting=value in brackets, got {change!r}"
            )
        try:
            changes[setting] = json.loads(value)
        except json.JSONDecodeError:
            changes[setting] = value
    return Method(f"{base.label}, {parts['what']}", {**base.changes, **changes})
