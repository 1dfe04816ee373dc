"""Chooses what runs a reward's network: torch, plain, compiled or captured, or the graphs that were exported of it.

    auto          on a GPU: tensorrt where graphs and library are there, else captured if it is small; else torch
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from runtime import manifest
from runtime.exported import ENGINES, FILE, RANDOM, Exported, read_export, weights_sha256
from runtime.graph import GraphRunner
from runtime.rewards import PUBLISHED, REWARDS, assemble, load_reward, published_folder
from runtime.settings import RewardSettings
from runtime.standins import Backing, GivesWay, captured, compiled, first_line, looks_and_reads
from runtime.types import Compiled, RewardModel

log = logging.getLogger(__name__)

ON_GRAPHS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
WEIGHTS = "model.safetensors"
OWN_FILES = ("rubric.txt", "questions.json")  # that users put beside a reward's weights


@runtime_checkable
class Replaceable(Protocol):
    """A reward whose network may be replaced by another that is called alike."""

    net: Any


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
        log.info("reward %s runs on %s", name, backings[name])
        return model

    return assemble(expression, reward.statistics, load), backings


def _load(name: str, reward: RewardSettings, place: Place) -> tuple[RewardModel, Backing]:
    asked = reward.backend
    if place.verify and name in PUBLISHED and reward.weights != RANDOM:
        manifest.verify(published_folder(name, reward.weights), OWN_FILES)
    if asked in ON_GRAPHS:
        return _on_graphs(name, asked, reward, place)
    if asked == "auto" and place.device.type == "cuda" and reward.graphs:
        try:
            return _on_graphs(name, "tensorrt", reward, place)
        except (ValueError, RuntimeError) as error:
            log.warning("reward %s: no tensorrt here (%s)", name, first_line(error))
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
    if looks_and_reads(model.net):
        # By arithmetic a thousand launches are nothing beside 150 ms of work; and every number of pictures is a shape.
        return Backing("torch", "auto: its launches are nothing beside its work")
    model.net = captured(model.net, device)
    return Backing("captured", "auto: no engines")


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
        backing.give_way(first_line(error))
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
