"""Puts exported graphs where a reward's network was: Qwen2-VL on two graphs, the others on one.

A graph's outputs are good until its next call, so what is kept beyond that is copied.
Legend: N rows, P patches of a picture, S tokens, B bucket length, R read-out tokens, O outputs of the head, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.qwen2vl import Qwen2VLConfig
from runtime.rewards.qwen2vl_text import DecoderConfig
from runtime.shards import Stored
from runtime.types import Compiled, row_ranges
from runtime.weights import compared, fill_random_, refuse_infinite

EMBEDDING = "model.embed_tokens."
Reading = TypeVar("Reading")


@dataclass(frozen=True, slots=True)
class Limits:
    """What two exported graphs were made for; the constants of their export.json."""

    dtype: torch.dtype
    grid: tuple[int, int]  # rows and columns of patches
    buckets: tuple[int, ...]  # lengths that sequences are padded to, rising
    pictures: int  # at once
    rows: int  # at once

    @staticmethod
    def read(constants: Mapping[str, Any]) -> Limits:
        """ValueError names a constant that is missing or wrong."""
        dtype = _dtype(constants)
        grid, buckets = _numbers(constants, "grid"), _numbers(constants, "buckets")
        if len(grid) != 2:
            raise ValueError(f"constants.grid: want rows and columns, got {list(grid)}")
        if sorted(set(buckets)) != list(buckets):
            raise ValueError(f"constants.buckets: want rising lengths, got {list(buckets)}")
        (pictures,), (rows,) = (_numbers(constants, name) for name in ("pictures", "rows"))
        return Limits(dtype, (grid[0], grid[1]), buckets, pictures, rows)


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What the exported graph of a picture network was made for."""

    dtype: torch.dtype  # of pixels and weights
    pictures: int  # at once

    @staticmethod
    def read(constants: Mapping[str, Any]) -> PictureLimits:
        """ValueError names a constant that is missing or wrong."""
        (pictures,) = _numbers(constants, "pictures")
        return PictureLimits(_dtype(constants), pictures)


def _dtype(constants: Mapping[str, Any]) -> torch.dtype:
    name = constants.get("dtype")
    if name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"constants.dtype: want float32, float16 or bfloat16, got {name!r}")
    return getattr(torch, name)


def _numbers(constants: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = constants.get(name)
    values = value if isinstance(value, list) else [value]
    if not values or any(type(number) is not int or number < 1 for number in values):
        raise ValueError(f"constants.{name}: want whole numbers of at least 1, got {value!r}")
    return tuple(values)


class GraphNetwork:
    """``qwen2vl.Network`` on the graphs "vision" and "language"; the embedding's rows are looked up by torch."""

    def __init__(
        self,
        graphs: Mapping[str, Compiled],
        limits: Limits,
        config: Qwen2VLConfig,
        embedding: nn.Embedding,
    ) -> None:
        self.vision, self.language = graphs["vision"], graphs["language"]
        self.limits, self.config, self.embedding = limits, config, embedding

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def look(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures [N, P, 1176] -> visual tokens [N, P / 4, E]. ValueError for pictures of another size."""
        if tuple(grid) != self.limits.grid:
            raise ValueError(
                f"pictures: want {_times(self.limits.grid)} patches, as the graphs were exported for, got {_times(grid)}; "
                "export again with the --frame-size of this video"
            )
        parts = [
            self.vision({"patches": patches[rows.start : rows.stop]})["tokens"].clone()
            for rows in row_ranges(len(patches), self.limits.pictures)
        ]
        return _joined(parts)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [S] -> [S, E]."""
        return self.embedding(ids)

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        """Embedded sequences [N, S, E], read-out positions [R] -> [N, R, O].

        Padding behind the last read-out token cannot be seen from there. ValueError for more tokens than a bucket holds.
        """
        length = x.shape[1]
        bucket = next((some for some in self.limits.buckets if some >= length), None)
        if bucket is None:
            raise ValueError(
                f"prompt: makes {length} tokens with its pictures and rubric, the graphs take at most "
                f"{self.limits.buckets[-1]}; shorten it, or export again with a larger --prompt-words"
            )
        padded = F.pad(x, (0, 0, 0, bucket - length))  # [N, B, E]
        parts = [
            self.language({"x": padded[rows.start : rows.stop], "at": at})["out"].clone()
            for rows in row_ranges(len(x), self.limits.rows)
        ]
        return _joined(parts)


class WholeNetwork(Generic[Reading]):
    """A network of one graph, behind the call of the module that it replaces."""

    def __init__(
        self,
        graph: Compiled,
        reading: Callable[..., Reading],
        inputs: Sequence[str] = ("frames",),
    ) -> None:
        """``inputs`` are the graph's names for the arguments of a call, in order."""
        self.graph, self.reading, self.inputs = graph, reading, inputs

    def __call__(self, *given: Tensor) -> Reading:
        """``reading`` of the graph's outputs by name; they are good until the next call."""
        tensors = {name: x.contiguous() for name, x in zip(self.inputs, given, strict=True)}
        return self.reading(**self.graph(tensors))


def fill_part_(
    module: nn.Module,
    path: Path | None,
    prefix: str,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Fill ``module`` from the tensors of ``path`` that are its own behind ``prefix``; the others are not read.

    None: with the random numbers that the whole network would draw for it.
    """
    if path is None:
        fill_random_(module, device, dtype)
        return
    stored = Stored(path)
    wanted = {prefix + name: tuple(value.shape) for name, value in module.state_dict().items()}
    stored = compared(stored, wanted, stored.shapes.keys() - wanted.keys())
    tensors = {name: stored[name].to(device, dtype) for name in wanted}
    refuse_infinite(path, tensors)
    fresh = {name.removeprefix(prefix): value for name, value in tensors.items()}
    module.load_state_dict(fresh, assign=True)


def fill_embedding(
    path: Path | None, config: DecoderConfig, device: torch.device | str, dtype: torch.dtype
) -> nn.Embedding:
    """The one table that graphs leave to torch, see ``fill_part_``."""
    with torch.device("meta"):
        embedding = nn.Embedding(config.vocab_size, config.hidden_size)
    fill_part_(embedding, path, EMBEDDING, device, dtype)
    return embedding


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _times(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
