"""What must be the same on all ranks before they begin: settings, weights and what computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import runtime
from runtime.engine import Engine
from runtime.parts import Parts
from runtime.ranks.world import World
from runtime.settings import Settings

OWN = ("run.device",)  # of each rank
PIECE_BYTES = 1 << 24


def check_supported(settings: Settings) -> None:
    """ValueError for what a video over several ranks cannot have."""
    search, run = settings.search, settings.run
    asked = {
        "search.policy": (search.policy, search.policy != "halving", "any other policy"),
        "run.speculate": (run.speculate, not run.speculate, "false"),
        "run.schedule": (run.schedule, run.schedule == "survivors", "survivors"),
        "run.prompts": (run.prompts, run.prompts == 1, "1"),
    }
    for name, (got, fits, want) in asked.items():
        if not fits:
            raise ValueError(
                f"{name}: want {want} for a video over several ranks, got {got}; "
                "start a single process for that"
            )


def check_alike(engine: Engine, world: World) -> None:
    """ValueError on all ranks when one differs from rank 0, by the name of what differs."""
    told = [json.loads(text) for text in world.texts("the settings", json.dumps(facts_of(engine)))]
    for rank, its in enumerate(told):
        for name, want in told[0].items():
            if its.get(name) != want:
                raise ValueError(
                    f"{name}: want {want!r} on all ranks, as on rank 0, got {its.get(name)!r} on rank {rank}"
                )


def facts_of(engine: Engine) -> dict[str, Any]:
    """All that must be alike, by name."""
    rooms = json.loads(engine.settings.to_json())
    facts = {
        f"{room}.{name}" if isinstance(values, dict) else room: value
        for room, values in rooms.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    facts |= {f"implementation of {op}": name for op, name in engine.implementations.items()}
    facts |= {f"weights of the {part}": digest for part, digest in weights_of(engine.parts)}
    facts |= {"version": runtime.__version__, "torch": torch.__version__}
    return {name: value for name, value in facts.items() if name not in OWN}


def weights_of(parts: Parts) -> Iterator[tuple[str, str]]:
    """Each network and a digest of its weights."""
    generator = parts.generator
    holders = {
        "generator": generator.dit,
        "text encoder": generator.text,
        "decoder": generator.decoder,
        "image reward": parts.image,
        "video reward": parts.video,
    }
    for name, holder in holders.items():
        digest = hashlib.sha256()
        for path, weight in _weights(holder):
            digest.update(f"{path} {list(weight.shape)} {weight.dtype} {_sum(weight)};".encode())
        yield name, digest.hexdigest()[:16]


def _weights(holder: object, depth: int = 3) -> Iterator[tuple[str, Tensor]]:
    """The weights of a network, or of the networks that something holds."""
    if isinstance(holder, nn.Module):
        yield from holder.state_dict().items()
    elif depth and hasattr(holder, "__dict__"):
        for name, inner in sorted(vars(holder).items()):
            for path, weight in _weights(inner, depth - 1):
                yield f"{name}.{path}", weight


def _sum(weight: Tensor) -> int:
    """A sum over all words of their value times an odd number by their place: exact, so the same on every device."""
    raw = weight.detach().contiguous().view(-1).view(torch.uint8)
    total = 0
    for first in range(0, len(raw), PIECE_BYTES):
        piece = raw[first : first + PIECE_BYTES]
        words = torch.nn.functional.pad(piece, (0, -len(piece) % 8)).view(torch.int64)
        places = torch.arange(len(words), device=words.device) * 2 + 1
        total += int((words * places).sum())
    return total
