"""Teach the first chunk to commit: where an opening shows up is chance, and averaging over chance makes blobs.

A first chunk has no history, so plain flow matching at high noise predicts the mean over every place the object could be, and
four steps are too few to leave that mean. So the sampler is run as it will run; wherever its blob has formed, the true
opening of a clip at that very place is rendered and encoded, and the last two passes are pulled to it. What is random
stays random (the noise decides where), what the caption fixes becomes sharp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.bench.sprites.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SIZE,
    SPEEDS,
    Caption,
    Scene,
    render,
)
from runtime.generators.schedule import Schedule
from runtime.generators.vae import WanVAE
from runtime.generators.wan import TextContext, WanDiT
from runtime.generators.wan_layers import dense_attention

FRAMES = 9  # pixel frames of the first chunk
MIDDLE = 4
RADIUS = 20.0
LOW = {"triangle": 0.2 * RADIUS}  # pixels from a shape's centre down to its centre of mass
FAINT = 0.004  # share of the frame below which there is no blob to follow


@dataclass(frozen=True)
class Opening:
    """Draws first chunks and finds the true ones next to them."""

    vae: WanVAE
    shape: tuple[int, int, int, int]  # of a chunk's latents

    def loss(self, dit: WanDiT, text: TextContext, captions: list[Caption]) -> Tensor:
        """Squared x0 error of the last two passes against true openings, over the rows that show an object."""
        device = dit.patch_embedding.weight.device
        _, high, middle, low = Schedule.warped().sigmas
        with torch.no_grad():
            x = torch.randn(len(captions), *self.shape, device=device)
            x = self._x0(dit, text, x, 1.0)
            x = self._x0(dit, text, self._noise(x, high), high)
        third = self._x0(dit, text, self._noise(x, middle), middle)
        true, found = self._true_openings(third.detach(), captions)
        fourth = self._x0(dit, text, self._noise(third.detach(), low), low)
        errors = ((third - true).square() + (fourth - true).square()).mean((1, 2, 3, 4))
        return (errors * found).sum() / found.sum().clamp_min(1)

    @staticmethod
    def _noise(x0: Tensor, sigma: float) -> Tensor:
        return (1 - sigma) * x0 + sigma * torch.randn_like(x0)

    @staticmethod
    def _x0(dit: WanDiT, text: TextContext, x: Tensor, sigma: float) -> Tensor:
        rope = dit.rope(torch.arange(x.shape[1], device=x.device)[None], *x.shape[-2:])
        timestep = torch.full(x.shape[:2], 1000 * sigma, device=x.device)
        dtype = dit.patch_embedding.weight.dtype
        flow = dit(
            x.to(dtype), timestep, text, rope, lambda layer, q, k, v: dense_attention(q, k, v)
        )
        return x - sigma * flow.float()

    @torch.no_grad()
    def _true_openings(self, latents: Tensor, captions: list[Caption]) -> tuple[Tensor, Tensor]:
        """Encoded true openings next to what ``latents`` show, and which rows show anything (1.0 or 0.0)."""
        with torch.autocast(latents.device.type, torch.bfloat16):
            frames = self.vae.decode_fresh(latents).float().cpu()
        scenes, found = [], []
        for clip, caption in zip(frames, captions, strict=True):
            scene, mass = nearest_scene(clip, caption)
            scenes.append(render(scene, FRAMES))
            found.append(float(mass > FAINT))
        with torch.autocast(latents.device.type, torch.bfloat16):
            true = self.vae.encode(torch.stack(scenes).to(latents.device)).float()
        return true, torch.tensor(found, device=latents.device)


def nearest_scene(clip: Tensor, caption: Caption) -> tuple[Scene, float]:
    """The scene of ``caption`` whose object passes through the clip's blob, and the blob's share of the frame.

    clip [FRAMES, 3, H, W] in [0, 1].
    """
    ink = torch.tensor(COLOURS[caption.colour])
    paper = torch.tensor(BACKGROUNDS[caption.background])
    axis = (ink - paper) / (ink - paper).square().sum()
    weight = ((clip - paper[:, None, None]) * axis[:, None, None]).sum(1).clamp(0, 1)  # [T, H, W]
    weight = torch.where(weight > 0.3, weight, 0.0)
    low = LOW.get(caption.shape, 0.0)
    first, centre, last = (_centre(weight[frame], low) for frame in (0, MIDDLE, FRAMES - 1))
    speed, direction = SPEEDS[caption.speed], MOTIONS[caption.motion]
    if caption.motion.startswith("moving"):
        start = tuple(
            (c - MIDDLE * speed * d) % SIZE for c, d in zip(centre, direction, strict=True)
        )
        return Scene(caption, RADIUS, start), weight[MIDDLE].mean().item()
    signs, start = [], []
    for a, c, b, d in zip(first, centre, last, direction, strict=True):
        sign = 1 if (b - a + SIZE / 2) % SIZE >= SIZE / 2 else -1
        begin = c - sign * MIDDLE * speed * d
        signs.append(sign)
        start.append(min(max(begin, RADIUS), SIZE - RADIUS))
    return Scene(caption, RADIUS, tuple(start), tuple(signs)), weight[MIDDLE].mean().item()


def _centre(weight: Tensor, low: float) -> tuple[float, float]:
    """Centre (x, y) on the torus of an object whose centre of mass, of [H, W], lies ``low`` pixels below it."""
    turn = 2 * math.pi * (torch.arange(SIZE) + 0.5) / SIZE
    wave = torch.polar(torch.ones(SIZE), turn)
    along = (weight.sum(0) * wave).sum(), (weight.sum(1) * wave).sum()
    x, y = (torch.angle(total).item() / (2 * math.pi) * SIZE % SIZE for total in along)
    return x, (y - low) % SIZE
