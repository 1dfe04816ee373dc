"""Who am I among the processes of one video, and how I talk with the others: collectives with a time limit, no pickles.

Every rank calls ``exchange``, ``texts`` and ``broadcast`` in the same order; ``send`` and ``receive`` are between two. When
one fails, the store in which every rank notes how far it is tells whose fault it was.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.packing import Packed
from runtime.ranks import wire
from runtime.ranks.launch import Launch

MAX_TEXT_BYTES = 1 << 18
TROUBLE_CHARACTERS = 800
JOIN_SECONDS = 300.0  # processes load libraries at different speeds
STAY_SECONDS = 3.0


class RankFailed(RuntimeError):
    """Another rank stopped the video; the sentence names it."""


class World(Protocol):
    """The ranks of one video, as one of them sees them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def exchange(
        self, what: str, numbers: Sequence[float], width: int, trouble: str = ""
    ) -> list[list[float]]:
        """The numbers of every rank, at most ``width`` each. RankFailed on all ranks when one of them has ``trouble``."""
        ...

    def texts(self, what: str, text: str) -> list[str]:
        """The text of every rank."""
        ...

    def broadcast(self, what: str, packed: Packed | None, source: int) -> Packed:
        """What rank ``source`` has; None on the others."""
        ...

    def send(self, what: str, packed: Packed, target: int) -> None:
        """To a rank that receives it."""
        ...

    def receive(self, what: str, source: int) -> Packed:
        """What that rank sends."""
        ...


