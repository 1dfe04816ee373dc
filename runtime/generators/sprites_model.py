"""The embedded generator: the same classes as Wan2.1-1.3B at a size that runs on a laptop, weights in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from runtime.generators import Generator, StreamingVAE
from runtime.generators.schedule import Schedule
from runtime.generators.text import TextConfig, TextEncoder, build_encoder
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.generators.weights import load_weights_, read_config

FOLDER = Path(__file__).parent / "sprites"
FPS = 16
SHARED = {
    "encoder.embed_tokens.weight": "shared.weight"
}  # one tensor, known to the encoder under two names
FRAME_SIZE = 96  # pixels a side


def load(device: torch.device, dtype: torch.dtype, folder: Path = FOLDER) -> Generator:
    """The embedded generator on ``device``. ValueError for a missing, damaged or foreign file in ``folder``."""
    vae = WanVAE(VAEConfig(**_tuples(_config(folder, "vae"))))
    dit = WanDiT(DiTConfig(**_config(folder, "dit")))
    text = _config(folder, "text")
    text_len = text.pop("text_len")
    encoder = build_encoder(TextConfig(**text))
    for name, module in (("vae", vae), ("dit", dit), ("text", encoder)):
        load_weights_(module, folder / f"{name}.safetensors", SHARED if module is encoder else {})
        module.to(device, dtype)
    side = FRAME_SIZE // vae.config.space_stride
    return Generator(
        text=TextEncoder(TextEncoder.read_tokeniser(folder / "tokenizer.json"), encoder, text_len),
        dit=dit.eval(),
        decoder=StreamingVAE(vae),
        schedule=Schedule.warped(),
        latent_shape=(vae.config.latent_channels, side, side),
        fps=FPS,
        time_stride=vae.config.time_stride,
    )


def _config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    config = read_config(path).get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{path}: want an object under the key 'config'")
    return dict(config)


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
    }
