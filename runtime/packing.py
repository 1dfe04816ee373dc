"""A video between two chunks as plain values: what it needs to go on, in another process or another day.

``Packed`` is a tree that JSON can hold and tensors by name. What histories share lies in it once and is shared again when
it is unpacked: siblings stay siblings, and a chunk that all survivors have is still one chunk.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from runtime.generators.decoder_state import DecoderState
from runtime.memory import KVPool, Lease
from runtime.types import Chunk, Memory, Route, Scores, Slot, Trajectory

Tree = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """Everything by value. ``tensors`` lie on the host and belong to nobody else, unless its packer took others."""

    tree: Tree
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass
class Packer:
    """Collects tensors and chunks by who they are, so that each is packed once.

    ``take`` makes of a tensor what is packed: by default a copy on the host.
    """

    pool: KVPool
    take: Callable[[Tensor], Tensor] = field(default_factory=lambda: on_host)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    chunks: list[Tree] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)
    _places: dict[int, int] = field(default_factory=dict)
    _alive: list[object] = field(default_factory=list)  # an id is good while its object lives

    def tensor(self, tensor: Tensor | None) -> str | None:
        """The name under which a tensor is packed."""
        if tensor is None:
            return None
        if id(tensor) not in self._names:
            name = f"value.{len(self._names)}"
            self._names[id(tensor)] = name
            self._alive.append(tensor)
            self.tensors[name] = self.take(tensor)
        return self._names[id(tensor)]

    def histories(self, survivors: Sequence[Trajectory]) -> list[Tree]:
        """The survivors, and with them the blocks that they hold."""
        return [self._history(survivor) for survivor in survivors]

    def chunk(self, chunk: Chunk) -> int:
        """The place of a chunk in ``chunks``."""
        if id(chunk) not in self._places:
            self._places[id(chunk)] = len(self.chunks)
            self._alive.append(chunk)
            self.chunks.append(
                {
                    "index": chunk.index,
                    "seed": chunk.seed,
                    "latents": self.tensor(chunk.latents),
                    "frames": self.tensor(chunk.frames),
                    "scores": [told(value) for value in dataclasses.astuple(chunk.scores)],
                    "route": chunk.route.value,
                }
            )
        return self._places[id(chunk)]

    def _history(self, one: Trajectory) -> Tree:
        return {
            "sinks": [self._slot(slot) for slot in one.memory.sinks],
            "window": [self._slot(slot) for slot in one.memory.window],
            "seed": one.seed,
            "seed_chunk": one.seed_chunk,
            "noise": self.tensor(one.noise),
            "decoder": self._state(one.decoder),
            "scoring": self._state(one.scoring),
            "latents": [self.tensor(latents) for latents in one.latents],
            "frames": [self.tensor(frames) for frames in one.frames],
            "shorts": [told(short) for short in one.shorts],
            "judged": one.judged,
            "numbers": [told(one.short_sum), told(one.long), told(one.score)],
            "unsettled": [self.chunk(chunk) for chunk in one.unsettled],
        }

    def _slot(self, slot: Slot) -> Tree:
        if (name := f"block.{slot.block}") not in self.tensors:
            self.tensors[name] = self.take(self.pool.kv[:, slot.block])
            if slot.block in self.pool.shadows:
                shadow = self.pool.shadows[slot.block]
                self.tensors[f"shadow.{slot.block}"] = self.take(shadow)
        return {
            "block": slot.block,
            "start_frame": slot.start_frame,
            "route": slot.route.value,
            "latents": self.tensor(slot.latents),
        }

    def _state(self, state: Any) -> Any:
        if state is None or isinstance(state, Tensor):
            return self.tensor(state)
        if isinstance(state, DecoderState):
            return [self.tensor(cache) for cache in state.caches]
        raise ValueError(f"decoder: want a state of tensors, got {type(state).__name__}")


class Unpacker:
    """Makes the values of a ``Packed`` again, in the memory of ``pool``; ``lease`` holds the blocks."""

    def __init__(self, packed: Packed, chunks: Sequence[Tree], pool: KVPool, lease: Lease) -> None:
        self.packed, self.pool, self.lease = packed, pool, lease
        self._here: dict[str, Tensor] = {}
        self._blocks: dict[int, int] = {}  # there -> here
        self._chunks = [self._chunk(tree) for tree in chunks]

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the pool's device; the same one whenever it is asked for."""
        if name not in self._here:
            self._here[name] = self.packed.tensors[name].to(self.pool.kv.device)
        return self._here[name]

    def histories(self, trees: Sequence[Tree]) -> tuple[Trajectory, ...]:
        """The survivors; RuntimeError when the pool has no room for their blocks."""
        survivors = tuple(self._history(tree) for tree in trees)
        for survivor in survivors:
            self.lease.hold(survivor.memory)
        for block in self._blocks.values():  # held for its histories now
            self.lease.drop([Slot(block, 0)])
        self._blocks.clear()
        return survivors

    def chunks(self, places: Sequence[int]) -> tuple[Chunk, ...]:
        """Some of the chunks."""
        return tuple(self._chunks[place] for place in places)

    def _maybe(self, name: str | None) -> Tensor | None:
        return None if name is None else self.tensor(name)

    def _chunk(self, tree: Tree) -> Chunk:
        scores = Scores(*(heard(value) for value in tree["scores"]))
        return Chunk(
            tree["index"],
            tree["seed"],
            self.tensor(tree["latents"]),
            self.tensor(tree["frames"]),
            scores,
            Route(tree["route"]),
        )

    def _history(self, tree: Tree) -> Trajectory:
        sinks, window = (
            tuple(self._slot(slot) for slot in tree[part]) for part in ("sinks", "window")
        )
        short_sum, long, score = (heard(value) for value in tree["numbers"])
        return Trajectory(
            memory=Memory(sinks, window),
            seed=tree["seed"],
            seed_chunk=tree["seed_chunk"],
            noise=self._maybe(tree["noise"]),
            decoder=self._state(tree["decoder"]),
            scoring=self._state(tree["scoring"]),
            latents=tuple(self.tensor(name) for name in tree["latents"]),
            frames=tuple(self.tensor(name) for name in tree["frames"]),
            shorts=tuple(heard(short) for short in tree["shorts"]),
            short_sum=short_sum,
            judged=int(tree["judged"]),
            long=long,
            score=score,
            unsettled=tuple(self._chunks[place] for place in tree["unsettled"]),
        )

    def _slot(self, tree: Tree) -> Slot:
        there = tree["block"]
        if there not in self._blocks:
            self._blocks[there] = here = self.lease.allocate()
            self.pool.kv[:, here] = self.packed.tensors[f"block.{there}"].to(self.pool.kv.device)
            if f"shadow.{there}" in self.packed.tensors:
                shadow = self.packed.tensors[f"shadow.{there}"]
                self.pool.shadows[here] = shadow.to(self.pool.kv.device)
        place = self._blocks[there], tree["start_frame"]
        return Slot(*place, Route(tree["route"]), self._maybe(tree["latents"]))

    def _state(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return DecoderState(tuple(self.tensor(name) for name in tree))
        return self._maybe(tree)


def on_host(tensor: Tensor) -> Tensor:
    """A contiguous copy on the host."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def told(number: float) -> float | str:
    """A number for JSON, which knows none that is not finite."""
    return number if math.isfinite(number) else str(number)


def heard(value: float | str) -> float:
    """``told`` the other way round."""
    return float(value)


def plain(tree: Tree) -> Tree:
    """``tree`` as JSON would give it back. ValueError for what JSON cannot hold."""
    return json.loads(json.dumps(tree, allow_nan=False))
