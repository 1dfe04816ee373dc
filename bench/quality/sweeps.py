"""Which values of which setting are tried, one setting at a time; the default is always among them.

A sweep is a list of method names (``runtime.bench.quality.methods``), so its videos are rows like all others. The default's
point is the plain ``stream-t1``: its videos are shared with the tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.bench.quality.methods import named
from runtime.presets import preset
from runtime.settings import Settings

BASE = "stream-t1"
USUAL = preset("sprites")  # the world that is swept, as it is shipped


@dataclass(frozen=True, slots=True)
class Sweep:
    """One setting, the values it takes and what they mean to a reader."""

    setting: str  # a dotted name of ``runtime.settings``
    symbol: str  # as the paper writes it
    meaning: str
    tried: tuple[float, ...]  # the default is added where it is missing

    @property
    def default(self) -> float:
        return value_of(USUAL, self.setting)

    @property
    def values(self) -> tuple[float, ...]:
        """What is tried, the default with it, in rising order."""
        return tuple(sorted({*self.tried, self.default}))

    @property
    def methods(self) -> tuple[str, ...]:
        """A method name for every one of ``values``."""
        return tuple(self._method(value) for value in self.values)

    def _method(self, value: float) -> str:
        if value == self.default:
            return BASE
        # K and M as the scaling law writes them, so that both share their videos.
        search = USUAL.search
        if self.setting == "search.histories":
            return f"{BASE}[{value}x{search.expansions}]"
        if self.setting == "search.expansions":
            return f"{BASE}[{search.histories}x{value}]"
        return f"{BASE}[{self.setting}={json.dumps(value)}]"


SWEEPS: dict[str, Sweep] = {
    sweep.setting: sweep
    for sweep in (
        Sweep("search.histories", "K", "histories kept after each chunk", (1, 2, 4, 8)),
        Sweep("search.expansions", "M", "candidates drawn of each history", (1, 2, 4, 8)),
        Sweep(
            "noise.beta",
            "beta",
            "weight of the parent's noise in a chunk's noise",
            (-0.5, -0.3, 0.0, 0.1, 0.3, 0.6),
        ),
        Sweep(
            "reward.tau",
            "tau",
            "the most that the image reward may weigh against the video reward",
            (0.0, 0.2, 0.7, 1.0),
        ),
        Sweep(
            "memory.quality_threshold",
            "quality gate",
            "how much better than its history a chunk must be to be kept when it leaves the window",
            (-0.1, -0.03, 0.03, 0.1),
        ),
        Sweep(
            "memory.transition_threshold",
            "transition gate",
            "how far the video reward must fall for such a chunk to become a sink of its own",
            (-0.03, 0.0, 0.03, 0.1),
        ),
        Sweep(
            "memory.ema_alpha",
            "alpha",
            "what a sink keeps of itself when a chunk is merged into it",
            (0.5, 0.9, 0.99, 1.0),
        ),
        Sweep(
            "memory.max_sink_frames",
            "S max",
            "latent frames that sinks may take up, the first ones with them",
            (3, 6, 9, 21),
        ),
    )
}


def value_of(settings: Settings, name: str) -> Any:
    """The value of a dotted name. AttributeError for one that is not there."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def changed(method: str) -> Mapping[str, Any]:
    """What sets ``method`` apart from the default method: setting -> value, without those that are at their default.

    Two names that mean the same settings give the same answer. ValueError for an unknown method or setting.
    """
    settings, default = USUAL.with_changes(named(method).changes), USUAL
    return {
        name: value_of(settings, name)
        for name in named(method).changes
        if value_of(settings, name) != value_of(default, name)
    }


def place(method: str, sweep: Sweep) -> float | None:
    """The value at which ``method`` stands on ``sweep``; None when it is no point of it."""
    try:
        differs = changed(method)
    except ValueError:
        return None  # of another version of the code, or of another world: no point of this sweep
    if not differs:
        return sweep.default
    if set(differs) != {sweep.setting}:
        return None
    return float(differs[sweep.setting])
