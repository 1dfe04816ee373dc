"""Lines to packed values and back: a video stops between two chunks and goes on as if it had not, bit for bit.

What is packed is what the chunks so far have made. Prompts are read again, which gives the same text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import runtime
from runtime.engine import Engine
from runtime.lines import Line
from runtime.memory import Lease
from runtime.packing import Packed, Packer, Unpacker, plain
from runtime.recipe import OWN_REWARD
from runtime.scenes import Scene
from runtime.settings import Settings
from runtime.types import Watch

# Of ``run``, what may change between a video's beginning and its end: none of it touches a number.
FREE = ("prompts", "memory_share", "verify", "speculate", "overlap", "offload_text")
HASHED_BYTES = 1 << 24  # of a weight at a time


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be known of a packed video without unpacking it."""

    settings: Settings
    scenes: tuple[tuple[int, str], ...]
    index: int  # of its next chunk
    settled: int  # chunks that were shown


def identity(engine: Engine) -> str:
    """All that must be the same where a video goes on, as JSON: the engine's settings, its weights, the version."""
    run = dataclasses.asdict(engine.settings.run)
    reward = dataclasses.asdict(engine.settings.reward)
    named = {f"run.{name}": value for name, value in run.items() if name not in FREE}
    named |= {f"reward.{name}": value for name, value in reward.items()}
    for own in OWN_REWARD:
        named.pop(f"reward.{own}")
    named |= {
        "fidelity": engine.settings.fidelity,
        "weights": weights_digest(engine.parts.generator.dit),
        "version": runtime.__version__,
    }
    return json.dumps(named, sort_keys=True)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights, names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
        raw = weight.detach().contiguous().reshape(-1).view(torch.uint8)
        for part in raw.split(HASHED_BYTES):
            digest.update(part.to("cpu").numpy().data)
    return digest.hexdigest()


def pack(line: Line, pool: Any) -> Packed:
    """A line between two chunks, copied to the host. ValueError for one whose next chunk has begun already."""
    if line.ahead is not None:
        raise ValueError(
            "snapshot: want a video between two chunks, but its next one has begun; switch run.speculate off"
        )
    packer, video = Packer(pool), line.video
    tree = {
        "settings": json.loads(video.recipe.asked.to_json()),
        "scenes": [[scene.chunk, scene.prompt] for scene in video.scenes],
        "scene": [video.scene.chunk, video.scene.prompt],
        "index": line.index,
        "survivors": packer.histories(line.survivors),
        "shown": [packer.tensor(frames) for frames in video.emitter.shown],
        "chunks": packer.chunks,
    }
    return Packed(plain(tree), packer.tensors)


def facts(packed: Packed) -> Facts:
    """What a packed video is. ValueError for a tree that is none."""
    try:
        tree = packed.tree
        settings = settings_of(tree["settings"])
        scenes = tuple((int(chunk), str(prompt)) for chunk, prompt in tree["scenes"])
        unsettled = max(len(one["unsettled"]) for one in tree["survivors"])
        return Facts(settings, scenes, int(tree["index"]), int(tree["index"]) - unsettled)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"snapshot: is of no video ({type(error).__name__}: {error})") from None


def settings_of(tree: dict[str, Any]) -> Settings:
    """Settings from their JSON. ValueError that names what does not exist."""
    changes: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            changes |= {f"{name}.{key}": one for key, one in value.items()}
        else:
            changes[name] = value
    return Settings().with_changes(changes)


def unpack(
    packed: Packed, engine: Engine, lease: Lease, watch: Watch | None = None, number: int = 0
) -> Line:
    """The line again, its blocks held by ``lease``. ValueError for what is no packed video of this engine."""
    known = facts(packed)
    # Whatever may differ in how the engine runs was compared by ``identity``.
    recipe = engine.recipe_of(dataclasses.replace(known.settings, run=engine.settings.run))
    scenes = tuple(Scene(*pair) for pair in known.scenes)
    try:
        tree = packed.tree
        now = Scene(*tree["scene"])  # unless a switch has replaced it, one of the scenes
        scene = next((one for one in scenes if one == now), now)
        line = engine.begin(recipe, scenes, lease, watch, number, scene)
        unpacker = Unpacker(packed, tree["chunks"], engine.pool, lease)
        survivors = unpacker.histories(tree["survivors"])
        line.video.emitter.shown.extend(unpacker.tensor(name) for name in tree["shown"])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"snapshot: is of no video ({type(error).__name__}: {error})") from None
    return dataclasses.replace(line, survivors=survivors, index=known.index)
