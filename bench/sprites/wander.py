"""Clips whose look wanders away from their caption, slowly and at random, as the footage of real cameras does.

The first chunk shows what the caption says. From then on ink, paper, outline, sharpness, size and pace each take a random
walk of one step a chunk; between steps they change evenly. Nothing pulls them back, so a model that learns from such clips
learns that what was seen last goes on, not what the caption said: it drifts, and the longer the video the further.

Legend: T frames, N knots (one a chunk).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.bench.sprites.corrupt import soften
from runtime.bench.sprites.world import BACKGROUNDS, COLOURS, SHAPES, SIZE, Scene, shape_distance

OPENING = 9  # pixel frames of the first chunk, which shows the caption
CHUNK = 12  # of every other chunk
# Standard deviation of one chunk's step.
INK_STEP, PAPER_STEP = 0.035, 0.014  # RGB in [0, 1], each channel
MORPH_STEP = 0.07  # share of the way to another outline
BLUR_STEP = 0.22  # pixels
SIZE_STEP = 0.025  # of the radius
PACE_STEP = 0.04  # of the speed
# Where the walks are turned back.
FULL_MORPH, MOST_BLUR = 0.9, 3.0
SIZES, PACES = (0.7, 1.25), (0.6, 1.5)


@dataclass(frozen=True, slots=True)
class Wander:
    """How far the look is from the caption's, frame by frame. All zero (size and pace: one) is a clean clip."""

    other: str  # the outline that ``morph`` leads to
    ink: Tensor  # [T, 3] added to the colour
    paper: Tensor  # [T, 3]
    morph: Tensor  # [T] in [0, 1]
    blur: Tensor  # [T] pixels
    size: Tensor  # [T] factor
    pace: Tensor  # [T] factor

    @staticmethod
    def draw(scene: Scene, frames: int, age: int, rng: random.Random) -> Wander:
        """A walk over ``frames``, as if ``age`` chunks had gone by between the first and the second."""
        source = torch.Generator().manual_seed(rng.getrandbits(40))
        knots = 2 + max(frames - OPENING, 0) // CHUNK

        def walk(step: float, ways: int = 1) -> Tensor:
            steps = step * torch.randn(knots, ways, generator=source)
            steps[0] = 0
            if age and knots > 1:
                steps[1] *= (1 + age) ** 0.5
            return _between(steps.cumsum(0), frames, jump=bool(age))

        other = rng.choice([shape for shape in SHAPES if shape != scene.caption.shape])
        return Wander(
            other=other,
            ink=walk(INK_STEP, 3),
            paper=walk(PAPER_STEP, 3),
            morph=walk(MORPH_STEP)[:, 0].abs().clamp(max=FULL_MORPH),
            blur=walk(BLUR_STEP)[:, 0].abs().clamp(max=MOST_BLUR),
            size=(1 + walk(SIZE_STEP)[:, 0]).clamp(*SIZES),
            pace=(1 + walk(PACE_STEP)[:, 0]).clamp(*PACES),
        )

    def at(self, frames: list[int]) -> Wander:
        """The walk at some of its frames."""
        looks = (self.ink, self.paper, self.morph, self.blur, self.size, self.pace)
        return Wander(self.other, *(look[frames] for look in looks))

    def worse(self, blur: float, morph: float) -> Wander:
        """The same walk, all of it softer by ``blur`` pixels and further towards the other outline."""
        return replace(
            self,
            blur=(self.blur + blur).clamp(max=MOST_BLUR),
            morph=(self.morph + morph).clamp(max=FULL_MORPH),
        )

    def table(self) -> dict[str, str | Tensor]:
        """The fields by name, to be saved."""
        return {name: getattr(self, name) for name in Wander.__slots__}

    def still(self) -> Wander:
        """The same length without any wandering."""
        zero, one = torch.zeros_like(self.morph), torch.ones_like(self.morph)
        return Wander(self.other, 0 * self.ink, 0 * self.paper, zero, zero, one, one)


def _between(values: Tensor, frames: int, *, jump: bool) -> Tensor:
    """Knots [N, W] at the end of each chunk -> [T, W]: constant over the first chunk, then even change from knot to knot.

    With ``jump`` the second chunk begins at its own knot: time has passed unseen.
    """
    place = (torch.arange(frames) - (OPENING - 1)).clamp(min=0) / CHUNK
    low = place.ceil().long() - 1
    share = (place - low)[:, None]
    low = low.clamp(min=0, max=len(values) - 2)
    out = torch.lerp(values[low], values[low + 1], share.where(place[:, None] > 0, 0.0))
    if jump:
        second = (place > 0) & (place <= 1)
        out[second] = values[1]
    return out


def render_wandering(scene: Scene, wander: Wander) -> Tensor:
    """The clip of ``scene`` as ``wander`` lets it look: [T, 3, 96, 96] float32 in [0, 1]."""
    clock = wander.pace.cumsum(0) - wander.pace[0]
    centres = torch.tensor([scene.position(frame) for frame in clock.tolist()])  # [T, 2]
    grid = torch.arange(SIZE) + 0.5
    offsets = (grid - centres[..., None] + SIZE / 2) % SIZE - SIZE / 2  # [T, 2, SIZE]
    offsets = offsets / wander.size[:, None, None]
    x, y = torch.broadcast_tensors(offsets[:, 0, None, :], offsets[:, 1, :, None])
    own, other = (
        shape_distance(shape, x, y, scene.radius) for shape in (scene.caption.shape, wander.other)
    )
    distance = torch.lerp(own, other, wander.morph[:, None, None]) * wander.size[:, None, None]
    alpha = (0.5 - distance).clamp(0, 1)
    if wander.blur.max() > 0.15:
        alpha = soften(alpha, wander.blur.clamp(min=0.15))
    ink = torch.tensor(COLOURS[scene.caption.colour]) + wander.ink
    paper = torch.tensor(BACKGROUNDS[scene.caption.background]) + wander.paper
    ink, paper = (c.clamp(0, 1)[..., None, None] for c in (ink, paper))  # [T, 3, 1, 1]
    return paper + alpha[:, None] * (ink - paper)
