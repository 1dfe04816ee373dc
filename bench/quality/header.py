"""What made the rows of a folder: world, measures, prompts, settings and weights, as plain values that can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import sys
from pathlib import Path
from typing import Any

from runtime.backends import weights_path
from runtime.bench.environment import environment
from runtime.bench.quality.plan import Plan
from runtime.bench.quality.row import COLUMNS, SPAN
from runtime.bench.quality.worlds import World
from runtime.generators import find_folder
from runtime.rewards import WEIGHTLESS
from runtime.rewards.ensemble import members_of
from runtime.settings import Settings

LAID_OUT = ("prompts", "overlap", "speculate", "memory_share", "verify", "offload_text")
READ_WHOLE = 256 << 20  # bytes; of a larger file name, size and its folder's manifest have to do


def header(plan: Plan, world: World) -> dict[str, Any]:
    """For ``Store``: another header means rows that may not be mixed with these. "made" informs only."""
    base = plan.base
    settings = dataclasses.asdict(base)
    for room, name in (("search", "seed"), *(("run", name) for name in LAID_OUT)):
        del settings[room][name]  # a row's own, or how the work is laid out
    del settings["seconds"]
    wishes = plan.wishes
    return {
        "world": world.name,
        "measures": {"version": world.version, "columns": list(COLUMNS), "span": SPAN},
        "prompts": wishes.prompts_file.name if wishes.prompts_file else wishes.split,
        "settings": settings,
        "weights": weights(base),
        "made": environment(base, {}) | {"command": command()},
    }


def weights(settings: Settings) -> dict[str, str]:
    """A short digest of the generator's weights and of each reward's; "random" or "none" where there are no files."""
    folder, random = find_folder(settings.run.generator, settings.run.weights)
    found = {settings.run.generator: "random" if random else digest(folder)}
    for expression in (settings.reward.image, settings.reward.video):
        for name in members_of(expression):
            path = None if name in WEIGHTLESS else weights_path(name, settings.reward.weights)
            found[name] = "none" if path is None else digest(path)
    return found


def digest(path: Path) -> str:
    """Of a file, or of all files in a folder and their names."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name} {size}\n".encode())
        if size <= READ_WHOLE:
            total.update(file.read_bytes())
    return total.hexdigest()[:12]


def command() -> str:
    """The running command, to be typed again."""
    return shlex.join(["python", "-m", "runtime.bench.quality", *sys.argv[1:]])
