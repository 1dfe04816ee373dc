"""Clips with defects of known severity, and the caption shown with them: the ground truth that rewards learn from.

A clip is drawn as an object layer over flat paper. Every defect has a severity in [0, 1] that becomes a level per frame
(constant, or growing after ``onset``), so a target can be read for one frame as well as for the whole clip. All targets
point the way a reward does: 1 is perfect, 0 is worst.

Legend: T frames of the whole clip, n rendered frames, W words (``WORDS``, the first ``STATIC_WORDS`` visible in a still).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.bench.sprites.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZE,
    SPEEDS,
    Caption,
    Scene,
    shape_distance,
)

VOCABULARY = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "motion": tuple(MOTIONS),
    "speed": tuple(SPEEDS),
}
WORDS = tuple(word for group in VOCABULARY.values() for word in group)
STATIC = ("shape", "colour", "background")
STATIC_WORDS = sum(len(VOCABULARY[name]) for name in STATIC)
OPPOSITE = {
    "moving right": "moving left",
    "moving left": "moving right",
    "moving up": "moving down",
    "moving down": "moving up",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Defects:
    """Severities in [0, 1]; 0 is absent. ``wrong`` names the caption attributes that will be shown wrongly."""

    blur: float = 0.0  # soft object edges
    noise: float = 0.0  # grain and flicker of the brightness
    blocks: float = 0.0  # the object's outline in coarse cells
    fade: float = 0.0  # the object turns transparent; 1 is no object at all
    ghost: float = 0.0  # a second copy of the object; 1 is as strong as the first
    crumble: float = 0.0  # share of the object that is missing, in patches
    ink_drift: float = 0.0  # the object's colour ends up as another
    paper_drift: float = 0.0  # the background ends up as another
    morph: float = 0.0  # the shape ends up as another
    jitter: float = 0.0  # every frame is off its place
    jump: float = 0.0  # sudden leaps that persist
    stall: float = 0.0  # share of the clip that stands still
    reverse: float = 0.0  # the last frames run backwards; at 1 half of the clip
    onset: float = 0.0  # share of the clip before defects begin to grow; 0 keeps them constant
    wear: float = 0.0  # mild softness, grain and tint that no target counts
    wrong: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "wrong" and not 0.0 <= value <= 1.0:
                raise ValueError(f"defects.{field.name}: want a severity in [0, 1], got {value}")
        if unknown := set(self.wrong) - set(VOCABULARY):
            raise ValueError(
                f"defects.wrong: want names among {', '.join(VOCABULARY)}, got {sorted(unknown)}"
            )


PICTURE = ("blur", "noise", "blocks", "fade", "ghost", "crumble")
MOVEMENT = ("ink_drift", "paper_drift", "morph", "jitter", "jump", "stall", "reverse")
# How much of a quality a defect at full severity takes away.
PICTURE_WEIGHT = {
    "blur": 0.9,
    "noise": 0.8,
    "blocks": 0.8,
    "fade": 0.9,
    "ghost": 0.8,
    "crumble": 0.9,
}
MOVEMENT_WEIGHT = {
    "ink_drift": 0.7,
    "paper_drift": 0.7,
    "morph": 0.8,
    "jitter": 0.9,
    "jump": 0.8,
    "stall": 0.8,
    "reverse": 0.8,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A corrupted clip, the caption shown to the reward, and the truth about both. Qualities in [0, 1], 1 is perfect."""

    frames: Tensor  # [n, 3, 96, 96] in [0, 1]
    caption: Caption  # as shown: some of its words may be wrong
    quality: Tensor  # [n] picture quality of each frame
    alignment: Tensor  # [n] mean degree of the shown static words in each frame
    visual: float  # VQ of the whole clip
    motion: float  # MQ of the whole clip
    aligned: float  # TA: mean degree of the five shown words over the whole clip
    truth: Tensor  # [W] degree to which each word is true of the whole clip
    still_truth: Tensor  # [n, STATIC_WORDS] degree to which each static word is true of each frame
    centres: Tensor  # [n, 2] where the object is, pixels on the torus


