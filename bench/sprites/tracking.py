"""Finds the object of a clip in every frame by plain measurement: paper colour, ink colour, place, centred mask.

Nothing here is learned and nothing is shared with the rewards. Made for imperfect video: soft edges, grain, colour drift.

Legend: T frames, S shapes, R radii; pixels on a torus of 96 x 96; crops are ``CROP`` pixels a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from runtime.bench.sprites.world import RADII, SHAPES, SIZE, shape_distance

CROP = 60
BORDERED = 72  # pixels a side of what is shifted before it is cropped
REACH = 1.25 * RADII[1] + 1  # pixels around the object's centre of mass that belong to it
BOX = 17  # half a side of the box that looks for the object
MIN_CONTRAST = 0.25  # RGB distance of ink and paper; the faintest pair of the world has 0.49
AREAS = (130.0, 2200.0)  # pixels an object may cover; in the world they cover 420 to 1520
SOFTNESS = (0.0, 1.5, 3.0)  # widths of blur in pixels that templates come in
SIZES = torch.arange(RADII[0] - 3, RADII[1] + 3.5, 0.5)  # radii of the templates


@dataclass(frozen=True, slots=True)
class Track:
    """Where the object is and what it looks like. Rows of frames without an object are meaningless."""

    present: Tensor  # [T] bool
    centroid: Tensor  # [T, 2] centre of mass, pixels in [0, 96)
    paper: Tensor  # [T, 3] RGB
    ink: Tensor  # [T, 3] RGB
    contrast: Tensor  # [T] RGB distance of ink and paper
    masks: Tensor  # [T, CROP, CROP] in [0, 1], centred on the centroid
    crops: Tensor  # [T, 3, CROP, CROP] RGB, centred on the centroid
    outside: Tensor  # [T] RMS difference of what lies around the object from the clip's paper


@dataclass(frozen=True, slots=True)
class Templates:
    """Every shape at every radius as an ideal mask, sharp and softened, centred on its centre of mass."""

    masks: Tensor  # [S, R, CROP, CROP] sharp
    soft: Tensor  # [S, R * len(SOFTNESS), CROP, CROP]
    offsets: Tensor  # [S, R, 2] centre of mass minus centre, pixels


def wrap(x: Tensor) -> Tensor:
    """The shortest way round the torus: pixels -> pixels in [-48, 48)."""
    return (x + SIZE / 2) % SIZE - SIZE / 2


def centre_of_mass(weights: Tensor) -> Tensor:
    """Circular mean place (x, y) in pixels in [0, 96) of non-negative weights [T, 96, 96] -> [T, 2]."""
    angle = 2 * math.pi * (torch.arange(SIZE) + 0.5) / SIZE
    places = []
    for axis in (1, 2):  # summing over y leaves x, and the other way round
        line = weights.sum(axis)
        places.append(torch.atan2(line @ angle.sin(), line @ angle.cos()))
    return torch.stack(places, 1) * SIZE / (2 * math.pi) % SIZE


def centred(images: Tensor, places: Tensor) -> Tensor:
    """Crops of images [T, C, 96, 96] on the torus whose middle is at ``places`` [T, 2] (x, y): [T, C, CROP, CROP].

    Whole pixels by indexing, the rest by a Fourier shift of a slightly larger crop with flat borders.
    """
    whole = places.floor()
    at = (whole.long()[..., None] + torch.arange(BORDERED) - BORDERED // 2) % SIZE  # [T, 2, 64]
    rows = torch.arange(len(images))[:, None, None]
    cut = images.permute(0, 2, 3, 1)[rows, at[:, 1, :, None], at[:, 0, None, :]]  # [T, 64, 64, C]
    rest = (places - whole)[..., None]  # [T, 2, 1]
    turn_x = torch.exp(2j * math.pi * rest[:, 0] * torch.fft.rfftfreq(BORDERED))
    turn_y = torch.exp(2j * math.pi * rest[:, 1] * torch.fft.fftfreq(BORDERED))
    turn = (turn_y[:, :, None] * turn_x[:, None, :])[:, None]  # [T, 1, 64, 33]
    shifted = torch.fft.irfft2(torch.fft.rfft2(cut.permute(0, 3, 1, 2)) * turn)
    edge = (BORDERED - CROP) // 2
    return shifted[..., edge : edge + CROP, edge : edge + CROP]


@lru_cache(maxsize=1)
def templates() -> Templates:
    """The ideal masks, rendered once."""
    grid = torch.arange(SIZE) + 0.5 - SIZE / 2
    x, y = torch.broadcast_tensors(grid[None, :], grid[:, None])
    ideal = torch.stack(
        [
            (0.5 - shape_distance(shape, x, y, float(r))).clamp(0, 1)
            for shape in SHAPES
            for r in SIZES
        ]
    )
    places = centre_of_mass(ideal)
    shape = (len(SHAPES), len(SIZES))
    masks = centred(ideal[:, None], places).clamp(0, 1).unflatten(0, shape)  # [S, R, 1, ...]
    return Templates(
        masks=masks[:, :, 0],
        soft=torch.cat([_gauss(masks, sigma) for sigma in SOFTNESS], 2).flatten(1, 2),
        offsets=wrap(places - SIZE / 2).unflatten(0, shape),
    )


def _gauss(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of width ``sigma`` pixels, by Fourier transform: [..., CROP, CROP] -> the same shape."""
    if sigma == 0:
        return images
    fade = torch.exp(-2 * (math.pi * sigma * torch.fft.fftfreq(CROP)) ** 2)
    return torch.fft.ifft2(torch.fft.fft2(images) * fade * fade[:, None]).real.clamp(0, 1)


