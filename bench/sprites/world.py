"""A procedural world of captioned clips: one coloured shape, one motion, one background, known exactly at every frame.

A caption fixes shape, colour, motion, speed and background; a ``Scene`` adds what the caption leaves open (size, start
place, first direction). ``moving`` motions live on a torus: what leaves on one side enters on the other, so a direction
stays true however long the clip is. ``bouncing`` motions reflect off the walls of the frame.

Units: pixels, frames at ``FPS``; colours are RGB in [0, 1]; y grows downwards.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 96  # pixels a side
FPS = 16

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
COLOURS = {
    "red": (0.90, 0.14, 0.14),
    "orange": (1.00, 0.55, 0.08),
    "yellow": (0.98, 0.92, 0.20),
    "green": (0.25, 0.82, 0.28),
    "cyan": (0.18, 0.86, 0.92),
    "blue": (0.22, 0.38, 0.98),
    "purple": (0.62, 0.22, 0.88),
    "pink": (1.00, 0.55, 0.78),
}
BACKGROUNDS = {
    "navy": (0.05, 0.07, 0.28),
    "black": (0.03, 0.03, 0.03),
    "gray": (0.46, 0.46, 0.48),
    "forest": (0.07, 0.27, 0.12),
}
# motion -> unit velocity; a bouncing motion keeps its speed and flips sign at a wall
MOTIONS = {
    "moving right": (1.0, 0.0),
    "moving left": (-1.0, 0.0),
    "moving up": (0.0, -1.0),
    "moving down": (0.0, 1.0),
    "bouncing sideways": (1.0, 0.0),
    "bouncing vertically": (0.0, 1.0),
    "bouncing diagonally": (0.8, 0.6),
}
SPEEDS = {"slowly": 1.0, "quickly": 2.5}  # pixels a frame
RADII = (18.0, 22.0)  # smallest and largest half-extent in pixels
HELD_OUT_ONE_IN = 12


@dataclass(frozen=True, slots=True)
class Caption:
    """What a clip shows, in five words that have a ground truth."""

    shape: str
    colour: str
    motion: str
    speed: str
    background: str

    @property
    def text(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape} {self.motion} {self.speed} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """True for the captions that training never sees; fixed by a hash of the text."""
        return int(hashlib.sha256(self.text.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def all_captions() -> list[Caption]:
    """Every caption of the world, in a fixed order."""
    return [
        Caption(*words)
        for words in itertools.product(SHAPES, COLOURS, MOTIONS, SPEEDS, BACKGROUNDS)
    ]


def held_out_captions(count: int, seed: int = 0) -> list[Caption]:
    """``count`` captions that training never sees, in a seeded order. Raises ValueError when there are fewer."""
    pool = [caption for caption in all_captions() if caption.held_out]
    if count > len(pool):
        raise ValueError(f"held-out captions: want at most {len(pool)}, got {count}")
    return random.Random(seed).sample(pool, count)


def training_captions() -> list[Caption]:
    return [caption for caption in all_captions() if not caption.held_out]


@dataclass(frozen=True, slots=True)
class Scene:
    """A caption and everything it leaves open; position and picture at any frame follow exactly."""

    caption: Caption
    radius: float
    start: tuple[float, float]
    signs: tuple[int, int] = (1, 1)  # first direction of a bouncing motion per axis

    @staticmethod
    def draw(caption: Caption, rng: random.Random) -> Scene:
        radius = rng.uniform(*RADII)
        place = (rng.uniform(radius, SIZE - radius), rng.uniform(radius, SIZE - radius))
        dx, dy = MOTIONS[caption.motion]
        if caption.motion.startswith("moving"):  # along its own axis the torus has no walls
            place = tuple(
                rng.uniform(0, SIZE) if d else p for d, p in zip((dx, dy), place, strict=True)
            )
        return Scene(caption, radius, place, (rng.choice((-1, 1)), rng.choice((-1, 1))))

    def position(self, frame: float) -> tuple[float, float]:
        """Centre (x, y) in pixels at ``frame``; on the torus it lies in [0, SIZE)."""
        speed = SPEEDS[self.caption.speed]
        steps = [speed * d * frame for d in MOTIONS[self.caption.motion]]
        if self.caption.motion.startswith("moving"):
            return tuple((s + d) % SIZE for s, d in zip(self.start, steps, strict=True))
        low, span = self.radius, SIZE - 2 * self.radius
        return tuple(
            low + _reflect(s - low + sign * d, span)
            for s, d, sign in zip(self.start, steps, self.signs, strict=True)
        )


def _reflect(value: float, span: float) -> float:
    value %= 2 * span
    return 2 * span - value if value > span else value


def _polygon_distance(x: Tensor, y: Tensor, points: Sequence[tuple[float, float]]) -> Tensor:
    """Signed distance to a closed polygon (negative inside). x, y [...] -> [...]."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ay != by:
            crosses = ((y >= ay) != (y >= by)) & (x < ax + (y - ay) * ex / ey)
            inside = inside ^ crosses
    return nearest.sqrt() * torch.where(inside, -1.0, 1.0)


def _star_points(radius: float) -> list[tuple[float, float]]:
    turns = [(radius if i % 2 == 0 else 0.45 * radius, math.pi * i / 5) for i in range(10)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in turns]


def shape_distance(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Signed distance in pixels to the outline of ``shape`` centred at 0, negative inside. x, y [...] -> [...]."""
    r = radius
    if shape == "circle":
        return (x * x + y * y).sqrt() - r
    if shape == "ring":
        return ((x * x + y * y).sqrt() - 0.74 * r).abs() - 0.26 * r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * r
    if shape == "cross":
        bar = 0.34 * r
        across = torch.maximum(x.abs() - r, y.abs() - bar)
        return torch.minimum(across, torch.maximum(x.abs() - bar, y.abs() - r))
    if shape == "triangle":
        return _polygon_distance(x, y, [(0, -r), (r, 0.8 * r), (-r, 0.8 * r)])
    if shape == "star":
        return _polygon_distance(x, y, _star_points(r))
    raise ValueError(f"shape: want one of {', '.join(SHAPES)}, got {shape!r}")


def coverage(scene: Scene, frames: Sequence[float], size: int = SIZE) -> Tensor:
    """How much of each pixel the object covers: [T, size, size] in [0, 1], anti-aliased, wrapped on the torus."""
    grid = (torch.arange(size) + 0.5) * (SIZE / size)
    centres = torch.tensor([scene.position(frame) for frame in frames])  # [T, 2]
    offsets = (grid - centres[..., None] + SIZE / 2) % SIZE - SIZE / 2  # [T, 2, size]
    x, y = offsets[:, 0, None, :], offsets[:, 1, :, None]
    x, y = torch.broadcast_tensors(x, y)  # [T, size, size]
    return (0.5 - shape_distance(scene.caption.shape, x, y, scene.radius) * (size / SIZE)).clamp(
        0, 1
    )


def render(scene: Scene, frames: int, start: int = 0, size: int = SIZE) -> Tensor:
    """The clip of ``scene``: [frames, 3, size, size] float32 in [0, 1], beginning at frame ``start``."""
    alpha = coverage(scene, range(start, start + frames), size)[:, None]
    ink = torch.tensor(COLOURS[scene.caption.colour]).view(1, 3, 1, 1)
    paper = torch.tensor(BACKGROUNDS[scene.caption.background]).view(1, 3, 1, 1)
    return paper + alpha * (ink - paper)
