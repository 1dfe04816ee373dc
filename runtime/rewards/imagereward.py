"""Rates single frames against the prompt: ImageReward, a BLIP that was taught people's preferences.

    score = mean over frames of ImageReward's score

Source  Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation", 2023, and the code
        published with it: 35 tokens, padded and masked; shorter side to 224 by Pillow's bicubic, middle square.
"""

from __future__ import annotations

from pathlib import Path

import torch

from runtime.rewards.blip import BlipConfig, ImageRewardNet
from runtime.rewards.fixed_words import ByteWords, FixedWords
from runtime.rewards.pictures import PictureReward
from runtime.weights import fill_random_, load_weights_, read_config

TOKENS = 35
PAD = "[PAD]"


class ImageReward(PictureReward):
    """Mean over a chunk's frames of ImageReward's score."""

    @classmethod
    def random(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> ImageReward:  # fmt: skip
        """At full size with random weights, for timing."""
        config = BlipConfig()
        with torch.device("meta"):
            net = ImageRewardNet(config)
        fill_random_(net.blip, device, dtype)
        fill_random_(net.mlp, device, torch.float32)
        return cls(net, ByteWords(TOKENS, 256))

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> ImageReward:
        """From folder ``path``: model.safetensors, config.json, tokenizer.json. ValueError names file and key.

        ``python -m runtime.convert imagereward`` makes such a folder. config.json is the published med_config.json; it
        may also set vision_width, vision_layers, vision_heads, image_size and patch_size.
        """
        table = read_config(path / "config.json")
        try:
            config = BlipConfig.read(table)
        except ValueError as error:
            raise ValueError(f"{path / 'config.json'}: {error}") from None
        with torch.device("meta"):
            net = ImageRewardNet(config)
        script = FixedWords(path / "tokenizer.json", TOKENS, PAD, config.vocab_size)
        load_weights_(net, path / "model.safetensors")
        net.blip.to(device, dtype)
        net.mlp.to(device, torch.float32)
        return cls(net, script)
