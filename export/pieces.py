"""What is exported of a reward: modules with named inputs and outputs, the axes that stay free, and what the runtime must know.

A reward is exported by a function that takes ``Wanted`` and returns ``Plan``; ``RECIPES`` names it. A new reward is one row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from runtime.exported import Port, Range
from runtime.types import Clip, RewardModel

RECIPES = {  # reward -> the function that says how it is exported
    "clip-h": "runtime.export.pictures:pictures",
    "hpsv3": "runtime.export.qwen2vl:hpsv3",
    "imagereward": "runtime.export.pictures:pictures",
    "mps": "runtime.export.pictures:pictures",
    "sprites-image": "runtime.export.sprites:image",
    "sprites-video": "runtime.export.sprites:video",
    "videoalign": "runtime.export.qwen2vl:videoalign",
}
DTYPES = {  # precision -> of weights and activations; fp8 is 8 bits in the products and bfloat16 around them
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for on the command line."""

    reward: str
    precision: str = "fp32"
    weights: str = ""  # as reward.weights
    frame_size: tuple[int, int] | None = None  # height and width in pixels; None: 480 x 832
    frames: int | None = None  # of the longest clip; None: ten chunks
    prompt_words: int = 256  # of the longest prompt
    dtype: torch.dtype | None = None  # around 8-bit products; None: the precision's

    @property
    def base(self) -> torch.dtype:
        """Of weights and activations."""
        return self.dtype or DTYPES[self.precision]

    @property
    def sizes(self) -> dict[str, Any]:
        """What fixes the shapes of the graphs, as export.json keeps it."""
        frame_size = list(self.frame_size) if self.frame_size else None
        return {"frame_size": frame_size, "frames": self.frames, "prompt_words": self.prompt_words}


@dataclass(frozen=True, slots=True)
class Piece:
    """One graph to be: a module whose ``forward`` takes ``inputs`` in order."""

    module: nn.Module
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    axes: Mapping[str, tuple[int, int]]  # name of a free axis -> least and largest
    profiles: Sequence[Mapping[str, Range]]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with: free axes strictly inside their ranges where they can be, so that none is taken for a constant."""
        sizes = {name: min(low + 1, high) for name, (low, high) in self.axes.items()}
        source = torch.Generator().manual_seed(0)
        made = []
        for port in self.inputs.values():
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.shape]
            dtype = getattr(torch, port.dtype)
            # Indices are in range whatever they index.
            drawn = torch.zeros(shape) if dtype == torch.int64 else torch.rand(shape, generator=source)  # fmt: skip
            made.append(drawn.to(dtype))
        return tuple(made)


@dataclass(frozen=True, slots=True)
class Plan:
    """A reward, the pieces it falls into and how to put graphs in their place."""

    reward: RewardModel  # in float32, by torch: what graphs are compared with
    pieces: Mapping[str, Piece]
    on_graphs: Callable[[Mapping[str, Any]], RewardModel]
    clips: Callable[
        [], Sequence[Clip]
    ]  # to compare scores on, of sizes and lengths that are not traced
    weights_sha256: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    rounded: Sequence[str] = ()  # beginnings of the names of linears that fp8 rounds, in any piece


def make_plan(wanted: Wanted) -> Plan:
    """How ``wanted.reward`` is exported. ValueError for a reward that is not, listing those that are."""
    if wanted.reward not in RECIPES:
        raise ValueError(f"reward: want one of {', '.join(RECIPES)}, got {wanted.reward!r}")
    module, _, name = RECIPES[wanted.reward].partition(":")
    return getattr(importlib.import_module(module), name)(wanted)


def port(dtype: torch.dtype, *shape: int | str) -> Port:
    return Port(str(dtype).removeprefix("torch."), shape)
