"""Published generators in miniature: folders as Wan, diffusers and the projects that trained on Wan lay them out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.generators.folder import SHARED
from runtime.generators.published import CHECKPOINTS, Checkpoint
from runtime.generators.text import TextConfig, build_encoder, word_tokeniser
from runtime.generators.text_keys import to_wan_keys
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.generators.wan import DiTConfig, WanDiT
from tests.tiny import generator_of, scrambled

DIT = {
    "dim": 24,
    "heads": 2,
    "layers": 2,
    "ffn_dim": 40,
    "freq_dim": 8,
    "text_dim": 8,
    "text_len": 6,
    "channels": 4,
}
TEXT = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
VAE = {
    "latent_channels": 4,
    "base_dim": 4,
    "dim_mult": [1, 1, 2],
    "res_blocks": 1,
    "space_downsample": [True, True],
    "time_downsample": [True, True],
    "latent_mean": [0.1, -0.2, 0.3, 0.0],
    "latent_std": [1.5, 0.5, 2.0, 1.0],
}
SIZES = {"dit": DIT, "text": TEXT, "vae": VAE}
FRAME = (16, 24)


@dataclasses.dataclass(frozen=True)
class Models:
    """Random weights under our names, float32."""

    dit: WanDiT
    vae: WanVAE
    text: nn.Module


def tiny_models(seed: int = 0) -> Models:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = {key: tuple(v) if isinstance(v, list) else v for key, v in VAE.items()}
        modules = (
            WanDiT(DiTConfig(**DIT)),
            WanVAE(VAEConfig(**vae)),
            build_encoder(TextConfig(**TEXT)),
        )
    return Models(*(scrambled(module) for module in modules))  # type: ignore[arg-type]


def small_row(name: str, folder: Path) -> Checkpoint:
    """The row called ``name`` at these sizes, which are written to ``folder``."""
    folder.mkdir(exist_ok=True)
    for part, sizes in SIZES.items():
        (folder / f"{part}.json").write_text(json.dumps({"config": sizes}))
    return dataclasses.replace(CHECKPOINTS[name], sizes=folder, frame_size=FRAME, fps=8)


def wan_folder(folder: Path, models: Models) -> Path:
    """Wan's own layout."""
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    save_file(models.dit.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    torch.save(models.vae.state_dict(), folder / "Wan2.1_VAE.pth")
    text = {k: v.bfloat16() for k, v in models.text.state_dict().items() if k not in SHARED}
    torch.save(to_wan_keys(text), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    save_tokeniser(folder / "google" / "umt5-xxl" / "tokenizer.json")
    return folder


def save_tokeniser(path: Path) -> None:
    word_tokeniser(["red", "blue", "circle", "moving"]).save(str(path))


def adapter(dit: WanDiT, rank: int, prefix: str, name: str = "") -> dict[str, Tensor]:
    """A LoRA of every linear of the blocks, in PEFT's names, with ``prefix`` inside them."""
    table = {}
    for seed, (module, linear) in enumerate(dit.named_modules()):
        if isinstance(linear, nn.Linear) and module.startswith("blocks."):
            key = f"base_model.model.{prefix}{module}.lora_"
            shapes = {"A": (rank, linear.in_features), "B": (linear.out_features, rank)}
            for half, shape in shapes.items():
                source = generator_of(2 * seed + (half == "B"))
                table[f"{key}{half}{name}.weight"] = torch.randn(shape, generator=source) / 10
    return table


def prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}
