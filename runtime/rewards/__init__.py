"""Reward models by name. A new one is one file and one row; several names with weights are an ensemble."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from runtime.rewards.ensemble import (
    PACKAGED,
    Member,
    is_ensemble,
    joined,
    parse,
    read_statistics,
)
from runtime.settings import weights_home
from runtime.types import RewardModel

REWARDS = {
    "clip-h": "runtime.rewards.clip_h:ClipReward",
    "hpsv3": "runtime.rewards.hpsv3:HPSv3",
    "imagereward": "runtime.rewards.imagereward:ImageReward",
    "mps": "runtime.rewards.mps:MPS",
    "sprites-image": "runtime.rewards.sprites_image:SpritesImageReward",
    "sprites-video": "runtime.rewards.sprites_video:SpritesVideoReward",
    "stub": "runtime.rewards.stub:Stub",
    "videoalign": "runtime.rewards.videoalign:VideoAlign",
    "videollama3": "runtime.rewards.videollama3:VideoLLaMA3",
}
# Their weights are not in the package: how many there are, and bytes that a forward of their own batch size takes.
PUBLISHED: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "clip-h": (986_109_441, 1 << 30),
        "hpsv3": (7_748_610_610, 2 << 30),
        "imagereward": (446_206_689, 1 << 30),
        "mps": (1_104_606_721, 1 << 30),
        "videoalign": (2_208_563_200, 1 << 30),
        "videollama3": (8_044_744_944, 2 << 30),
    }
)
WEIGHTLESS = ("stub",)
FETCHED = ("hpsv3", "imagereward", "videoalign")  # rows of the catalogue
CONVERTED = (*FETCHED, "clip-h", "mps")  # rows of published.py
# Rewards that somebody may ask for and that cannot be run safely: where it is said why, and what to use instead.
REFUSED = {"visionreward": "runtime.rewards.visionreward:WHY"}
RANDOM = "random"


def load_reward(
    name: str,
    device: str = "cpu",
    weights: str = "",
    dtype: torch.dtype = torch.float32,
    statistics: str = "",
) -> RewardModel:
    """The reward model called ``name``, or the ensemble of several like ``hpsv3*0.5+imagereward*0.5``, ready to score.

    ``weights`` is "" for those in the package, or in ``weights_home()`` for a published reward; "random" for a published
    reward at full size that only takes time; else a folder that holds ``<name>/``: of a published reward what its file
    says, of the embedded world, which always runs in float32, model.safetensors with model.json beside it. ``dtype`` is
    that of a published reward's backbone, ``statistics`` a JSON file of every member's scale, "" the package's.
    ValueError for an unknown name, with a guess, for weights that are not there, naming the file.
    """
    return assemble(name, statistics, lambda member: _load(member, device, weights, dtype))


def assemble(expression: str, statistics: str, load: Callable[[str], RewardModel]) -> RewardModel:
    """The model that ``load`` makes of a single name, or the ensemble of those it makes of every name in ``expression``.

    Names and statistics are checked before anything is loaded; ``statistics`` as in ``load_reward``.
    """
    terms = parse(expression)
    for term in terms:
        _check_name(term.name)
    if not is_ensemble(terms):
        return load(terms[0].name)
    path = Path(statistics) if statistics else PACKAGED
    known = read_statistics(path, [term.name for term in terms])
    return joined(
        [
            Member(
                term.name,
                1.0 if term.weight is None else term.weight,
                load(term.name),
                known[term.name],
            )
            for term in terms
        ]
    )


def _check_name(name: str) -> None:
    if name in REFUSED:
        raise ValueError(_imported(REFUSED[name]))
    if name not in REWARDS:
        guess = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(f"unknown reward {name!r}; known: {', '.join(sorted(REWARDS))}{hint}")


def _load(name: str, device: str, weights: str, dtype: torch.dtype) -> RewardModel:
    kind = _imported(REWARDS[name])
    if name in WEIGHTLESS:
        return kind.load(device=device)
    if name in PUBLISHED:
        if weights == RANDOM:
            return kind.random(device, dtype)
        return kind.load(device, published_folder(name, weights), dtype)
    if weights == RANDOM:
        raise ValueError(
            f"reward {name!r}: has no random form, for its weights are in the package; set reward.weights to ''"
        )
    path = Path(weights) / name / "model.safetensors" if weights else None
    return kind.load(device=device, path=path)


def _imported(row: str) -> Any:
    module, _, attribute = row.partition(":")
    return getattr(importlib.import_module(module), attribute)


def published_folder(name: str, weights: str) -> Path:
    """Where a published reward's files are: in the folder that was named, else where fetched weights are kept."""
    if weights:
        root = Path(weights).expanduser()
        if (root / name).is_dir():
            return root / name
        above = f"; did you mean {str(root.parent)!r}?" if root.name == name else ""
        raise ValueError(
            f"reward.weights: want a folder that holds {name}/, or {RANDOM!r} for timing, got {weights!r}{above}"
        )
    folder = weights_home() / name
    if not folder.is_dir():
        raise ValueError(
            f"reward {name!r}: its weights are not in the package, nor in {folder}; {_advice(name, folder)}, set "
            f"reward.weights to a folder that holds {name}/, or to {RANDOM!r} for timing"
        )
    return folder


def _advice(name: str, folder: Path) -> str:
    """What brings the weights of a published reward."""
    fetch, convert = (
        f"run `python -m runtime.fetch {name}`",
        f"`python -m runtime.convert {name} SOURCE -o {folder}`",
    )
    if name in FETCHED:
        return f"{fetch} or {convert}"
    if name in CONVERTED:
        return f"run {convert}"
    return f"put the files there that docs/rewards.md lists for {name}"
