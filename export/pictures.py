"""How the rewards that see squares of pixels are exported: one graph each, free in the number of pictures.

    whole    pixels [N, 3, S, S], what was read of the prompt -> scores [N] float32

What torch reads of a prompt, once for all its pictures, goes in under the names in ``Reader.inputs``, of one size whatever
the prompt. Heads that torch computes in float32 stay so.
"""

from __future__ import annotations

import torch

from runtime.backends import weights_hash, weights_path
from runtime.export.pieces import Piece, Plan, Wanted, port
from runtime.exported import RANDOM
from runtime.rewards import load_reward
from runtime.rewards.pictures import PictureReward
from runtime.types import Clip

PRECISIONS = ("fp32", "fp16", "bf16")
PROMPTS = ("a red circle", "", "two bluish squares that turn " * 4)  # the last is cut


def pictures(wanted: Wanted) -> Plan:
    """clip-h, imagereward, mps."""
    _check(wanted)
    exact = _load(wanted, wanted.base if wanted.weights == RANDOM else torch.float32)
    reward = exact if exact.dtype == wanted.base else _load(wanted, wanted.base)
    kind, folder = type(reward), weights_path(wanted.reward, wanted.weights)
    constants = {
        "dtype": str(wanted.base).removeprefix("torch."),
        "pictures": reward.rows_per_forward,
    }
    return Plan(
        reward=exact,
        pieces={"whole": _piece(reward)},
        on_graphs=lambda graphs: kind.on_graphs("cpu", folder, graphs, constants),  # type: ignore[attr-defined]
        clips=lambda: _clips(reward.rows_per_forward),
        weights_sha256=weights_hash(wanted.reward, wanted.weights),
        constants=constants,
    )


def _check(wanted: Wanted) -> None:
    if wanted.precision not in PRECISIONS:
        raise ValueError(
            f"--precision: {wanted.reward} is exported in {', '.join(PRECISIONS)}, got {wanted.precision}"
        )
    if wanted.frame_size or wanted.frames:
        raise ValueError(
            f"--frame-size, --frames: {wanted.reward} sees squares of one size, whatever the video; drop them"
        )


def _load(wanted: Wanted, dtype: torch.dtype) -> PictureReward:
    reward = load_reward(wanted.reward, "cpu", wanted.weights, dtype)
    assert isinstance(reward, PictureReward)
    return reward


@torch.no_grad()
def _piece(reward: PictureReward) -> Piece:
    side, most = reward.reader.side, reward.rows_per_forward
    words = dict(zip(reward.reader.inputs[1:], reward.words(PROMPTS[0]), strict=True))
    square = 3, side, side
    # Tables that a network keeps are made and kept before anything is traced: born in a trace they are none afterwards.
    reward.net(torch.zeros(1, *square, dtype=reward.dtype), *words.values())
    return Piece(
        module=reward.reader,
        inputs={
            "pixels": port(reward.dtype, "pictures", *square),
            **{name: port(value.dtype, *value.shape) for name, value in words.items()},
        },
        outputs={"scores": port(torch.float32, "pictures")},
        axes={"pictures": (1, most)},
        profiles=[
            {
                "pixels": ((1, *square), (most, *square), (most, *square)),
                **{name: (tuple(value.shape),) * 3 for name, value in words.items()},
            }
        ],
    )


def _clips(most: int) -> list[Clip]:
    """One picture, a few, and more than go at once, of several sizes."""
    source = torch.Generator().manual_seed(1)
    sizes = ((1, 1, (60, 90)), (3, 2, (240, 416)), (2, most // 2 + 1, (64, 64)))
    return [
        Clip(torch.rand(batch, frames, 3, *size, generator=source), prompt, 16, 0)
        for (batch, frames, size), prompt in zip(sizes, PROMPTS, strict=True)
    ]