def corrupt(
    scene: Scene, defects: Defects, length: int, seed: int, frames: Sequence[int] | None = None
) -> Sample:
    """Render ``scene`` for ``length`` frames with ``defects``, keeping only the indices in ``frames`` (all if None).

    Every random choice comes from ``seed`` and is made for the whole length: the same frame index of the same seed shows
    the same picture up to grain and patch noise, whichever indices are asked for. Raises ValueError for a bad length or index.
    """
    keep = list(range(length)) if frames is None else list(frames)
    if length < 1 or not keep or min(keep) < 0 or max(keep) >= length:
        raise ValueError(f"frames: want indices in [0, {length}), at least one, got {keep[:4]}...")
    rng = random.Random(seed)
    noise = torch.Generator().manual_seed(seed)
    levels, movement = _levels(defects, length, rng)
    other = {
        name: rng.choice([w for w in VOCABULARY[name] if w != getattr(scene.caption, name)])
        for name in STATIC
    }
    centres = _path(scene, defects, levels, rng, noise)[keep]  # [n, 2]
    at = {name: level[keep] for name, level in levels.items()}
    pictures = _paint(
        scene, other, centres, at, (defects.wear, rng.random(), rng.choice((4, 6, 8, 12))), noise
    )
    truth = _truth(scene.caption, other, levels, movement)  # [T, W]
    told = shown(scene.caption, defects.wrong, rng)
    columns = [WORDS.index(getattr(told, name)) for name in VOCABULARY]
    picture = _product(levels, PICTURE_WEIGHT, PICTURE)  # [T]
    muddle = 1 - 0.5 * 4 * at["morph"] * (1 - at["morph"])
    mean_truth = truth.mean(0)
    static = columns[: len(STATIC)]
    return Sample(
        frames=pictures,
        caption=told,
        quality=picture[keep] * muddle,
        alignment=truth[keep][:, static].mean(1),
        visual=float(picture.mean()),
        motion=math.prod(1 - MOVEMENT_WEIGHT[k] * v for k, v in movement.items())
        * (1 - 0.8 * float(levels["fade"].mean())),
        aligned=float(mean_truth[columns].mean()),
        truth=mean_truth,
        still_truth=truth[keep][:, :STATIC_WORDS],
        centres=centres,
    )


def _product(levels: dict[str, Tensor], weights: dict[str, float], names: Sequence[str]) -> Tensor:
    out = torch.ones_like(levels[names[0]])
    for name in names:
        out = out * (1 - weights[name] * levels[name])
    return out


