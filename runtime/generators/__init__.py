"""Generators by name: what turns a prompt and noise into latents and frames. A new checkpoint is a folder and one row."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime.generators.schedule import Schedule
from runtime.generators.wan import PATCH, DiTConfig, TextContext, WanDiT
from runtime.settings import CHUNK_FRAMES, weights_home
from runtime.types import Decoder


@dataclass(frozen=True, slots=True)
class Row:
    """A generator's folder in the package, see ``folder.py``, and where its weights come from if nobody says."""

    folder: str
    weights: str = "given"  # "package": beside the sizes; "random": there are none; "given": ask


GENERATORS = {
    "sprites": Row("sprites", "package"),
    "sprites-256": Row("sprites_256", "random"),
    "wan-1.3b": Row("wan_1_3b"),
    "longlive": Row("wan_1_3b"),
    "self-forcing": Row("wan_1_3b"),
    "causvid": Row("causvid"),
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
        return block_shape(self.dit.config, self.latent_shape)

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


def block_shape(config: DiTConfig, latent_shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """[P, S, H, D] of what one chunk leaves in memory."""
    _, height, width = latent_shape
    tokens = CHUNK_FRAMES * (height // PATCH) * (width // PATCH)
    return (2 * config.layers, tokens, config.heads, config.head_dim)


class StreamingVAE:
    """The causal VAE as a ``Decoder``: its state is a value, so candidates fork it for free.

    ``tile`` is the side of what is decoded at once, in latent positions; 0: whole pictures.
    """

    def __init__(self, vae: Any, tile: int = 0) -> None:
        self.vae = vae.eval()
        self.tile = tile

    def decode(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.vae.decode_next(latents, state, self.tile)

    def step(self, latents: Tensor, caches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.vae.step(latents, caches, self.tile)

    def rows(self, state: Any, rows: Sequence[int]) -> Any:
        return state.rows(rows)

    def stack(self, states: Sequence[Any]) -> Any:
        return None if states[0] is None else type(states[0]).stack(states)


def load_generator(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    ops: str = "torch",
    weights: str = "",
    linears: str = "dense",
    offload_text: bool = False,
    decoder_tile: int = 0,
    verify: bool = True,
) -> Generator:
    """The generator called ``name``; the other arguments are settings of ``run`` and mean what they mean there.

    ValueError for an unknown name, for weights that are not where they are said to be, or a file that is not what it
    should be.
    """
    from runtime.generators.folder import Placement, load_folder, random_folder  # these import us

    place = Placement(device, dtype, ops, linears, offload_text, decoder_tile, verify)
    folder, is_random = find_folder(name, weights)
    return (random_folder if is_random else load_folder)(folder, place)


def load_scoring_decoder(
    name: str, device: torch.device, dtype: torch.dtype, weights: str = ""
) -> Decoder:
    """The tiny decoder of the generator called ``name``, ``tiny_decoder.safetensors`` in its folder. Errors as there."""
    from runtime.generators.tiny_decoder import load_tiny, random_tiny

    folder, is_random = find_folder(name, weights)
    path = folder / "tiny_decoder.safetensors"
    return (random_tiny if is_random else load_tiny)(path, device, dtype)


def find_folder(name: str, weights: str = "") -> tuple[Path, bool]:
    """The folder of the generator called ``name``, and whether its weights are random instead of in that folder.

    ``name`` may be a folder itself. Weights that are neither given nor in the package are looked for in
    ``weights_home()``.
    """
    if os.sep in name or "/" in name or (name not in GENERATORS and Path(name).is_dir()):
        return _given_folder(name, weights)
    if name not in GENERATORS:
        guess = difflib.get_close_matches(name, GENERATORS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(
            f"unknown generator {name!r}; known: {', '.join(sorted(GENERATORS))}, or a folder{hint}"
        )
    row = GENERATORS[name]
    source, packaged = weights or row.weights, Path(__file__).parent / row.folder
    if source in ("package", "random"):
        return packaged, source == "random"
    folder = weights_home() / name if source == "given" else Path(weights).expanduser()
    if folder.is_dir():
        return folder, False
    if source != "given":
        raise ValueError(f"run.weights: want a folder or 'random', got {weights!r}: no such folder")
    raise ValueError(
        f"run.weights: the package has no weights of {name!r} and {folder} is not there; "
        f"'python -m runtime.fetch {name}' brings them, 'python -m runtime.convert {name} SOURCE -o {folder}' makes "
        f"them of published files; or name a converted folder, or 'random' to time without weights"
    )


def _given_folder(name: str, weights: str) -> tuple[Path, bool]:
    """``find_folder`` for a generator that is named by its folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(f"run.generator: {name!r}: no such folder")
    if weights not in ("", "random"):
        raise ValueError(
            f"run.weights: run.generator is a folder already; want '' or 'random', got {weights!r}"
        )
    return folder, weights == "random"
