"""Says what a clip of the embedded world shows and whether that is what its caption asks for. Nothing here is learned.

A word counts only if it holds for ``HOLD`` of all frames; a clip that changes its mind, or whose object is gone for a
substantial part, is ``unclear`` in that attribute, and unclear is wrong. The first frames may be bad: the rest outvotes them.

Legend: T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.bench.sprites.motion_fit import MotionReading, read_motion, unwrap
from runtime.bench.sprites.tracking import SIZES, Track, fit_shapes, overlap, templates, track
from runtime.bench.sprites.world import BACKGROUNDS, COLOURS, SHAPES, SIZE, Caption

UNCLEAR = "unclear"
HOLD = 0.8  # share of all frames in which a word must hold
MIN_OVERLAP = 0.75  # below this a mask is no shape at all; ideal shapes reach 0.99
TIE = 0.01  # a mask that fits two shapes equally well counts for the one that was asked for
JUDGED = ("shape", "colour", "motion", "background")  # what ``all_right`` asks for


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was asked, what was seen, and how steady it was.

    seen                    the words that hold; ``UNCLEAR`` where none does
    subject_consistency     overlap of the object with its own median outline, times exp(-dE / 20) for its colour
    background_consistency  exp(-RMS / 0.06) of everything around the object against the clip's one paper colour
    smoothness              exp(-d / 2), d the RMS distance in pixels of the path from physics fitted over 24 frames
    presence                share of frames in which an object is found
    imaging                 exp(-e), e the RMS error against a sharp re-render, relative to the object's contrast

    The five measures are means over the frames with an object, in [0, 1]; 1 is best. They do not look at the caption.
    """

    caption: Caption
    seen: Caption
    subject_consistency: float
    background_consistency: float
    smoothness: float
    presence: float
    imaging: float

    def right(self, attribute: str) -> bool:
        """True if ``attribute`` (shape, colour, motion, speed, background) is what the caption asks for."""
        return getattr(self.seen, attribute) == getattr(self.caption, attribute)

    @property
    def all_right(self) -> bool:
        """True if shape, colour, motion and background are right; speed is reported by itself."""
        return all(self.right(attribute) for attribute in JUDGED)


def lab(rgb: Tensor) -> Tensor:
    """CIE L*a*b* (D65) of sRGB colours [..., 3] in [0, 1] -> [..., 3]."""
    rgb = rgb.clamp(0, 1).double()
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    white = torch.tensor([0.95047, 1.0, 1.08883])
    xyz = linear @ torch.tensor(matrix, dtype=torch.float64).T / white
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), -1)


def nearest_colour(rgb: Tensor, table: dict[str, tuple[float, float, float]]) -> Tensor:
    """Index into ``table`` of the nearest colour in L*a*b* of each of rgb [T, 3] -> [T]."""
    return torch.cdist(lab(rgb), lab(torch.tensor(list(table.values())))).argmin(1)


def vote(indices: Tensor, valid: Tensor, words: Sequence[str]) -> str:
    """The word that holds in at least ``HOLD`` of all T frames, else ``UNCLEAR``. Frames that are not valid hold nothing."""
    counts = torch.bincount(indices[valid], minlength=len(words))
    best = int(counts.argmax())
    return words[best] if counts[best] >= HOLD * len(valid) else UNCLEAR


def check_clip(frames: Tensor, caption: Caption) -> Verdict:
    """Judge frames [T, 3, 96, 96] in [0, 1] against ``caption`` over their whole length. Raises ValueError for a bad shape.

    Where a short clip leaves several motions open, or an outline two shapes, the caption gets the benefit of the doubt.
    """
    return check_track(track(frames), caption)


def check_track(found: Track, caption: Caption) -> Verdict:
    """``check_clip`` of frames that have been measured already."""
    present = found.present
    overlaps, radius_ids = fit_shapes(found.masks)  # [T, S] each
    best = overlaps.max(1)
    asked = list(SHAPES).index(caption.shape)
    tied = overlaps[:, asked] >= best.values - TIE
    shapes = torch.where(tied, torch.full_like(best.indices, asked), best.indices)
    seen = {
        "shape": vote(shapes, present & (best.values >= MIN_OVERLAP), list(SHAPES)),
        "colour": vote(nearest_colour(found.ink, COLOURS), present, list(COLOURS)),
        "background": vote(
            nearest_colour(found.paper, BACKGROUNDS), torch.ones_like(present), list(BACKGROUNDS)
        ),
    }
    presence = present.double().mean().item()
    if presence < 0.25:
        nothing = Caption(motion=UNCLEAR, speed=UNCLEAR, **seen)
        return Verdict(caption, nothing, 0.0, _background(found), 0.0, presence, 0.0)
    kind = int(overlaps[present].mean(0).argmax())
    sizes = radius_ids[:, kind]  # [T]
    reading = _motion(found, kind, int(sizes[present].median()))
    steady = presence >= HOLD
    kinds = reading.kinds or (UNCLEAR,)
    motion = caption.motion if caption.motion in kinds else kinds[0]
    return Verdict(
        caption=caption,
        seen=Caption(
            motion=motion if steady else UNCLEAR,
            speed=reading.speed if steady and reading.speed else UNCLEAR,
            **seen,
        ),
        subject_consistency=_subject(found),
        background_consistency=_background(found),
        smoothness=math.exp(-reading.residual / 2),
        presence=presence,
        imaging=_imaging(found, kind, sizes),
    )


def _motion(found: Track, kind: int, size: int) -> MotionReading:
    """Read the path of the object's centre, given its shape and radius as template indices."""
    path = unwrap(found.centroid, found.present) - templates().offsets[kind, size].double()
    path = path - (path[0] - path[0] % SIZE)
    return read_motion(path, found.present, float(SIZES[size]))


def _subject(found: Track) -> float:
    masks, ink = found.masks[found.present], lab(found.ink[found.present])
    shape = overlap(masks, masks.median(0).values[None])[:, 0]
    colour = torch.exp(-(ink - ink.median(0).values).norm(dim=1) / 20)
    return (shape * colour).mean().item()


def _background(found: Track) -> float:
    return torch.exp(-found.outside / 0.06).mean().item()


def _imaging(found: Track, kind: int, sizes: Tensor) -> float:
    ideal = templates().masks[kind][sizes][:, None]  # [T, 1, CROP, CROP]
    paper, ink = found.paper[..., None, None], found.ink[..., None, None]
    squares = (found.crops - (paper + ideal * (ink - paper))).square().sum((1, 2, 3))
    error = (squares / (ideal.sum((1, 2, 3)) * found.contrast.square()).clamp(min=1e-6)).sqrt()
    return torch.exp(-error[found.present]).mean().item()
