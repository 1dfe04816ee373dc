"""Generators by name: what turns a prompt and noise into latents and frames. A new checkpoint is one row of the table."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime.generators.schedule import Schedule
from runtime.generators.wan import PATCH, TextContext, WanDiT
from runtime.settings import CHUNK_FRAMES
from runtime.types import Decoder

GENERATORS = {
    "sprites": "runtime.generators.sprites_model:load",
}


class Text(Protocol):
    """Prompt to embeddings."""

    def encode(self, prompt: str) -> Tensor:
        """One prompt -> [1, tokens, text_dim], at most ``text_len`` tokens."""
        ...

    def unknown_words(self, prompt: str) -> list[str]:
        """Words that the tokeniser cannot represent."""
        ...


@dataclass(frozen=True)
class Generator:
    """A text encoder, a DiT and a decoder that were made for each other, and the sizes they run at."""

    text: Text
    dit: WanDiT
    decoder: Decoder
    schedule: Schedule
    latent_shape: tuple[int, int, int]  # (C, h, w)
    fps: int
    time_stride: int

    @property
    def chunk_shape(self) -> tuple[int, int, int, int]:
        """[F, C, h, w] of one chunk's latents."""
        return (CHUNK_FRAMES, *self.latent_shape)

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """[P, S, H, D] of one KV block."""
        config, (_, height, width) = self.dit.config, self.latent_shape
        tokens = CHUNK_FRAMES * (height // PATCH) * (width // PATCH)
        return (2 * config.layers, tokens, config.heads, config.head_dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.dit.patch_embedding.weight.device

    @torch.no_grad()
    def encode(self, prompt: str) -> TextContext:
        """Cross-attention keys and values of ``prompt``, for every candidate of every chunk."""
        return self.dit.text_context(self.text.encode(prompt).to(self.device, self.dtype))


class StreamingVAE:
    """The causal VAE as a ``Decoder``: its state is a value, so candidates fork it for free."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval()

    def decode(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.vae.decode_next(latents, state)

    def rows(self, state: Any, rows: Sequence[int]) -> Any:
        return state.rows(rows)

    def stack(self, states: Sequence[Any]) -> Any:
        return None if states[0] is None else type(states[0]).stack(states)


def load_generator(
    name: str, device: torch.device, dtype: torch.dtype, ops: str = "torch"
) -> Generator:
    """The generator called ``name``, its DiT run by kernels ``ops``. ValueError for an unknown name or a file that is not what it should be."""
    if name not in GENERATORS:
        guess = difflib.get_close_matches(name, GENERATORS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(
            f"unknown generator {name!r}; known: {', '.join(sorted(GENERATORS))}{hint}"
        )
    module, _, attribute = GENERATORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(device, dtype, ops=ops)
