"""A history as a JSON-able tree and tensors, with the KV blocks it sees: everything that another rank needs to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from runtime.generators.decoder_state import DecoderState
from runtime.memory import Lease
from runtime.types import Chunk, Memory, Route, Scores, Slot, Trajectory


@dataclass(frozen=True, slots=True)
class Packed:
    """Something as a JSON-able tree; where it has a tensor, the tree has the tensor's name."""

    tree: Any
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Packing:
    """Gives names to tensors; one that is packed twice has one name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[int, str] = {}

    def name(self, tensor: Tensor | None) -> str | None:
        if tensor is None:
            return None
        if id(tensor) not in self.names:
            self.names[id(tensor)] = name = f"t{len(self.tensors)}"
            self.tensors[name] = tensor
        return self.names[id(tensor)]

    def names_of(self, tensors: Sequence[Tensor]) -> list[str | None]:
        return [self.name(tensor) for tensor in tensors]


def pack_chunks(chunks: Sequence[Chunk]) -> Packed:
    """Chunks with their frames."""
    packing = Packing()
    return Packed([_chunk(chunk, packing) for chunk in chunks], packing.tensors)


def unpack_chunks(packed: Packed) -> tuple[Chunk, ...]:
    return tuple(_chunk_of(told, packed.tensors) for told in packed.tree)


def pack_history(history: Trajectory, lease: Lease) -> Packed:
    """A history and copies of its blocks."""
    packing, pool = Packing(), lease.pool
    blocks = {
        str(slot.block): [
            packing.name(pool.kv[:, slot.block].contiguous()),
            packing.name(pool.shadows.get(slot.block)),
        ]
        for slot in history.memory.slots
    }
    tree = {
        "blocks": blocks,
        "sinks": [_slot(slot, packing) for slot in history.memory.sinks],
        "window": [_slot(slot, packing) for slot in history.memory.window],
        "seed": [history.seed, history.seed_chunk],
        "noise": packing.name(history.noise),
        "decoder": _state(history.decoder, packing),
        "scoring": _state(history.scoring, packing),
        "latents": packing.names_of(history.latents),
        "frames": packing.names_of(history.frames),
        "shorts": list(history.shorts),
        "sums": [history.short_sum, history.long, history.score],
        "unsettled": [_chunk(chunk, packing) for chunk in history.unsettled],
    }
    return Packed(tree, packing.tensors)


def unpack_history(packed: Packed, lease: Lease) -> Trajectory:
    """The history in blocks of ``lease``, which holds them for it."""
    tree, tensors, pool = packed.tree, packed.tensors, lease.pool
    blocks = {}
    for name, (kv, shadow) in tree["blocks"].items():
        blocks[int(name)] = block = lease.allocate()
        pool.kv[:, block].copy_(tensors[kv])
        if shadow is not None:
            pool.shadows[block] = tensors[shadow]
    sinks, window = (
        tuple(_slot_of(told, blocks, tensors) for told in tree[part]) for part in ("sinks", "window")
    )
    seed, seed_chunk = tree["seed"]
    short_sum, long, score = tree["sums"]
    return Trajectory(
        memory=Memory(sinks, window),
        seed=seed,
        seed_chunk=seed_chunk,
        noise=tensors[tree["noise"]] if tree["noise"] else None,
        decoder=_state_of(tree["decoder"], tensors),
        scoring=_state_of(tree["scoring"], tensors),
        latents=tuple(tensors[name] for name in tree["latents"]),
        frames=tuple(tensors[name] for name in tree["frames"]),
        shorts=tuple(tree["shorts"]),
        short_sum=short_sum,
        long=long,
        score=score,
        unsettled=tuple(_chunk_of(told, tensors) for told in tree["unsettled"]),
    )


def _slot(slot: Slot, packing: Packing) -> list[Any]:
    return [slot.block, slot.start_frame, slot.route.value, packing.name(slot.latents)]


def _slot_of(told: list[Any], blocks: Mapping[int, int], tensors: Mapping[str, Tensor]) -> Slot:
    block, start_frame, route, latents = told
    return Slot(blocks[block], start_frame, Route(route), tensors[latents] if latents else None)


def _chunk(chunk: Chunk, packing: Packing) -> dict[str, Any]:
    scores = chunk.scores
    return {
        "index": chunk.index,
        "seed": chunk.seed,
        "latents": packing.name(chunk.latents),
        "frames": packing.name(chunk.frames),
        "scores": [
            scores.short,
            scores.long,
            scores.fused,
            scores.quality_gain,
            scores.long_drop,
        ],
        "route": chunk.route.value,
    }


def _chunk_of(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Chunk:
    return Chunk(
        told["index"],
        told["seed"],
        tensors[told["latents"]],
        tensors[told["frames"]],
        Scores(*told["scores"]),
        Route(told["route"]),
    )


def _state(state: Any, packing: Packing) -> Any:
    if isinstance(state, DecoderState):
        return {"caches": packing.names_of(state.caches)}
    if state is None or isinstance(state, Tensor):
        return packing.name(state)
    raise TypeError(f"decoder state: want tensors, got {type(state).__name__}")


def _state_of(told: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(told, dict):
        return DecoderState(tuple(tensors[name] for name in told["caches"]))
    return tensors[told] if told else None
