"""Rates single frames against the prompt: ImageReward, a BLIP that was taught people's preferences.

    score = mean over frames of ImageReward's score

Source  Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation", 2023, and the code
        published with it: 35 tokens, padded and masked; shorter side to 224 by Pillow's bicubic, middle square.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from runtime.rewards.blip import BlipConfig, BlipReader, ImageRewardNet
from runtime.rewards.fixed_words import ByteWords, FixedWords
from runtime.rewards.graphs import PictureLimits, fill_part_
from runtime.rewards.pictures import PictureReward, Script
from runtime.types import Compiled
from runtime.weights import fill_random_, load_weights_, read_config

TOKENS = 35
PAD = "[PAD]"
EMBEDDINGS = "blip.text_encoder.embeddings."


class ImageReward(PictureReward):
    """Mean over a chunk's frames of ImageReward's score."""

    @classmethod
    def random(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> ImageReward:  # fmt: skip
        """At full size with random weights, for timing."""
        config, script = read_setup(None)
        with torch.device("meta"):
            net = ImageRewardNet(config)
        fill_random_(net.blip, device, dtype)
        # By themselves, as ``on_graphs`` draws them.
        fill_random_(net.blip.text_encoder.embeddings, device, dtype)
        fill_random_(net.mlp, device, torch.float32)
        return cls(net, script)

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> ImageReward:
        """From folder ``path``: model.safetensors, config.json, tokenizer.json. ValueError names file and key.

        ``python -m runtime.convert imagereward`` makes such a folder. config.json is the published med_config.json; it
        may also set vision_width, vision_layers, vision_heads, image_size and patch_size.
        """
        config, script = read_setup(path)
        with torch.device("meta"):
            net = ImageRewardNet(config)
        load_weights_(net, path / "model.safetensors", device=device)
        net.blip.to(device, dtype)
        net.mlp.to(device, torch.float32)
        return cls(net, script)

    @classmethod
    def on_graphs(
        cls,
        device: str | torch.device,
        folder: Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> ImageReward:
        """From the same folder (None: random weights) and the exported graph: of the weights, BERT's embeddings are read."""
        limits = PictureLimits.read(constants)
        config, script = read_setup(folder)
        with torch.device("meta"):
            reader = BlipReader(config)
        words = reader.embeddings
        path = folder and folder / "model.safetensors"
        fill_part_(words, path, EMBEDDINGS, device, limits.dtype)
        return cls._whole(reader, script, graphs, limits)


def read_setup(path: Path | None) -> tuple[BlipConfig, Script]:
    """Sizes and tokeniser in folder ``path``, or those of random weights."""
    if path is None:
        return BlipConfig(), ByteWords(TOKENS, 256)
    table = read_config(path / "config.json")
    try:
        config = BlipConfig.read(table)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from None
    return config, FixedWords(path / "tokenizer.json", TOKENS, PAD, config.vocab_size)
