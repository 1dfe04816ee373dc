"""Reward models by name. A new one is one file and one row."""

from __future__ import annotations

import difflib
import importlib

from runtime.types import RewardModel

REWARDS = {
    "sprites-image": "runtime.rewards.sprites_image:SpritesImageReward",
    "sprites-video": "runtime.rewards.sprites_video:SpritesVideoReward",
    "stub": "runtime.rewards.stub:Stub",
}


def load_reward(name: str, device: str = "cpu") -> RewardModel:
    """The reward model called ``name``, ready to score. ValueError for an unknown name, with a guess."""
    if name not in REWARDS:
        guess = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(f"unknown reward {name!r}; known: {', '.join(sorted(REWARDS))}{hint}")
    module, _, attribute = REWARDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute).load(device=device)
