"""Reward models by name. A new one is one file and one row."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

import torch

from runtime.types import RewardModel

REWARDS = {
    "hpsv3": "runtime.rewards.hpsv3:HPSv3",
    "sprites-image": "runtime.rewards.sprites_image:SpritesImageReward",
    "sprites-video": "runtime.rewards.sprites_video:SpritesVideoReward",
    "stub": "runtime.rewards.stub:Stub",
    "videoalign": "runtime.rewards.videoalign:VideoAlign",
}
PUBLISHED = ("hpsv3", "videoalign")  # their weights are not in the package
WEIGHTLESS = ("stub",)
RANDOM = "random"


def load_reward(
    name: str,
    device: str = "cpu",
    weights: str = "",
    dtype: torch.dtype = torch.float32,
) -> RewardModel:
    """The reward model called ``name``, ready to score.

    ``weights`` is "" for those in the package, "random" for a published reward at full size that only takes time, else
    a folder that holds ``<name>/model.safetensors`` with config.json, tokenizer.json and rubric.txt (published rewards)
    or model.json (those of the embedded world, which always run in float32) beside it. ``dtype`` is that of a published
    reward's backbone. ValueError for an unknown name, with a guess, for weights that are not there, naming the file.
    """
    if name not in REWARDS:
        guess = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(f"unknown reward {name!r}; known: {', '.join(sorted(REWARDS))}{hint}")
    module, _, attribute = REWARDS[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    if name in WEIGHTLESS:
        return kind.load(device=device)
    if name in PUBLISHED:
        if not weights:
            raise ValueError(
                f"reward {name!r}: its weights are not in the package; set reward.weights to a folder that holds "
                f"{name}/model.safetensors, or to {RANDOM!r} for timing"
            )
        if weights == RANDOM:
            return kind.random(device, dtype)
        return kind.load(device, Path(weights) / name, dtype)
    if weights == RANDOM:
        raise ValueError(
            f"reward {name!r}: has no random form, for its weights are in the package; set reward.weights to ''"
        )
    path = Path(weights) / name / "model.safetensors" if weights else None
    return kind.load(device=device, path=path)
