"""Who am I among the processes of one video, and how I talk with the others: collectives with a time limit, no pickles.

Every rank calls ``exchange``, ``texts`` and ``broadcast`` in the same order; ``send`` and ``receive`` are between two. When
one fails, the store in which every rank notes how far it is tells whose fault it was.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.packing import Packed
from runtime.ranks import wire
from runtime.settings import Launch

MAX_TEXT_BYTES = 1 << 18
TROUBLE_CHARACTERS = 800


class RankFailed(RuntimeError):
    """Another rank stopped the video; the sentence names it."""


class World(Protocol):
    """The ranks of one video, as one of them sees them."""

    rank: int
    size: int

    def exchange(self, what: str, numbers: Sequence[float], width: int, trouble: str = "") -> list[list[float]]:
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
        """Meet the other processes that torchrun started. RuntimeError when they do not come within the time limit."""
        limit = timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=limit))
            store.set_timeout(limit)
            mine = Processes(rank, size, dist.PrefixStore("video", store), device, timeout_s)
            mine._note("the start")
            group = dist.PrefixStore("group", store)
            dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(
                f"rank {launch.rank} of {launch.size} cannot meet the others within {timeout_s:g} s ({reason})"
            ) from error
        return mine

    def leave(self, trouble: str = "") -> None:
        """Tell the others why, and go; they need not wait for a rank that is not there."""
        if trouble:
            with contextlib.suppress(RuntimeError):  # the store may be what failed
                self.store.set(f"trouble/{self.rank}", trouble[:TROUBLE_CHARACTERS])
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

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
        with self._together(f"{what} for rank {target}"):
            self._deliver(packed, lambda x: dist.send(x, target))

    def receive(self, what: str, source: int) -> Packed:
        def one(x: Tensor) -> None:
            dist.recv(x, source)

        with self._together(f"{what} of rank {source}"):
            return self._take(one)

    def _gather(self, what: str, mine: Tensor) -> list[Tensor]:
        every = [torch.empty_like(mine) for _ in range(self.size)]
        with self._together(what):
            dist.all_gather(every, mine)
        return every

    def _deliver(self, packed: Packed, one: object) -> Packed:
        header = wire.header_of(packed.tree, packed.tensors)
        one(torch.tensor([len(header)]))
        one(header)
        for tensor in packed.tensors.values():
            if tensor.numel():
                one(wire.bytes_of(tensor))
        return packed
