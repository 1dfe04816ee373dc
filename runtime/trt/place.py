"""What an engine is for: which library, which GPU, which types, and the folder that keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.trt.vendor import EngineError, Vendor, vendor

PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
PORTABLE = "portable"  # the target of an engine that was built without a GPU

# ``GraphRunner.run``: key, work, inputs -> outputs. The first call of a key records, every later one replays.
Record = Callable[[Hashable, Callable[..., tuple[Tensor, ...]], Sequence[Tensor]], tuple[Tensor, ...]]  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What may be chosen when an engine is built. Types are none of it: they are the graph's own."""

    tf32: bool = False  # lets fp32 products round their inputs to 10 bits
    refit: bool = False  # weights can be exchanged later
    weight_streaming: bool = (
        False  # weights may stay in host memory; see EnginePlace.streaming_bytes
    )
    workspace_bytes: int = 0  # that the builder may use; 0: the library's default
    level: int = 3  # of the builder's search, 0 to 5

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 5:
            raise ValueError(f"engine level: want a value in 0..5, got {self.level}")
        if self.workspace_bytes < 0:
            raise ValueError(f"workspace_bytes: want at least 0, got {self.workspace_bytes}")


@dataclass(frozen=True, slots=True)
class EnginePlace:
    """Where an engine runs and where its files lie."""

    vendor: str  # "tensorrt" or "tensorrt-rtx"
    precision: str  # of the exported graph, as export.json says: fp32, fp16, bf16 or fp8
    folder: Path  # of the engines, usually ``engines`` beside export.json
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))  # "cpu": for none in particular  # fmt: skip
    options: EngineOptions = EngineOptions()
    record: Record | None = None  # a graph runner's ``run``; None: every call is enqueued anew
    streaming_bytes: int | None = None  # of streamable weights that stay on the GPU; None: all

    def __post_init__(self) -> None:
        vendor(self.vendor)
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"engine precision: want one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if self.streaming_bytes is not None and not self.options.weight_streaming:
            raise ValueError("streaming_bytes: wants options.weight_streaming=True")

    @property
    def kind(self) -> Vendor:
        return vendor(self.vendor)

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def targets(self) -> tuple[str, ...]:
        """What an engine may have been built for to be of use here, best first. The first is what gets built.

        EngineError when nothing can be built for the device.
        """
        if not self.on_gpu:
            if not self.kind.portable:
                raise EngineError(f"{self.vendor}: builds on the GPU that it builds for, got device {self.device}")  # fmt: skip
            return (PORTABLE,)
        if not torch.cuda.is_available():
            raise EngineError(f"{self.vendor}: wants a GPU, and torch {torch.__version__} sees none")  # fmt: skip
        own = gpu(self.device)
        return (own, PORTABLE) if self.kind.portable else (own,)


def gpu(device: torch.device | str) -> str:
    """Name and compute capability of a GPU."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"


def on_device(place: EnginePlace) -> Any:
    """A context in which the place's GPU is the current one."""
    return torch.cuda.device(place.device) if place.on_gpu else contextlib.nullcontext()
