"""Chooses what runs a reward's network: torch, plain, compiled or captured, or the graphs that were exported of it.

    auto          on a GPU: tensorrt where graphs and library are there, else captured; on the CPU: torch
    torch         the modules as they are
    compiled      torch.compile of what looks and what reads
    captured      a CUDA graph for every shape
    onnxruntime, tensorrt, tensorrt-rtx    exported graphs (``python -m runtime.export``); torch's weights are not read

What is asked for by name and cannot be had is an error that says what to do. An engine that fails while it runs gives way
to torch for good, with one warning, and is counted.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from runtime.exported import ENGINES, FILE, RANDOM, Exported, read_export, weights_sha256
from runtime.graph import GraphRunner
from runtime.rewards import PUBLISHED, REWARDS, assemble, load_reward, published_folder
from runtime.settings import RewardSettings
from runtime.types import Compiled, RewardModel

log = logging.getLogger(__name__)

ON_GRAPHS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
WEIGHTS = "model.safetensors"
PAD_TOKENS = 64  # sequences are padded to multiples, so that prompts share recordings


@runtime_checkable
class Replaceable(Protocol):
    """A reward whose network may be replaced by another that is called alike."""

    net: Any


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reward runs, in what, and whether files are hashed before they are read."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    verify: bool = True


def load_backed(
    expression: str, reward: RewardSettings, place: Place
) -> tuple[RewardModel, dict[str, Backing]]:
    """The reward model of ``expression``, or the ensemble, on what ``reward.backend`` says, and what that is by name.

    ValueError or RuntimeError in one line, with what to do, for a backend that was named and cannot be had.
    """
    backings: dict[str, Backing] = {}

    def load(name: str) -> RewardModel:
        model, backings[name] = _load(name, reward, place)
        return model

    return assemble(expression, reward.statistics, load), backings


def _load(name: str, reward: RewardSettings, place: Place) -> tuple[RewardModel, Backing]:
    asked = reward.backend
    if asked in ON_GRAPHS:
        return _on_graphs(name, asked, reward, place)
    if asked == "auto" and place.device.type == "cuda" and reward.graphs:
        try:
            return _on_graphs(name, "tensorrt", reward, place)
        except (ValueError, RuntimeError) as error:
            log.warning("reward %s: no tensorrt here (%s)", name, _first_line(error))
    model = load_reward(name, str(place.device), reward.weights, place.dtype)
    if asked == "auto":
        return model, _settle(model, place.device)
    if asked != "torch":
        if not isinstance(model, Replaceable):
            raise ValueError(
                f"reward.backend={asked!r}: {name} has no network that could be replaced; use 'torch'"
            )
        model.net = (compiled if asked == "compiled" else captured)(model.net, place.device)
    return model, Backing(asked)


def _settle(model: RewardModel, device: torch.device) -> Backing:
    """What ``auto`` makes of a reward on torch."""
    if device.type != "cuda":
        return Backing("torch", "auto: the CPU gains nothing from graphs")
    if not isinstance(model, Replaceable):
        return Backing("torch", "auto: it has no network that could be captured")
    model.net = captured(model.net, device)
    return Backing("captured", "auto: no engines")


def captured(net: Any, device: torch.device, mode: str = "cuda") -> Any:
    """``net`` with its work recorded by shape; ``mode`` as ``GraphRunner`` has them. ValueError for "cuda" on a CPU."""
    if mode == "cuda" and device.type != "cuda":
        raise ValueError(
            f"reward.backend='captured': wants a GPU, got device {device}; use 'torch'"
        )
    runner = GraphRunner(mode, device)
    return CapturedNetwork(net, runner) if _looks_and_reads(net) else CapturedCall(net, runner)


def compiled(net: Any, device: torch.device) -> Any:
    """``net`` by torch.compile, for any batch size."""
    if _looks_and_reads(net):
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


class CapturedCall:
    """A network that takes frames and returns a named tuple of tensors, recorded by shape."""

    def __init__(self, net: Callable[[Tensor], Any], runner: GraphRunner) -> None:
        self.net, self.runner = net, runner
        self.kinds: dict[tuple[int, ...], Callable[..., Any]] = {}

    def __call__(self, frames: Tensor) -> Any:
        shape = tuple(frames.shape)

        def work(frames: Tensor) -> tuple[Tensor, ...]:
            reading = self.net(frames)
            self.kinds[shape] = type(reading)
            return tuple(reading)

        parts = self.runner.run(shape, work, (frames,))
        return self.kinds[shape](*(part.clone() for part in parts))


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

    def __call__(self, frames: Tensor) -> Any:
        return self._try(lambda net: net(frames))

    def _try(self, work: Callable[[Any], Any]) -> Any:
        try:
            return work(self.net)
        except self.failure as error:
            if self.backing.fallbacks:
                raise
            reason = _first_line(error)
        # Out of the handler, whose traceback holds the engine's memory.
        self.backing.give_way(reason)
        self.net = None  # its memory is needed for what comes instead
        self.net = self.instead()
        return work(self.net)


def _on_graphs(
    name: str, asked: str, reward: RewardSettings, place: Place
) -> tuple[RewardModel, Backing]:
    if asked != "onnxruntime":
        _check_vendor(asked, place.device)
    kind = reward_kind(name)
    if not hasattr(kind, "on_graphs"):
        raise ValueError(f"reward.backend={asked!r}: {name} runs by torch alone; use 'torch'")
    exported = find_export(name, asked, reward, place.verify)
    backing = Backing(asked, f"graphs in {exported.folder}")

    def by_torch() -> Any:
        # The rest of the reward was made for the graphs' dtype.
        dtype = getattr(torch, exported.constants.get("dtype", "float32"))
        return load_reward(name, str(place.device), reward.weights, dtype)

    open_graph, failure = _opener(asked, exported, place)
    try:
        graphs = {graph: open_graph(graph) for graph in exported.graphs}
        path = weights_path(name, reward.weights)
        model = kind.on_graphs(place.device, path, graphs, exported.constants)
    except KeyError as error:
        raise ValueError(f"{exported.folder / FILE}: has no graph {error}; export again") from None
    except failure as error:
        backing.give_way(_first_line(error))
    else:
        if failure:
            model.net = GivesWay(model.net, failure, lambda: by_torch().net, backing)
        return model, backing
    return by_torch(), backing


def find_export(name: str, asked: str, reward: RewardSettings, verify: bool) -> Exported:
    """The graphs of ``name`` in reward.graphs, whole and made from reward.weights. ValueError with the command that makes them."""
    weights = f" --weights {reward.weights}" if reward.weights else ""
    target = asked.replace("onnxruntime", "onnx")
    command = f"python -m runtime.export {name} --to {target}{weights} -o {reward.graphs or 'DIR'}"
    if not reward.graphs:
        raise ValueError(
            f"reward.backend={asked!r}: wants exported graphs; run `{command}` and set reward.graphs=DIR"
        )
    folder = Path(reward.graphs) / name
    if not (folder / FILE).is_file():
        raise ValueError(
            f"reward.backend={asked!r}: {folder / FILE}: no such file; run `{command}`"
        )
    exported = read_export(folder)
    if exported.reward != name:
        raise ValueError(f"{folder / FILE}: is an export of {exported.reward}; run `{command}`")
    if verify:
        exported.verify()
    wanted = weights_hash(name, reward.weights)
    if exported.weights_sha256 != wanted:
        raise ValueError(
            f"{folder / FILE}: its graphs were made from weights {exported.weights_sha256[:16]}, "
            f"but reward.weights holds {wanted[:16]}; run `{command}`"
        )
    return exported


def _check_vendor(asked: str, device: torch.device) -> None:
    """Raises what stands in the way of any engine at all, whatever the graphs."""
    if device.type != "cuda":
        raise ValueError(
            f"reward.backend={asked!r}: its engines run on a GPU, got device {device}; use 'onnxruntime' or 'torch'"
        )
    trt = importlib.import_module("runtime.trt")
    trt.VENDORS[asked].load()


def _opener(
    asked: str, exported: Exported, place: Place
) -> tuple[Callable[[str], Compiled], type[Exception] | tuple[()]]:
    """What opens a graph by name, and the error that torch stands in for; (): none, an error is the caller's to see."""
    if asked == "onnxruntime":
        from runtime.ort import OrtGraph

        return lambda name: OrtGraph(exported.path(name), exported.graphs[name], place.device), ()
    trt = importlib.import_module("runtime.trt")
    record = GraphRunner("cuda", place.device).run
    folder = exported.folder / ENGINES
    where = trt.EnginePlace(asked, exported.precision, folder, place.device, record=record)
    return (
        lambda name: trt.open_engine(exported.path(name), exported.graphs[name], where),
        trt.EngineError,
    )


def reward_kind(name: str) -> Any:
    """The class behind a name that is known."""
    module, _, attribute = REWARDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def weights_path(name: str, weights: str) -> Path | None:
    """What a reward's ``on_graphs`` reads: the folder of a published one, the file of an embedded one; None: random weights."""
    if weights == RANDOM:
        return None
    if name not in PUBLISHED:
        return Path(weights) / name / WEIGHTS if weights else reward_kind(name).packaged
    return published_folder(name, weights)


def weights_hash(name: str, weights: str) -> str:
    """Of the weights that reward.weights means, as export.json keeps it."""
    path = weights_path(name, weights)
    if path is None:
        return RANDOM
    return weights_sha256(path / WEIGHTS if name in PUBLISHED else path)


def _looks_and_reads(net: Any) -> bool:
    return hasattr(net, "look") and hasattr(net, "read")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def describe(backings: Mapping[str, Backing]) -> str:
    """Which model runs on what, for people."""
    if len(backings) == 1:
        return str(*backings.values())
    return ", ".join(f"{name}: {backing}" for name, backing in backings.items())
