"""How the embedded rewards are exported: one small graph each, free in the batch and, for clips, in the frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from runtime.backends import weights_hash, weights_path
from runtime.export.pieces import Piece, Plan, Wanted, port
from runtime.rewards import load_reward
from runtime.rewards.sprites_image import SpritesImageReward
from runtime.rewards.sprites_net import SIDE
from runtime.rewards.sprites_video import SpritesVideoReward
from runtime.types import Clip

IMAGES, CLIPS, FRAMES = 256, 64, 256  # at once, at most
PROMPTS = ("a red circle moving right quickly on a navy background", "nothing known")


class Outputs(nn.Module):
    """A network with only the outputs that scoring reads."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        reading = self.net(frames)
        return tuple(getattr(reading, name) for name in self.names)


def image(wanted: Wanted) -> Plan:
    """sprites-image: single frames."""
    return _plan(wanted, SpritesImageReward, ("quality", "words"))


def video(wanted: Wanted) -> Plan:
    """sprites-video: clips."""
    return _plan(wanted, SpritesVideoReward, ("visual", "motion", "words"))


def _plan(wanted: Wanted, kind: Any, outputs: tuple[str, ...]) -> Plan:
    if wanted.precision != "fp32":
        raise ValueError(f"--precision: {wanted.reward} runs in fp32 alone, got {wanted.precision}")
    if wanted.frame_size or wanted.frames:
        raise ValueError(
            f"--frame-size, --frames: {wanted.reward} sees {SIDE} x {SIDE} pixels of clips of any length; drop them"
        )
    reward = load_reward(wanted.reward, "cpu", wanted.weights)
    path = weights_path(wanted.reward, wanted.weights)
    assert path is not None
    words = len(reward.words)  # type: ignore[attr-defined]
    piece = _piece(Outputs(reward.net, outputs), outputs, words, clips=kind is SpritesVideoReward)  # type: ignore[attr-defined]
    return Plan(
        reward=reward,
        pieces={"whole": piece},
        on_graphs=lambda graphs: kind.on_graphs("cpu", path, graphs, {}),
        clips=_clips,
        weights_sha256=weights_hash(wanted.reward, wanted.weights),
        constants={"words": list(reward.words), "range": [0, 1]},  # type: ignore[attr-defined]
    )


def _piece(module: nn.Module, outputs: tuple[str, ...], words: int, clips: bool) -> Piece:
    picture = 3, SIDE, SIDE
    batch = ("clips", "frames") if clips else ("frames",)
    axes = {"clips": (1, CLIPS), "frames": (2, FRAMES)} if clips else {"frames": (1, IMAGES)}
    low, usual, high = (
        (*(size(axes[name]) for name in batch), *picture)
        for size in (lambda axis: axis[0], lambda axis: axis[1] // 8, lambda axis: axis[1])
    )
    return Piece(
        module=module.eval(),
        inputs={"frames": port(torch.float32, *batch, *picture)},
        outputs={
            name: port(torch.float32, batch[0], *((words,) if name == "words" else ()))
            for name in outputs
        },
        axes=axes,
        profiles=[{"frames": (low, usual, high)}],
    )


def _clips() -> list[Clip]:
    source = torch.Generator().manual_seed(1)
    return [
        Clip(torch.rand(batch, frames, 3, *size, generator=source), prompt, 16, 0)
        for (batch, frames, size), prompt in zip(
            ((1, 4, (96, 96)), (3, 9, (96, 96)), (2, 12, (64, 80)), (5, 33, (96, 96))),
            PROMPTS * 2,
            strict=True,
        )
    ]
