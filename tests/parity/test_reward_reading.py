"""What the published rewards see of real-looking pictures, and what their heads say of a hidden state that is known."""

import math

import pytest
import torch
import torch.nn.functional as F

from runtime.kernels import bicubic
from runtime.rewards import load_reward
from runtime.rewards.videoalign import MEANS, STDS
from runtime.types import Clip
from tests.reward_folder import write_folder
from tests.tiny import generator_of

image = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")

# Frames of the generators and what the rewards make of them, upright ones and small ones too.
SIZES = [
    ((480, 832), (336, 588)),
    ((720, 1280), (336, 588)),
    ((832, 480), (588, 336)),
    ((96, 96), (336, 336)),
    ((240, 416), (308, 532)),
]


def scene(height: int, width: int) -> torch.Tensor:
    """[3, H, W] bytes: a sky that changes slowly, textured hills, shaded discs with hard edges, the grain of a film."""
    source = generator_of(height)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    picture = torch.stack((0.4 + 0.3 * y, 0.6 + 0.2 * y, 0.95 - 0.3 * y))
    hill = (y > 0.6 + 0.1 * torch.sin(9 * x)).float()
    texture = 0.5 + 0.5 * torch.sin(120 * x + 40 * torch.sin(15 * y))
    ground = torch.stack((0.2 * texture, 0.35 + 0.3 * texture, 0.15 * texture))
    picture = picture * (1 - hill) + hill * ground
    for _ in range(6):
        left, top, radius = torch.rand(3, generator=source)
        colour = torch.rand(3, 1, 1, generator=source) * (0.6 + 0.4 * x)
        far = ((x - left) * width / height) ** 2 + (y - top) ** 2
        disc = (far < (0.03 + 0.12 * radius) ** 2).float()
        picture = picture * (1 - disc) + disc * colour
    picture += 0.02 * torch.randn(picture.shape, generator=source)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_a_real_looking_picture_is_resized_to_the_byte_as_pillow_does(before, after):
    """HPSv3's pictures go through Pillow: not one byte may differ, in one call of it at the real sizes."""
    picture = scene(*before)
    theirs = image.fromarray(picture.permute(1, 2, 0).numpy()).resize(
        after[::-1], image.Resampling.BICUBIC
    )
    got = bicubic.resize_reference(picture, *after)
    assert np.array_equal(got.permute(1, 2, 0).numpy(), np.array(theirs))


@pytest.mark.parametrize(("before", "after"), SIZES, ids=str)
def test_a_real_looking_frame_is_within_a_byte_of_the_sums_in_float32(before, after):
    """VideoAlign's frames are summed in float32 and rounded once, ours are rounded between rows and columns.

    A byte more or less for a quarter of the values, and more only where an edge overshoots between the two.
    """
    frame = scene(*before)
    theirs = F.interpolate(frame[None].float(), after, mode="bicubic", antialias=True)[0]
    off = (bicubic.resize_reference(frame, *after).int() - theirs.round().clamp(0, 255).int()).abs()
    assert (off > 0).float().mean() < 0.25
    assert (off > 1).float().mean() < 2e-3


def known_state(reward, monkeypatch, seed: int) -> list[torch.Tensor]:
    """Make the decoder say what we know; returns the states [N, R, E] of every forward pass, once it has run."""
    net = reward.judge.net
    made: list[torch.Tensor] = []

    def forward(x, at):
        shape = len(x), len(at), x.shape[-1]
        made.append(torch.randn(shape, generator=generator_of(seed + len(made))))
        return made[-1].to(x.dtype)

    monkeypatch.setattr(net.model, "forward", forward)
    return made


def linear(weight, bias, x: list[float]) -> list[float]:
    """In Python's own numbers, summed without an error."""
    return [
        math.fsum([w * v for w, v in zip(row, x, strict=True)] + [b])
        for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
    ]


@torch.no_grad()
def test_hpsv3_says_of_a_known_state_what_its_head_says_by_hand(tmp_path, monkeypatch):
    reward = load_reward("hpsv3", "cpu", str(write_folder(tmp_path, "hpsv3")))
    made = known_state(reward, monkeypatch, 1)
    frames = torch.rand(2, 3, 3, 60, 90, generator=generator_of(2))
    got = reward.score(Clip(frames, "a cat", 16, 0))
    first, second, third = (reward.judge.net.rm_head[index] for index in (0, 3, 5))
    mus = []
    for state in torch.cat(made)[:, 0].tolist():
        wide = [max(value, 0.0) for value in linear(first.weight, first.bias, state)]
        narrow = [max(value, 0.0) for value in linear(second.weight, second.bias, wide)]
        mus.append(linear(third.weight, third.bias, narrow)[0])  # the second is sigma
    want = torch.tensor([math.fsum(mus[:3]) / 3, math.fsum(mus[3:]) / 3])
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("outputs", [1, 3])
@torch.no_grad()
def test_videoalign_says_of_known_states_what_its_head_says_by_hand(tmp_path, monkeypatch, outputs):
    root = write_folder(tmp_path, "videoalign", output_dim=outputs)
    reward = load_reward("videoalign", "cpu", str(root))
    made = known_state(reward, monkeypatch, 3)
    frames = torch.rand(2, 9, 3, 60, 90, generator=generator_of(4))
    got = reward.detail(Clip(frames, "a cat", 16, 0))
    weight = reward.judge.net.rm_head.weight
    nothing = torch.zeros(outputs)
    want = torch.tensor(
        [
            [
                (linear(weight, nothing, state)[place if outputs == 3 else 0] - mean) / std
                for place, (state, mean, std) in enumerate(zip(states, MEANS, STDS, strict=True))
            ]
            for states in torch.cat(made).tolist()
        ]
    )
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