def _smooth(images: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels on the torus: [..., 96, 96] -> the same shape."""
    for axis in (-2, -1):
        images = (images + images.roll(1, axis) + images.roll(-1, axis)) / 3
    return images


def _window(places: Tensor) -> Tensor:
    """1 within ``REACH`` pixels of ``places`` [T, 2] along both axes, else 0: [T, 96, 96]."""
    near = wrap(torch.arange(SIZE) + 0.5 - places[..., None]).abs() <= REACH  # [T, 2, 96]
    return (near[:, 0, None, :] & near[:, 1, :, None]).float()


def _peak(weights: Tensor) -> Tensor:
    """Middle of the box of half side ``BOX`` with the largest sum: weights [T, 96, 96] -> [T, 2]."""
    cells = torch.arange(float(SIZE))
    near = (wrap(cells - cells[:, None]).abs() <= BOX).float()
    best = (near @ weights @ near).flatten(1).argmax(1)
    return torch.stack((best % SIZE, best // SIZE), 1) + 0.5


def track(frames: Tensor) -> Track:
    """Measure a clip [T, 3, 96, 96] in [0, 1]. Raises ValueError for another shape."""
    if frames.ndim != 4 or frames.shape[1:] != (3, SIZE, SIZE) or len(frames) < 1:
        raise ValueError(f"frames: want [T, 3, {SIZE}, {SIZE}], got {list(frames.shape)}")
    frames = frames.detach().float().cpu()
    paper = frames.flatten(2).median(2).values  # the object never covers half of a frame
    difference = frames - paper[..., None, None]
    distance = _smooth(difference).square().sum(1).sqrt()
    weights = distance.clamp(max=0.5) * (distance > 0.12)
    window = _window(_peak(weights))
    for _ in range(2):
        window = _window(centre_of_mass(weights * window + 1e-9))
    # The ink is the mean of the pixels that stand out most: neither the very top (grain) nor the soft edge.
    level = (distance * window).flatten(1).topk(120).values[:, 20:].mean(1)
    core = (window * (distance >= 0.75 * level[:, None, None]))[:, None]
    lift = (difference * core).sum((2, 3)) / core.sum((2, 3)).clamp(min=1)  # [T, 3]
    contrast = lift.norm(dim=1)
    along = (difference * lift[..., None, None]).sum(1) / contrast.square().clamp(min=1e-6)[
        :, None, None
    ]
    alpha = (along * window).clamp(0, 1)  # [T, 96, 96]
    area = (alpha > 0.5).float().sum((1, 2))
    centroid = centre_of_mass((alpha - 0.2).clamp(min=0) + 1e-9)
    around = 1 - window
    flaws = difference + (paper - paper.median(0).values)[..., None, None]
    return Track(
        present=(contrast > MIN_CONTRAST) & (area > AREAS[0]) & (area < AREAS[1]),
        centroid=centroid,
        paper=paper,
        ink=paper + lift,
        contrast=contrast,
        masks=centred(alpha[:, None], centroid)[:, 0].clamp(0, 1),
        crops=centred(frames, centroid),
        outside=((flaws.square().mean(1) * around).sum((1, 2)) / around.sum((1, 2))).sqrt(),
    )


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of masks [T, CROP, CROP] and [M, CROP, CROP] for every pair -> [T, M] in [0, 1].

    For soft masks the product stands for the intersection: a.b / (a.a + b.b - a.b).
    """
    first, second = first.flatten(1), second.flatten(1)
    both = first @ second.T
    union = first.square().sum(1)[:, None] + second.square().sum(1) - both
    return both / union.clamp(min=1e-6)


def fit_shapes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Best overlap of each mask [T, CROP, CROP] with each shape: values [T, S], indices of the radius [T, S].

    A soft picture is compared with soft templates: rounded corners alone do not turn a square into a circle.
    """
    every = overlap(masks, templates().soft.flatten(0, 1)).unflatten(1, (len(SHAPES), -1))
    best = every.max(2)
    return best.values, best.indices // len(SOFTNESS)
