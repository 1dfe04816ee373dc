"""Measures a clip of the embedded world frame by frame in five columns; nothing here is learned or steers a search.

A measure is 1 where nothing is wrong (Aesthetic has a scale of its own), falls evenly as its defect grows and gets nowhere near 0
for what a generator usually does. It is kept per frame, so that a clip, a span or one chunk can be scored from the same reading. A
frame without an object scores 0 in all columns but Background. See ``docs/quality.md``.

Legend: T frames, S shapes, R radii, W frames of a window; pixels on a torus of 96 x 96, masks of ``CROP`` pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from runtime.bench.quality.row import MEASURED, SPAN
from runtime.bench.sprites.checker import lab
from runtime.bench.sprites.tracking import (
    CROP,
    REACH,
    SIZES,
    Track,
    fit_shapes,
    templates,
    track,
    wrap,
)
from runtime.bench.sprites.world import (
    MOTIONS,
    SHAPES,
    SIZE,
    SPEEDS,
    Caption,
    shape_distance,
)

FIRST = 24  # frames with an object whose median says what the object and the paper were
# What halves a factor.
OUTLINE = 2.0  # pixels between two outlines, in the mean
TINT = 20.0  # CIE76 between two inks
PAPER = 0.06  # RMS of the paper in RGB
ASTRAY = 2.0  # pixels from where the captioned motion would be
EDGE = 3.0  # pixels of outline that a picture is off its ideal
CONTRAST = 50.0  # CIE76 between ink and paper that are told apart well
NO_SHAPE = 0.5  # overlap with the likest shape at which nobody would name one
WINDOW = 24  # frames over which physics is fitted
LOST = 8.0  # pixels along one axis beyond which a place is no nearer than any other
PLACES = torch.arange(0, SIZE, 0.25)  # where an object may have begun
SLACK = torch.arange(-1.5, 1.6, 0.75)  # pixels a wall may be away from the measured radius


@dataclass(frozen=True, slots=True)
class Measured:
    """What ``measure`` found: a value in [0, 1] for each of T frames in each of the five columns."""

    values: Mapping[str, Tensor]  # column -> [T] float64

    def __len__(self) -> int:
        return len(self.values[MEASURED[0]])

    def scores(self, first: int = 0, last: int | None = None) -> dict[str, float]:
        """Means over frames ``first`` to ``last`` (left out, as in a slice). ValueError where there is none."""
        if not len(range(len(self))[first:last]):
            raise ValueError(f"frames: want some among {len(self)}, got {first}:{last}")
        return {name: column[first:last].mean().item() for name, column in self.values.items()}

    def over_time(self) -> dict[str, tuple[float, ...]]:
        """Means over ``spans``."""
        return {
            name: tuple(column[span].mean().item() for span in spans(len(self)))
            for name, column in self.values.items()
        }


def spans(frames: int) -> list[slice]:
    """``frames`` in consecutive spans of ``SPAN``; a rest of less than half a span belongs to the one before."""
    starts = list(range(0, max(frames - SPAN // 2, 0) + 1, SPAN))
    return [slice(*ends) for ends in zip(starts, [*starts[1:], frames], strict=True)]


def measure(frames: Tensor, caption: Caption, found: Track | None = None) -> Measured:
    """Frames [T, 3, 96, 96], uint8 or in [0, 1] -> their values. ``found``: what ``track`` says of the same frames.

    Subject     like the object it was at first, and like the frame before: outline and colour
    Background  everything around the object like the paper it was at first, in tone and evenness
    Motion      near the path of the captioned motion: direction, speed and walls, fitted window by window
    Imaging     like a sharp re-render of itself: edges, grain, ghosts
    Aesthetic   legible: ink and paper far apart, the outline that of a shape

    Raises ValueError for another shape.
    """
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    frames = frames.detach().float().cpu()
    found = track(frames) if found is None else found
    overlaps, radii = fit_shapes(found.masks)  # [T, S] each
    columns = (
        _subject(found),
        _background(frames, found),
        _motion(found, overlaps, radii, caption),
        _imaging(frames, found, overlaps, radii),
        _aesthetic(found, overlaps),
    )
    seen = found.present.double()
    whole = (column.double() for column in columns)
    return Measured(
        {
            name: column if name == "Background" else column * seen
            for name, column in zip(MEASURED, whole, strict=True)
        }
    )


def _first(found: Track) -> Tensor:
    """Indices of the first frames with an object; of all frames where there is none."""
    seen = found.present.nonzero()[:FIRST, 0]
    return seen if len(seen) else torch.arange(len(found.present))


def _outline(masks: Tensor) -> Tensor:
    """Length in pixels of the outlines of masks [..., CROP, CROP] -> [...]: their total variation."""
    across = masks[..., :-1, 1:] - masks[..., :-1, :-1]
    down = masks[..., 1:, :-1] - masks[..., :-1, :-1]
    return (across.square() + down.square()).sqrt().sum((-1, -2)).clamp(min=40)


def _subject(found: Track) -> Tensor:
    """Mean of the likeness to the first frames, which drift lowers, and to the frame before, which flicker lowers."""
    first = _first(found)
    masks, inks = found.masks, lab(found.ink)
    mask, ink = masks[first].median(0).values[None], inks[first].median(0).values
    length = _outline(mask)
    kept = _likeness(masks - mask, inks - ink, length)
    steady = torch.ones_like(kept)
    steady[1:] = _likeness(masks.diff(dim=0), inks.diff(dim=0), length) * found.present[:-1]
    steady[0] = steady[min(1, len(steady) - 1)]
    return (kept + steady) / 2


def _likeness(masks: Tensor, inks: Tensor, length: Tensor) -> Tensor:
    """[T] of differences of masks [T, CROP, CROP] and of inks [T, 3] in L*a*b*.

    Masks are compared after a mean over 5 x 5 pixels: an outline that moved counts, one that only softened hardly.
    """
    moved = torch.nn.functional.avg_pool2d(masks[:, None], 5, stride=1, padding=2)[:, 0]
    away = moved.abs().sum((1, 2)) / length  # pixels
    return _half(away, OUTLINE) * _half(inks.norm(dim=1), TINT)


def _half(flaw: Tensor, at: float) -> Tensor:
    """1 without a flaw, 1/2 at ``at``, never quite 0: steepest where siblings differ, and still telling bad from worse."""
    return at / (at + flaw)


def _background(frames: Tensor, found: Track) -> Tensor:
    paper = found.paper[_first(found)].median(0).values
    near = wrap(torch.arange(SIZE) + 0.5 - found.centroid[..., None]).abs() <= REACH  # [T, 2, SIZE]
    around = ~(near[:, 0, None, :] & near[:, 1, :, None] & found.present[:, None, None])
    flaws = (frames - paper[:, None, None]).square().mean(1) * around  # [T, SIZE, SIZE]
    return _half((flaws.sum((1, 2)) / around.sum((1, 2))).sqrt(), PAPER)


def _motion(found: Track, overlaps: Tensor, radii: Tensor, caption: Caption) -> Tensor:
    present = found.present
    if not present.any():
        return torch.zeros(len(present))
    kind = int(overlaps[present].mean(0).argmax())
    size = int(radii[present, kind].median())
    centres = (found.centroid - templates().offsets[kind, size]) % SIZE
    away = torch.zeros(len(present))
    windows = torch.zeros(len(present))
    for begin in range(0, max(len(present) - WINDOW // 2, 1), WINDOW // 2):
        part = slice(begin, begin + WINDOW)
        away[part] += _astray(centres[part], present[part], caption, float(SIZES[size]))
        windows[part] += 1
    return _half(away / windows, ASTRAY)


def _astray(centres: Tensor, present: Tensor, caption: Caption, radius: float) -> Tensor:
    """Pixels between centres [W, 2] and the nearest path that the captioned motion can take -> [W]."""
    time = torch.arange(len(centres))
    squares = torch.zeros(len(centres))
    for axis, direction in enumerate(MOTIONS[caption.motion]):
        rate = SPEEDS[caption.speed] * direction
        if direction and caption.motion.startswith("bouncing"):
            paths = _bounces(rate * time, radius)
        else:
            paths = PLACES[:, None] + rate * time  # [P, W]
        misses = wrap(centres[:, axis] - paths).abs().clamp(max=LOST)
        squares += misses[misses[:, present].sum(1).argmin()].square()
    return squares.sqrt()


def _bounces(gone: Tensor, radius: float) -> Tensor:
    """Every way to go and turn between two walls: distance gone [W] -> places [P, W]."""
    low = (radius + SLACK).clamp(max=SIZE / 2 - 1)[:, None, None]
    span = SIZE - 2 * low
    ramp = (2 * span * PLACES[:, None] / SIZE + gone) % (2 * span)
    return (low + span - (ramp - span).abs()).flatten(0, 1)


@lru_cache(maxsize=1)
def _ideals() -> tuple[Tensor, Tensor]:
    """Of every template [S, R]: its area in pixels, and the length of its outline."""
    masks = templates().masks
    return masks.sum((-1, -2)), _outline(masks)


def _imaging(frames: Tensor, found: Track, overlaps: Tensor, radii: Tensor) -> Tensor:
    kind = overlaps.argmax(1, keepdim=True)
    size = radii.gather(1, kind)[:, 0]
    kind = kind[:, 0]
    areas, lengths = (table[kind, size] for table in _ideals())
    # Templates come in steps of half a pixel; the area says where between two of them the object is.
    growth = (found.masks.sum((1, 2)) / areas).sqrt()
    radius = SIZES[size] + ((growth - 1) * SIZES[size]).clamp(-0.25, 0.25)
    centre = found.centroid - templates().offsets[kind, size]
    at = (centre.floor().long()[..., None] + torch.arange(CROP) - CROP // 2) % SIZE  # [T, 2, CROP]
    away = wrap(at + 0.5 - centre[..., None])
    alpha = torch.empty(len(frames), 1, CROP, CROP)
    for number, shape in enumerate(SHAPES):
        if (rows := kind == number).any():
            scale = radius[rows, None, None]
            x, y = away[rows, 0, None, :] / scale, away[rows, 1, :, None] / scale
            distance = shape_distance(shape, *torch.broadcast_tensors(x, y), 1.0) * scale
            alpha[rows, 0] = (0.5 - distance).clamp(0, 1)
    every = torch.arange(len(frames))[:, None, None]
    shown = frames.movedim(1, -1)[every, at[:, 1, :, None], at[:, 0, None, :]].movedim(-1, 1)
    ideal = torch.lerp(found.paper[..., None, None], found.ink[..., None, None], alpha)
    wrong = (shown - ideal).square().sum(1).sqrt().sum((1, 2))
    return _half(wrong / (found.contrast.clamp(min=1e-3) * lengths), EDGE)


def _aesthetic(found: Track, overlaps: Tensor) -> Tensor:
    apart = (lab(found.ink) - lab(found.paper)).norm(dim=1)
    clear = ((overlaps.amax(1) - NO_SHAPE) / (1 - NO_SHAPE)).clamp(0, 1)
    return (1 - torch.exp(-apart / CONTRAST)) * clear