@dataclass(frozen=True)
class Processes:
    """A world of processes, by torch.distributed: gloo for what the host needs, NCCL between GPUs for tensors."""

    rank: int
    size: int
    store: dist.Store
    device: torch.device  # where tensors that arrive are put
    timeout_s: float

    @staticmethod
    def join(launch: Launch, device: torch.device, timeout_s: float) -> Processes:
        """Meet the other processes that torchrun started. RuntimeError when they do not come.

        ``timeout_s`` is how long each waits for a word of the others from then on.
        """
        first = timedelta(seconds=max(timeout_s, JOIN_SECONDS))
        limit = timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=first))
            mine = Processes(rank, size, dist.PrefixStore("video", store), device, timeout_s)
            mine._note("the start", 1)
            mine.store.wait([f"doing/{one}" for one in range(size)], first)
            group = dist.PrefixStore("group", store)
            dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(
                f"rank {launch.rank} of {launch.size} cannot meet the others ({reason})"
            ) from error
        store.set_timeout(limit)
        return mine

    def leave(self, trouble: str = "") -> None:
        """Go, and tell the others why; they need not wait for a rank that is not there."""
        with contextlib.suppress(RuntimeError):  # the store may be what failed
            if trouble:
                self.store.set(f"trouble/{self.rank}", trouble[:TROUBLE_CHARACTERS])
            self.store.set(f"left/{self.rank}", "")
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        if trouble and self.rank == 0:
            self._stay()

    def _stay(self) -> None:
        """Without torchrun the store lives in rank 0: the others have a moment to read in it what went wrong."""
        limit = time.monotonic() + STAY_SECONDS
        left = [f"left/{rank}" for rank in range(self.size)]
        with contextlib.suppress(RuntimeError):
            while not self.store.check(left) and time.monotonic() < limit:
                time.sleep(0.05)

    def exchange(
        self, what: str, numbers: Sequence[float], width: int, trouble: str = ""
    ) -> list[list[float]]:
        mine = wire.numbers_tensor(list(numbers), trouble, width)
        told = [wire.read_numbers(one) for one in self._gather(what, mine)]
        check_trouble([text for _, text in told])
        return [numbers for numbers, _ in told]

    def texts(self, what: str, text: str) -> list[str]:
        mine = wire.text_tensor(text)
        lengths = [int(length) for [length] in self.exchange(what, [len(mine)], 1)]
        if max(lengths) > MAX_TEXT_BYTES:
            raise ValueError(f"{what}: want at most {MAX_TEXT_BYTES} bytes, got {max(lengths)}")
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(mine)] = mine
        every = self._gather(what, padded)
        return [wire.text_of(one[:length]) for one, length in zip(every, lengths, strict=True)]

    def broadcast(self, what: str, packed: Packed | None, source: int) -> Packed:
        with self._together(what):

            def one(x: Tensor) -> None:
                dist.broadcast(x, source)

            return self._deliver(packed, one) if packed else self._take(one)

    def send(self, what: str, packed: Packed, target: int) -> None:
        with self._together(f"{what} for rank {target}", target):
            self._deliver(packed, lambda x: dist.send(x, target))

    def receive(self, what: str, source: int) -> Packed:
        def one(x: Tensor) -> None:
            dist.recv(x, source)

        with self._together(f"{what} of rank {source}", source):
            return self._take(one)

    def _gather(self, what: str, mine: Tensor) -> list[Tensor]:
        every = [torch.empty_like(mine) for _ in range(self.size)]
        with self._together(what):
            dist.all_gather(every, mine)
        return every

    def _deliver(self, packed: Packed, one: Callable[[Tensor], object]) -> Packed:
        header = wire.header_of(packed.tree, packed.tensors)
        one(torch.tensor([len(header)]))
        one(header)
        for tensor in packed.tensors.values():
            if tensor.numel():
                one(wire.bytes_of(tensor))
        return packed

    def _take(self, one: Callable[[Tensor], object]) -> Packed:
        length = torch.zeros(1, dtype=torch.int64)
        one(length)
        if not 0 < int(length) <= wire.MAX_HEADER_BYTES:
            raise ValueError(
                f"parcel: want a header of 1 to {wire.MAX_HEADER_BYTES} bytes, got {int(length)}"
            )
        header = torch.empty(int(length), dtype=torch.uint8)
        one(header)
        tree, sheets = wire.read_header(header)
        tensors = {sheet.name: wire.empty_for(sheet, self.device) for sheet in sheets}
        for tensor in tensors.values():
            if tensor.numel():
                one(wire.bytes_of(tensor))
        return Packed(tree, tensors)

    @contextlib.contextmanager
    def _together(self, what: str, other: int | None = None) -> Iterator[None]:
        """Note that this rank got to ``what``, which is with all, or with one ``other``; tell whose fault it is if it fails."""
        try:
            self._note(what, other is None)
            yield
        except RuntimeError as error:
            raise RankFailed(self._blame(what, other, error)) from error

    def _note(self, what: str, steps: int) -> None:
        """``steps`` counts what all do together, so whoever has fewer is behind."""
        self.store.add(f"steps/{self.rank}", int(steps))
        self.store.set(f"doing/{self.rank}", what)

    def _blame(self, what: str, other: int | None, error: RuntimeError) -> str:
        """A sentence that names the rank that made ``what`` fail."""
        here = f"rank {self.rank} was at {what!r}"
        try:
            others = [rank for rank in range(self.size) if rank != self.rank]
            for rank in others:
                if self.store.check([f"trouble/{rank}"]):
                    return f"rank {rank} gave up: {self.store.get(f'trouble/{rank}').decode()}"
            steps = {rank: (self.store.add(f"steps/{rank}", 0), rank != other) for rank in others}
            last = min(others, key=lambda rank: steps[rank])
            at = self.store.get(f"doing/{last}").decode()
        except RuntimeError:
            return f"rank 0, which keeps the others in touch, is gone; {here}"
        gone = any(word in str(error).lower() for word in ("closed", "reset"))
        how = "has died" if gone else f"has not answered within {self.timeout_s:g} s"
        return f"rank {last} {how}: the last that was heard of it is {at!r}; {here}"


def check_trouble(troubles: Sequence[str]) -> None:
    """RankFailed by the first rank that has any."""
    for rank, trouble in enumerate(troubles):
        if trouble:
            raise RankFailed(f"rank {rank} gave up: {trouble}")
