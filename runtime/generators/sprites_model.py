"""The embedded generator: the same classes as Wan2.1-1.3B at a size that runs on a laptop, weights in the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from runtime.generators import Generator, StreamingVAE
from runtime.generators.schedule import Schedule
from runtime.generators.text import TextConfig, TextEncoder, build_encoder
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.weights import load_weights_, read_config

FOLDER = Path(__file__).parent / "sprites"
FPS = 16
SHARED = {
    "encoder.embed_tokens.weight": "shared.weight"
}  # one tensor, known to the encoder under two names
FRAME_SIZE = 96  # pixels a side
Built = TypeVar("Built", bound=nn.Module)


def load(
    device: torch.device, dtype: torch.dtype, folder: Path = FOLDER, ops: str = "torch"
) -> Generator:
    """The embedded generator on ``device``. ValueError for a missing, damaged or foreign file in ``folder``."""
    vae = _build(folder, "vae", lambda sizes: WanVAE(VAEConfig(**sizes)))
    dit = _build(folder, "dit", lambda sizes: WanDiT(DiTConfig(**sizes), ops))
    encoder = _build(folder, "text", _text_encoder)
    for name, module in (("vae", vae), ("dit", dit), ("text", encoder)):
        load_weights_(module, folder / f"{name}.safetensors", SHARED if module is encoder else {})
        module.to(device, dtype)
    dit.join_()
    side = FRAME_SIZE // vae.config.space_stride
    return Generator(
        text=TextEncoder(
            TextEncoder.read_tokeniser(folder / "tokenizer.json"), encoder, dit.config.text_len
        ),
        dit=dit.eval(),
        decoder=StreamingVAE(vae),
        schedule=Schedule.warped(),
        latent_shape=(vae.config.latent_channels, side, side),
        fps=FPS,
        time_stride=vae.config.time_stride,
    )


def _build(folder: Path, name: str, build: Callable[[dict[str, Any]], Built]) -> Built:
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


def _text_encoder(sizes: dict[str, Any]) -> nn.Module:
    sizes.pop("text_len", None)  # the DiT's, told again
    return build_encoder(TextConfig(**sizes))
