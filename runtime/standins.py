"""Networks that stand where a reward's own was: recorded, compiled, or on engines until one fails.

What they replace is either a ``rewards.qwen2vl.Network``, which looks and reads, or a call from tensors to tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.graph import GraphRunner

log = logging.getLogger(__name__)

PAD_TOKENS = 64  # sequences are padded to multiples, so that prompts share recordings


@dataclass
class Backing:
    """What a reward runs on. ``fallbacks`` counts engines that gave way to torch."""

    name: str
    why: str = ""
    fallbacks: int = 0

    def give_way(self, reason: str) -> None:
        """Torch from now on, said once."""
        log.warning("%s failed (%s): torch runs this reward from now on", self.name, reason)
        self.name, self.why = "torch", f"{self.name} failed: {reason}"
        self.fallbacks += 1

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


def captured(net: Any, device: torch.device, mode: str = "cuda") -> Any:
    """``net`` with its work recorded by shape; ``mode`` as ``GraphRunner`` has them. ValueError for "cuda" on a CPU."""
    if mode == "cuda" and device.type != "cuda":
        raise ValueError(
            f"reward.backend='captured': wants a GPU, got device {device}; use 'torch'"
        )
    runner = GraphRunner(mode, device)
    return CapturedNetwork(net, runner) if looks_and_reads(net) else CapturedCall(net, runner)


def compiled(net: Any, device: torch.device) -> Any:
    """``net`` by torch.compile, for any batch size."""
    if looks_and_reads(net):
        return CompiledNetwork(net)
    return torch.compile(net, dynamic=True)


class CapturedNetwork:
    """``rewards.qwen2vl.Network`` with looking and reading recorded; sequences are padded, so that there are few lengths."""

    def __init__(self, net: Any, runner: GraphRunner) -> None:
        self.net, self.runner = net, runner

    def look(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        key = "look", tuple(grid), tuple(patches.shape)
        # Outputs hold until the next replay, and a caller may look twice before it reads.
        return self.runner.run(key, lambda seen: (self.net.look(seen, grid),), (patches,))[
            0
        ].clone()

    def embed(self, ids: Tensor) -> Tensor:
        return self.net.embed(ids)

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % PAD_TOKENS))
        key = "read", tuple(padded.shape), len(at)
        return self.runner.run(key, lambda *given: (self.net.read(*given),), (padded, at))[
            0
        ].clone()

    def read_parts(self, parts: Any, at: Tensor) -> Tensor:
        """Called, not recorded: the shapes follow how histories branch, and few launches do much work."""
        return self.net.read_parts(parts, at)


class CapturedCall:
    """A network that takes tensors and returns one, or a named tuple of them, recorded by shapes."""

    def __init__(self, net: Callable[..., Any], runner: GraphRunner) -> None:
        self.net, self.runner = net, runner
        self.kinds: dict[tuple[tuple[int, ...], ...], type[Any]] = {}  # of what it returns

    def __call__(self, *given: Tensor) -> Any:
        shapes = tuple(tuple(tensor.shape) for tensor in given)

        def work(*fixed: Tensor) -> tuple[Tensor, ...]:
            made = self.net(*fixed)
            self.kinds[shapes] = type(made)
            return (made,) if isinstance(made, Tensor) else tuple(made)

        # Outputs hold until the next replay.
        parts = [part.clone() for part in self.runner.run(shapes, work, given)]
        kind = self.kinds[shapes]
        return parts[0] if issubclass(kind, Tensor) else kind(*parts)


class CompiledNetwork:
    """``rewards.qwen2vl.Network`` with looking and reading compiled."""

    def __init__(self, net: Any) -> None:
        self.look = torch.compile(net.look, dynamic=True)
        self.read = torch.compile(net.read, dynamic=True)
        self.embed = net.embed


class GivesWay:
    """A network on engines, until one fails: then torch's, for good."""

    def __init__(self, net: Any, failure: type[Exception] | tuple[()], instead: Callable[[], Any], backing: Backing) -> None:  # fmt: skip
        self.net, self.failure, self.instead, self.backing = net, failure, instead, backing

    def look(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        return self._try(lambda net: net.look(patches, grid))

    def embed(self, ids: Tensor) -> Tensor:
        return self.net.embed(ids)

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        return self._try(lambda net: net.read(x, at))

    def __call__(self, *given: Tensor) -> Any:
        return self._try(lambda net: net(*given))

    def _try(self, work: Callable[[Any], Any]) -> Any:
        try:
            return work(self.net)
        except self.failure as error:
            if self.backing.fallbacks:
                raise
            reason = first_line(error)
        # Out of the handler, whose traceback holds the engine's memory.
        self.backing.give_way(reason)
        self.net = None  # its memory is needed for what comes instead
        self.net = self.instead()
        return work(self.net)


def looks_and_reads(net: Any) -> bool:
    """It is a ``rewards.qwen2vl.Network``."""
    return hasattr(net, "look") and hasattr(net, "read")


def first_line(error: BaseException) -> str:
    """Of an error's message, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
