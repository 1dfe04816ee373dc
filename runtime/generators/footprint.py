"""What running a generator takes beside its weights, found by running it on the meta device, which takes nothing.

Tensors there have shapes and no values, so the most bytes that live at once can be counted as operations make them and
let them go. Kernels of our own run as plain torch there, which makes more in between: the count is an upper bound.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runtime.generators.folder import Blueprint, read_blueprint
from runtime.generators.vae_cost import decoder_bytes
from runtime.generators.wan import WanDiT
from runtime.settings import CHUNK_FRAMES


@lru_cache(maxsize=8)
def blueprint(folder: Path) -> Blueprint:
    """``read_blueprint``, once for a folder: the text encoder's classes take seconds to import."""
    return read_blueprint(folder)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding one chunk takes: a history's state, and the most beside states and frames."""

    state_bytes: int
    peak_bytes: int


def decoding(folder: Path, rows: int, dtype: torch.dtype, tile: int) -> Decoded:
    """Decoding ``rows`` histories' next chunk, the activations without frames and states."""
    plan = blueprint(folder)
    config, (_, height, width) = plan.vae.config, plan.latent_shape
    state, most = decoder_bytes(config, rows, height, width, dtype, CHUNK_FRAMES, tile)
    frames = CHUNK_FRAMES * config.time_stride * 3 * height * width * config.space_stride**2
    return Decoded(state, max(0, most - rows * (state + frames * dtype.itemsize)))


@lru_cache(maxsize=64)
@torch.no_grad()
def forward_peak(folder: Path, rows: int, dtype: torch.dtype) -> int:
    """One block on the meta device: its activations are the most that lives, however many blocks follow."""
    plan = blueprint(folder)
    with torch.device("meta"):
        dit = WanDiT(replace(plan.dit.config, layers=1)).to(dtype)
        text = dit.text_context(torch.empty(1, 1, plan.dit.config.text_dim, dtype=dtype))
        moment = dit.moment(torch.empty(1, 1, dtype=torch.float64))
        rope = dit.rope(torch.empty(1, CHUNK_FRAMES, dtype=torch.int64), *plan.latent_shape[1:])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.empty_like(q)

        with LiveBytes() as live:
            dit(_chunk(rows, plan.latent_shape, dtype), moment, text, rope, attend)
    return live.most


def _chunk(rows: int, latent_shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Latents of one chunk, [B, F, C, h, w], without values."""
    return torch.empty(rows, CHUNK_FRAMES, *latent_shape, dtype=dtype, device="meta")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, and when they go: ``now`` and the ``most`` at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known | given:
                    self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, place: int, nbytes: int) -> None:
        self.known.discard(place)
        self.now -= nbytes
