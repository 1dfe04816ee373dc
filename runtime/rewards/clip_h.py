"""Rates how well single frames fit the prompt: CLIP's cosine between picture and text, times its learned scale.

    score = mean over frames of exp(logit_scale) cos(picture, text)

It knows of no preference, only of fit: a yardstick beside the rewards that were trained on people's choices, and what
MPS begins from. Any CLIP that transformers' CLIPModel reads will do; the name says the size that random weights have.

Source  Radford et al., 2021; LAION's CLIP-ViT-H-14-laion2B-s32B-b79K; 77 tokens, padded with the end token, as its tokeniser says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.clip import VIT_H_14, ClipConfig, ClipText, ClipTowers
from runtime.rewards.fixed_words import ByteWords, FixedWords
from runtime.rewards.graphs import PictureLimits, fill_part_
from runtime.rewards.pictures import PictureReward, Script
from runtime.types import Compiled
from runtime.weights import fill_random_, load_weights_, read_config

PAD = "<|endoftext|>"
POSITIONS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


class ClipReader(nn.Module):
    """Reads prompts for ``ClipNet``."""

    inputs = ("pixels", "text")

    def __init__(self, clip: ClipText) -> None:
        super().__init__()
        self.clip, self.side = clip, clip.side

    def read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor]:
        """ids [L] -> the prompt's direction times the scale, [J] float32. What is padding is behind the end, unseen."""
        return (scaled_direction(self.clip, self.clip.texts(ids[None])[1][0]),)

    def flops(self, text_tokens: int) -> int:
        config = self.clip.config
        return self.clip.flops() + 2 * config.vision.hidden_size * config.projection_dim


class ClipNet(ClipReader):
    """The cosine of a picture with the prompt, scaled."""

    clip: ClipTowers

    def __init__(self, clip: ClipTowers) -> None:
        super().__init__(clip)

    def forward(self, pixels: Tensor, text: Tensor) -> Tensor:
        """pixels [N, 3, S, S] -> [N] float32."""
        return F.normalize(self.clip.picture(pixels).float(), dim=-1) @ text


def scaled_direction(clip: ClipText, text: Tensor) -> Tensor:
    """A text's vector as a direction, times CLIP's scale, float32."""
    return F.normalize(text.float(), dim=-1) * clip.logit_scale.float().exp()


def read_clip_config(path: Path) -> ClipConfig:
    """The sizes in ``path``. ValueError names the file and the entry."""
    table = read_config(path)
    try:
        return ClipConfig.read(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class ClipReward(PictureReward):
    """Mean over a chunk's frames of CLIP's scaled cosine with the prompt."""

    halves = "down"

    @classmethod
    def random(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> ClipReward:  # fmt: skip
        """A ViT-H-14 with random weights, for timing."""
        config, script = read_setup(None)
        with torch.device("meta"):
            clip = ClipTowers(config)
        fill_random_(clip, device, dtype)
        return cls(ClipNet(clip), script)

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> ClipReward:
        """From folder ``path``: model.safetensors, config.json, tokenizer.json as transformers' CLIPModel has them."""
        config, script = read_setup(path)
        with torch.device("meta"):
            clip = ClipTowers(config)
        load_weights_(clip, path / "model.safetensors", unused=POSITIONS, device=device)
        return cls(ClipNet(clip.to(device, dtype)), script)

    @classmethod
    def on_graphs(
        cls,
        device: str | torch.device,
        folder: Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> ClipReward:
        """From the same folder (None: random weights) and the exported graph: of the weights, the text's tower is read."""
        limits = PictureLimits.read(constants)
        config, script = read_setup(folder)
        with torch.device("meta"):
            clip = ClipText(config)
        path = folder and folder / "model.safetensors"
        fill_part_(clip, path, "", device, limits.dtype)
        return cls._whole(ClipReader(clip), script, graphs, limits)


def read_setup(path: Path | None) -> tuple[ClipConfig, Script]:
    """Sizes and tokeniser of a CLIP in folder ``path``, or those of random weights."""
    if path is None:
        return VIT_H_14, ByteWords(VIT_H_14.text.max_position_embeddings, 256)
    config = read_clip_config(path / "config.json")
    length, words = config.text.max_position_embeddings, config.text.vocab_size
    return config, FixedWords(path / "tokenizer.json", length, PAD, words)
