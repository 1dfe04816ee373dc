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
from runtime.parts import build_policy_of
from runtime.ranks.crew import Crew
from runtime.ranks.reward_engine import RewardEngine
from runtime.ranks.world import World
from runtime.settings import Settings

OWN = ("run.device",)  # of each rank
PIECE_BYTES = 1 << 24


def check_supported(settings: Settings, crew: Crew) -> None:
    """ValueError for what a video over several ranks cannot have."""
    policy = build_policy_of(settings)
    if crew.raters and not (policy.judges or policy.rates):
        raise ValueError(
            f"--reward-ranks: want 0 for search.policy={settings.search.policy!r}, which asks no reward, "
            f"got {crew.raters}"
        )
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


def check_kind(engine: Engine | RewardEngine, crew: Crew, rank: int) -> None:
    """ValueError for an engine with other parts than the rank is there for."""
    got = "a RewardEngine"
    if isinstance(engine, Engine):
        got = (
            "an Engine without rewards" if engine.parts.elsewhere else "an Engine with its rewards"
        )
    want = "an Engine without rewards" if crew.raters else "an Engine with its rewards"
    if crew.rates_only(rank):
        want = "a RewardEngine"
    if got != want:
        raise ValueError(
            f"engine: want {want} on rank {rank}, for {crew.raters} of {crew.size} ranks only judge, got {got}"
        )


def check_alike(engine: Engine | RewardEngine, crew: Crew, world: World) -> None:
    """ValueError on all ranks when one differs from the first of its kind, or its kind from rank 0 in what both have."""
    facts = json.dumps(facts_of(engine, crew))
    told = [json.loads(text) for text in world.texts("the settings", facts)]
    firsts = [0, crew.makers] if crew.raters else [0]
    for rank, its in enumerate(told):
        for first in firsts:
            alike = crew.rates_only(first) == crew.rates_only(rank)
            for name, want in told[first].items():
                if (alike or name in its) and its.get(name) != want:
                    raise ValueError(
                        f"{name}: want {want!r} on all ranks, as on rank {first}, got {its.get(name)!r} on rank {rank}"
                    )


def facts_of(engine: Engine | RewardEngine, crew: Crew) -> dict[str, Any]:
    """All that must be alike, by name. What only one kind of rank has, the other does not tell."""
    rooms = json.loads(engine.settings.to_json())
    facts = {
        f"{room}.{name}" if isinstance(values, dict) else room: value
        for room, values in rooms.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    facts |= {f"implementation of {op}": name for op, name in engine.implementations.items()}
    facts |= {f"weights of the {part}": digest for part, digest in weights_of(engine)}
    facts |= {"version": runtime.__version__, "torch": torch.__version__}
    facts |= {"--reward-ranks": crew.raters, "fps": engine.fps, "chunks": engine.chunks}
    return {name: value for name, value in facts.items() if name not in OWN}


def weights_of(engine: Engine | RewardEngine) -> Iterator[tuple[str, str]]:
    """Each network that is here and a digest of its weights."""
    holders: dict[str, object] = {}
    if isinstance(engine, Engine):
        generator = engine.parts.generator
        holders = {
            "generator": generator.dit,
            "text encoder": generator.text,
            "decoder": generator.decoder,
        }
    # A guard's limits may fall while it runs: what it guards is compared.
    holders |= {f"{role} reward": guard.model for role, guard in engine.guards.items()}
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
