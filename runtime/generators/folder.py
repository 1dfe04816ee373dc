"""A generator from its folder: what the files say of its sizes, filled from weight files or with random numbers.

    model.json                       frame size, steps, shift, frames per second
    dit.json  vae.json  text.json    sizes, each under the key "config"
    dit.safetensors  vae.safetensors  text.safetensors  tokenizer.json
    lora.safetensors  lora.json      optional: merged into the DiT when it is loaded, see ``lora.py``

The sizes alone are enough for random weights and for planning memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from runtime.generators import Generator, StreamingVAE, block_shape
from runtime.generators.linears import quantise_
from runtime.generators.lora import merges, read_alpha
from runtime.generators.schedule import Schedule
from runtime.generators.text import (
    ByteTokeniser,
    TextConfig,
    TextEncoder,
    Tokeniser,
    Visitor,
    build_encoder,
)
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.generators.wan import PATCH, DiTConfig, WanDiT
from runtime.shards import verify
from runtime.weights import fill_random_, load_weights_, read_config

SHARED = {
    "encoder.embed_tokens.weight": "shared.weight"
}  # one tensor, known to the encoder under two names
Built = TypeVar("Built")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a generator runs and with what; the names are those of ``settings.run``."""

    device: torch.device
    dtype: torch.dtype
    ops: str = "torch"
    linears: str = "dense"
    offload_text: bool = False
    decoder_tile: int = 0
    verify: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a checkpoint was trained for beside its sizes."""

    frame_size: tuple[int, int]  # rows and columns of pixels
    steps: tuple[int, ...]  # of the training clock, see ``Schedule.warped``
    shift: float
    fps: int

    def __post_init__(self) -> None:
        sizes = (*self.frame_size, self.fps)
        if len(sizes) != 3 or any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError(
                f"frame_size and fps: want [rows, columns] and a rate, whole numbers of at least 1, "
                f"got {list(self.frame_size)} and {self.fps!r}"
            )
        Schedule.warped(self.steps, self.shift)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A generator without its weights: its modules on the meta device, which take no memory."""

    dit: WanDiT
    vae: WanVAE
    text: nn.Module
    recipe: Recipe

    def __post_init__(self) -> None:
        stride = self.vae.config.space_stride * PATCH
        if any(side % stride for side in self.recipe.frame_size):
            raise ValueError(
                f"frame_size: want multiples of {stride} pixels, got {list(self.recipe.frame_size)}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        config = self.vae.config
        rows, columns = (side // config.space_stride for side in self.recipe.frame_size)
        return (config.latent_channels, rows, columns)

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """[P, S, H, D] of one KV block."""
        return block_shape(self.dit.config, self.latent_shape)


def read_blueprint(folder: Path, ops: str = "torch") -> Blueprint:
    """What the .json files in ``folder`` describe. ValueError names a file that is missing, damaged or impossible."""
    if not any((folder / f"{name}.json").is_file() for name in ("model", "dit", "vae", "text")):
        raise ValueError(
            f"{folder}: not a generator's folder, for model.json, dit.json, vae.json and text.json are not in it; "
            f"`python -m runtime.convert NAME {folder} -o DIR` makes one of published files"
        )
    vae = _built(folder, "vae", lambda sizes: WanVAE(VAEConfig(**sizes)))
    dit = _built(folder, "dit", lambda sizes: WanDiT(DiTConfig(**sizes), ops))
    text = _built(folder, "text", build_text)
    return _built(folder, "model", lambda facts: Blueprint(dit, vae, text, Recipe(**facts)))


def read_pace(folder: Path) -> tuple[int, int]:
    """Frames per second, and pixel frames per latent frame, of the generator in ``folder``. Errors as ``read_blueprint``."""
    recipe = _built(folder, "model", lambda facts: Recipe(**facts))
    sizes = _built(folder, "vae", lambda sizes: VAEConfig(**sizes))
    return recipe.fps, sizes.time_stride


def load_folder(folder: Path, place: Placement) -> Generator:
    """The generator in ``folder``, each tensor straight to where it stays. ValueError for a missing, damaged or foreign file.

    With ``place.verify`` its files are hashed first, if it has a manifest: see ``manifest.verify`` for what that costs.
    """
    plan = read_blueprint(folder, place.ops)
    if place.verify:
        verify(folder)
    tokeniser = TextEncoder.read_tokeniser(folder / "tokenizer.json")
    lora = folder / "lora.safetensors"
    edits = merges(plan.dit, lora, read_alpha(lora.with_suffix(".json"))) if lora.is_file() else {}
    for name, module in (("vae", plan.vae), ("dit", plan.dit), ("text", plan.text)):
        load_weights_(
            module,
            folder / f"{name}.safetensors",
            SHARED if name == "text" else {},
            device="cpu" if name == "text" and place.offload_text else place.device,
            dtype=place.dtype,
            edits=edits if name == "dit" else {},
        )
    return _assembled(plan, tokeniser, place)


def random_folder(folder: Path, place: Placement) -> Generator:
    """The generator that ``folder`` describes with random weights, drawn on the device: for timing, not for watching."""
    plan = read_blueprint(folder, place.ops)
    log.warning("random weights: prompts are read byte by byte, and frames show nothing")
    for module in (plan.text, plan.vae, plan.dit):
        fill_random_(module, place.device, place.dtype)
        if module is plan.text and place.offload_text:
            module.to("cpu")  # before the others need the room
    return _assembled(plan, ByteTokeniser(plan.text.get_parameter("shared.weight").shape[0]), place)


def _assembled(plan: Blueprint, tokeniser: Tokeniser, place: Placement) -> Generator:
    dit, vae = plan.dit, plan.vae
    for module in (dit, vae):
        module.to(place.device, place.dtype).eval()
    quantise_(dit, place.linears)
    dit.join_()
    vae.prepare_()
    home = torch.device("cpu") if place.offload_text else place.device
    encoder: nn.Module | Visitor = plan.text.to(home, place.dtype).eval()
    if place.offload_text:
        encoder = Visitor(plan.text, place.device)
    return Generator(
        text=TextEncoder(tokeniser, encoder, dit.config.text_len),
        dit=dit,
        decoder=StreamingVAE(vae, place.decoder_tile),
        schedule=Schedule.warped(plan.recipe.steps, plan.recipe.shift),
        latent_shape=plan.latent_shape,
        fps=plan.recipe.fps,
        time_stride=vae.config.time_stride,
    )


def _built(folder: Path, name: str, build: Callable[[dict[str, Any]], Built]) -> Built:
    """What ``build`` makes of the sizes in the file called ``name``; ValueError names the file if it cannot."""
    path = folder / f"{name}.json"
    config = read_config(path).get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{path}: want an object under the key 'config'")
    sizes = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
    }
    try:
        with torch.device("meta"):  # shapes only: no memory before the file has been compared
            return build(sizes)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path}: not the sizes of this model ({error})") from error


def build_text(sizes: dict[str, Any]) -> nn.Module:
    """The text encoder of these sizes, on the device that is current."""
    sizes.pop("text_len", None)  # the DiT's, told again
    return build_encoder(TextConfig(**sizes))
