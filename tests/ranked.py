"""Several ranks of one video in threads of one process: as quick as a single engine, with the same calls in the same order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import Queue
from typing import Any, TypeVar

import torch

from runtime.engine import Engine
from runtime.packing import Packed
from runtime.ranks import wire
from runtime.ranks.engine import RankedEngine
from runtime.ranks.world import check_trouble
from runtime.types import ChunkEvent
from tests.tiny import tiny_engine

SECONDS = 60
ROUTES = {"memory.quality_threshold": -0.3, "memory.transition_threshold": 0.0}
ALIKE = {**ROUTES, "run.litters": True}
CHUNKS = 6
Made = TypeVar("Made")


class Hub:
    """Where the threads of one world meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=SECONDS)
        self.board: list = [None] * size
        self.mail = {(a, b): Queue() for a in range(size) for b in range(size)}
        self.log: list[str] = []  # what was sent from whom to whom


class Threads:
    """A ``World`` in a thread. What is said goes through bytes, as between processes."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self.hub, self.rank, self.size = hub, rank, hub.size

    def _all(self, what: str, said: object) -> list:
        self.hub.board[self.rank] = (what, said)
        self.hub.barrier.wait()
        every = list(self.hub.board)
        self.hub.barrier.wait()
        assert {what for what, _ in every} == {what}, f"ranks are at different places: {every}"
        return [said for _, said in every]

    def exchange(
        self, what: str, numbers: Sequence[float], width: int, trouble: str = ""
    ) -> list[list[float]]:
        said = self._all(what, wire.numbers_tensor(list(numbers), trouble, width))
        told = [wire.read_numbers(one) for one in said]
        check_trouble([text for _, text in told])
        return [numbers for numbers, _ in told]

    def texts(self, what: str, text: str) -> list[str]:
        return self._all(what, text)

    def broadcast(self, what: str, packed: Packed | None, source: int) -> Packed:
        assert (packed is not None) == (self.rank == source), what
        said = self._all(f"{what} from {source}", _sealed(packed) if packed else None)
        return _opened(said[source])

    def send(self, what: str, packed: Packed, target: int) -> None:
        self.hub.log.append(f"{what} {self.rank} -> {target}")
        self.hub.mail[self.rank, target].put((what, _sealed(packed)))

    def receive(self, what: str, source: int) -> Packed:
        sent, sealed = self.hub.mail[source, self.rank].get(timeout=SECONDS)
        assert sent == what, f"wanted {what}, got {sent}"
        return _opened(sealed)


def _sealed(packed: Packed) -> tuple:
    header = wire.header_of(packed.tree, packed.tensors)
    return header, [wire.bytes_of(one).clone() for one in packed.tensors.values()]


def _opened(sealed: tuple) -> Packed:
    header, raws = sealed
    tree, sheets = wire.read_header(header)
    tensors = {}
    for sheet, raw in zip(sheets, raws, strict=True):
        tensors[sheet.name] = tensor = wire.empty_for(sheet, raw.device)
        wire.bytes_of(tensor).copy_(raw)
    return Packed(tree, tensors)


def on_ranks(
    size: int, build: Callable[[int], Engine], use: Callable[[RankedEngine], Made]
) -> tuple[list[Made | BaseException], Hub]:
    """``use`` of a ranked engine on every rank, and where they met. An error is what its rank made."""
    hub, made = Hub(size), [None] * size
    engines = [build(rank) for rank in range(size)]

    def run(rank: int) -> None:
        try:
            made[rank] = use(RankedEngine(engines[rank], Threads(hub, rank)))
        except BaseException as error:
            made[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return made, hub


def raw(x: torch.Tensor) -> bytes:
    return x.contiguous().view(torch.uint8).numpy().tobytes()


def told(events: Iterable[ChunkEvent]) -> list:
    """Everything of a video that a user could compare."""
    return [
        (
            e.index,
            e.seed,
            e.route,
            repr(e.scores),
            raw(e.frames),
            raw(e.latents),
        )
        for e in events
    ]


def engine_of(
    changes: Mapping[str, Any] | None = None, chunks: int = CHUNKS, **parts: Any
) -> Engine:
    """A tiny engine whose videos do not depend on the number of ranks."""
    return tiny_engine(chunks, {**ALIKE, **(changes or {})}, **parts)