def _levels(
    defects: Defects, length: int, rng: random.Random
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Levels [T] of the defects seen frame by frame, and the severity of each movement defect over the clip."""
    time = torch.arange(length) / max(length - 1, 1)
    growth = (
        ((time - defects.onset) / (1 - defects.onset + 1e-6)).clamp(0, 1)
        if defects.onset
        else torch.ones(length)
    )
    levels = {name: getattr(defects, name) * growth for name in (*PICTURE, "jitter")}
    movement = {name: getattr(defects, name) for name in ("jump", "stall", "reverse")}
    movement["jitter"] = float(levels["jitter"].mean())
    for name in ("ink_drift", "paper_drift", "morph"):
        width = rng.choice((0.08, 0.3, 1.0))
        begin = rng.uniform(0.0, max(0.75 - width, 0.0))
        change = (
            ((time - begin) / width).clamp(0, 1) if length > 1 else torch.full((1,), rng.random())
        )
        levels[name] = getattr(defects, name) * change
        movement[name] = float(levels[name].amax() - levels[name].amin())
    return levels, movement


def _path(
    scene: Scene,
    defects: Defects,
    levels: dict[str, Tensor],
    rng: random.Random,
    noise: torch.Generator,
) -> Tensor:
    """Centres [T, 2] in pixels on the torus, with stalls, reversals, jumps and jitter."""
    length = len(levels["jitter"])
    pace = torch.ones(length)
    still = round(defects.stall * length)
    begin = rng.randint(0, length - still)
    pace[begin : begin + still] = 0
    back = round(0.5 * defects.reverse * length)
    pace[length - back :] *= -1
    clock = pace.cumsum(0) - pace[0]
    centres = torch.tensor([scene.position(frame) for frame in clock.tolist()])
    for index in range(1 + (defects.jump > 0.5)):
        angle, when = rng.uniform(0, 2 * math.pi), rng.randint(1, max(length - 1, 1))
        reach = (6 + 30 * defects.jump) / (1 + index) if defects.jump else 0.0
        centres[when:] += reach * torch.tensor([math.cos(angle), math.sin(angle)])
    centres += 3.5 * levels["jitter"][:, None] * torch.randn(length, 2, generator=noise)
    return centres % SIZE


def _cover(shape: str, centres: Tensor, radius: float) -> Tensor:
    """Signed distances [n, 96, 96] to the outline of ``shape`` at ``centres`` [n, 2] on the torus."""
    grid = torch.arange(SIZE) + 0.5
    offsets = (grid - centres[..., None] + SIZE / 2) % SIZE - SIZE / 2  # [n, 2, 96]
    x, y = torch.broadcast_tensors(offsets[:, 0, None, :], offsets[:, 1, :, None])
    return shape_distance(shape, x, y, radius)


def _column(level: Tensor) -> Tensor:
    return level.view(-1, 1, 1)


def _paint(
    scene: Scene,
    other: dict[str, str],
    centres: Tensor,
    at: dict[str, Tensor],
    style: tuple[float, float, int],
    noise: torch.Generator,
) -> Tensor:
    """Draw the kept frames [n, 3, 96, 96]. ``style``: wear in [0, 1], ghost angle in turns, cell size in pixels."""
    wear, turn, cell = style
    tint = 0.015 * wear * torch.randn(2, 1, 3, 1, 1, generator=noise)
    distance = _cover(scene.caption.shape, centres, scene.radius)
    if at["morph"].any():
        distance = torch.lerp(
            distance, _cover(other["shape"], centres, scene.radius), _column(at["morph"])
        )
    alpha = (0.5 - distance).clamp(0, 1)
    if at["crumble"].any():
        alpha = alpha * _patches(at["crumble"], noise)
    alpha = alpha * _column(1 - at["fade"])
    if at["ghost"].any():
        reach = 10 + 34 * ((turn * 7) % 1)
        place = centres + reach * torch.tensor(
            [math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)]
        )
        twin = (0.5 - _cover(scene.caption.shape, place, scene.radius)).clamp(0, 1)
        alpha = torch.maximum(alpha, twin * _column(at["ghost"]))
    if at["blocks"].any():
        coarse = F.interpolate(F.avg_pool2d(alpha[:, None], cell), scale_factor=cell)[:, 0]
        alpha = torch.lerp(alpha, coarse, _column(at["blocks"]))
    sigma = (0.8 * wear) + 3.5 * at["blur"]
    if (sigma > 0.15).any():
        alpha = soften(alpha, sigma.clamp(min=0.15))
    ink = _blend(COLOURS, scene.caption.colour, other["colour"], at["ink_drift"])
    paper = _blend(BACKGROUNDS, scene.caption.background, other["background"], at["paper_drift"])
    paper = paper + tint[0]
    frames = paper + alpha[:, None] * (ink + tint[1] - paper)
    frames = _grain(frames, at["noise"], wear, noise).clamp(0, 1)
    return (frames * 255).round() / 255 if wear else frames


def _grain(frames: Tensor, level: Tensor, wear: float, noise: torch.Generator) -> Tensor:
    """Add flicker, grain of a pixel and blotches of about 12 pixels; ``level`` [n] is the noise that counts."""
    strength = (0.1 * wear + level).view(-1, 1, 1, 1)
    if not strength.any():
        return frames
    fine = torch.randn(frames.shape, generator=noise)
    coarse = torch.randn(len(frames), 3, 8, 8, generator=noise)
    coarse = F.interpolate(coarse, size=frames.shape[-2:], mode="bilinear")
    flicker = torch.randn(len(frames), 1, 1, 1, generator=noise)
    return frames * (1 + 0.12 * level.view(-1, 1, 1, 1) * flicker) + strength * (
        0.1 * fine + 0.06 * coarse
    )


def _blend(table: dict[str, tuple[float, ...]], word: str, other: str, share: Tensor) -> Tensor:
    first, second = (torch.tensor(table[name]).view(1, 3, 1, 1) for name in (word, other))
    return torch.lerp(first, second, share.view(-1, 1, 1, 1))


def _patches(missing: Tensor, noise: torch.Generator) -> Tensor:
    """Soft masks [n, 96, 96] that hide about the share ``missing`` [n] of a frame, in slowly changing patches."""
    fixed = torch.randn(1, 1, 14, 14, generator=noise)
    moving = torch.randn(len(missing), 1, 14, 14, generator=noise)
    field = F.interpolate(0.9 * fixed + 0.4 * moving, size=(SIZE, SIZE), mode="bilinear")[:, 0]
    threshold = 0.66 * torch.special.ndtri(missing.clamp(1e-3, 1 - 1e-3))
    return torch.sigmoid(8 * (field - _column(threshold)))


def soften(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of alpha [n, 96, 96] on the torus, one width sigma [n] in pixels a frame."""
    reach = min(max(2, math.ceil(2.5 * float(sigma.max()))), SIZE // 2)
    steps = torch.arange(-reach, reach + 1)
    taps = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)  # [n, K]
    count = len(alpha)
    image = F.pad(alpha[None], (reach, reach, reach, reach), mode="circular")
    image = F.conv2d(image, taps.view(count, 1, 1, -1), groups=count)
    return F.conv2d(image, taps.view(count, 1, -1, 1), groups=count)[0]


def _truth(
    caption: Caption, other: dict[str, str], levels: dict[str, Tensor], movement: dict[str, float]
) -> Tensor:
    """Degree [T, W] in [0, 1] to which each word is true of each frame; motion and speed hold for the whole clip."""
    seen = (1 - levels["fade"]) * (1 - levels["crumble"])
    truth = torch.zeros(len(seen), len(WORDS))

    def tell(word: str, degree: Tensor | float) -> None:
        truth[:, WORDS.index(word)] = degree

    tell(caption.shape, seen * (1 - levels["morph"]))
    tell(other["shape"], seen * levels["morph"])
    solid = 1 - levels["fade"]
    tell(caption.colour, solid * (1 - levels["ink_drift"]))
    tell(other["colour"], solid * levels["ink_drift"])
    tell(caption.background, 1 - levels["paper_drift"])
    tell(other["background"], levels["paper_drift"])
    visible = float(solid.mean())
    running = 1 - movement["stall"]
    back = 0.5 * movement["reverse"]
    tell(caption.speed, visible * running)
    if caption.motion in OPPOSITE:
        tell(caption.motion, visible * running * (1 - back))
        tell(OPPOSITE[caption.motion], visible * running * back)
    else:
        tell(caption.motion, visible * running)
    return truth


def shown(caption: Caption, wrong: Sequence[str], rng: random.Random) -> Caption:
    swaps = {
        name: rng.choice([w for w in VOCABULARY[name] if w != getattr(caption, name)])
        for name in wrong
    }
    return replace(caption, **swaps)
