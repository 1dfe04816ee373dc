"""Reads a path of centres: which motions of the world it can be, how fast it is, how far it strays from physics.

Legend: T frames, pixels and frames as units, x to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.bench.sprites.tracking import wrap
from runtime.bench.sprites.world import SIZE

WALL_SLACK = 6.0  # pixels a bounce may be away from its wall
LEAP = 7.0  # pixels beyond the usual step that a single step may have
SHARE = 0.75  # of the frames, that must move for an axis to count as moving
STILL = 0.2  # of the frames, that may move while an axis counts as still
MIN_RUN = 3  # frames a direction must hold to count
PACES = {"slowly": (0.45, 1.6), "quickly": (1.6, 4.0)}  # pixels a frame: from, below
WINDOW = 24  # frames over which physics is fitted


@dataclass(frozen=True, slots=True)
class MotionReading:
    """What a path can be."""

    kinds: tuple[str, ...]  # every motion that the path does not contradict, likeliest first
    speed: str | None
    pace: float  # median pixels a frame
    residual: float  # RMS distance in pixels from the physics fitted over a second and a half


def unwrap(places: Tensor, present: Tensor) -> Tensor:
    """Places [T, 2] on the torus -> a continuous path [T, 2]; frames without an object are filled in linearly.

    Needs at least one present frame.
    """
    seen = present.nonzero()[:, 0]
    points, gaps = places[seen].double(), seen.diff().double()
    steps = wrap(points.diff(dim=0))
    single = steps[gaps == 1]
    usual = single.median(0).values if len(single) else torch.zeros(2, dtype=torch.float64)
    expected = usual * (gaps[:, None] - 1)
    steps = expected + wrap(points.diff(dim=0) - expected)
    known = torch.cat((points[:1], points[0] + steps.cumsum(0)))  # [len(seen), 2]
    time = torch.arange(len(places))
    after = torch.searchsorted(seen, time).clamp(max=len(seen) - 1)
    before = (torch.searchsorted(seen, time, right=True) - 1).clamp(min=0)
    width = (seen[after] - seen[before]).clamp(min=1)
    share = ((time - seen[before]).double() / width)[:, None].clamp(0, 1)
    return torch.lerp(known[before], known[after], share)


def _steady(path: Tensor) -> Tensor:
    """Median over five frames: single slips vanish, lasting leaps stay. [T, 2] -> [T, 2]."""
    padded = torch.cat((path[:1].expand(2, 2), path, path[-1:].expand(2, 2)))
    return padded.unfold(0, 5, 1).median(2).values


def _reversals(velocity: Tensor, threshold: float) -> tuple[float, list[int], int]:
    """Of one axis: share of frames that move, frames at which the direction changes, first direction (0 if none)."""
    signs = torch.where(
        velocity.abs() > threshold, velocity.sign(), torch.zeros_like(velocity)
    ).int()
    share = (signs != 0).double().mean().item()
    runs: list[list[int]] = []  # direction, first frame, last frame, frames
    for frame, sign in enumerate(signs.tolist()):
        if sign == 0:
            continue
        if runs and runs[-1][0] == sign:
            runs[-1][2:] = [frame, runs[-1][3] + 1]
        else:
            runs.append([sign, frame, frame, 1])
    merged: list[list[int]] = []
    for run in (r for r in runs if r[3] >= MIN_RUN):
        if merged and merged[-1][0] == run[0]:
            merged[-1][2] = run[2]
        else:
            merged.append(run)
    turns = [(a[2] + b[1]) // 2 for a, b in zip(merged, merged[1:], strict=False)]
    return share, turns, merged[0][0] if merged else 0


def _obeys_walls(line: Tensor, turns: list[int], radius: float) -> bool:
    """True if a coordinate [T] stays between the walls and turns only at them."""
    low, high = radius, SIZE - radius
    if line.min() < low - WALL_SLACK or line.max() > high + WALL_SLACK:
        return False
    for turn in turns:
        near = line[max(turn - 2, 0) : turn + 3]
        if min((near - low).abs().min(), (near - high).abs().min()) > WALL_SLACK:
            return False
    return True


def read_motion(path: Tensor, present: Tensor, radius: float) -> MotionReading:
    """path [T, 2] of the object's centre (continuous), present [T], radius in pixels. T below 5 says nothing."""
    if len(path) < 5:
        return MotionReading((), None, 0.0, 0.0)
    steady = _steady(path)
    velocity = (steady[4:] - steady[:-4]) / 4
    pace = velocity.norm(dim=1).median().item()
    speed = next((word for word, (low, high) in PACES.items() if low <= pace < high), None)
    residual = _residual(path, present, velocity, radius)
    leap = steady.diff(dim=0).norm(dim=1).max().item() > pace + LEAP
    if speed is None or leap:
        return MotionReading((), speed, pace, residual)
    axes = [_reversals(velocity[:, axis], 0.3 * pace) for axis in (0, 1)]
    moving = [share >= SHARE for share, _, _ in axes]
    still = [share <= STILL for share, _, _ in axes]
    turns = [[frame + 2 for frame in frames] for _, frames, _ in axes]
    walls = [_obeys_walls(steady[:, axis], turns[axis], radius) for axis in (0, 1)]
    kinds: tuple[str, ...] = ()
    for axis, name, ways in ((0, "sideways", ("left", "right")), (1, "vertically", ("up", "down"))):
        if moving[axis] and still[1 - axis]:
            one_way = () if turns[axis] else (f"moving {ways[axes[axis][2] > 0]}",)
            kinds = (*one_way, *((f"bouncing {name}",) if walls[axis] else ()))
    if all(moving) and all(walls):
        across, down = velocity.abs().median(0).values.tolist()
        kinds = ("bouncing diagonally",) if 0.75 < across / down < 2.4 else ()
    return MotionReading(kinds, speed, pace, residual)


def _residual(path: Tensor, present: Tensor, velocity: Tensor, radius: float) -> float:
    """RMS pixels between the present frames of ``path`` and the better of a line and a bounce, window by window."""
    squares = []
    pace = velocity.abs().median(0).values
    for first in range(0, max(len(path) - WINDOW // 2, 1), WINDOW // 2):
        part, seen = path[first : first + WINDOW], present[first : first + WINDOW]
        if seen.sum() < 4:
            continue
        time = torch.arange(len(part), dtype=torch.float64)
        miss = torch.zeros(len(part), dtype=torch.float64)
        for axis in (0, 1):
            line = part[:, axis]
            fits = torch.stack(
                (_line(time, line), _bounce(time, line, pace[axis], radius))
            )  # [2, n]
            errors = (fits - line).square().clamp(max=64)
            miss += errors[errors[:, seen].mean(1).argmin()]
        squares.append(miss[seen].mean())
    return torch.stack(squares).mean().sqrt().item() if squares else SIZE / 2


def _line(time: Tensor, line: Tensor) -> Tensor:
    """The straight line through the median of all slopes between points half a window apart: [n] -> [n]."""
    half = max(len(time) // 2, 1)
    slope = ((line[half:] - line[:-half]) / half).median()
    return slope * time + (line - slope * time).median()


def _bounce(time: Tensor, line: Tensor, pace: Tensor, radius: float) -> Tensor:
    """The triangle wave between the walls that is nearest in the mean: [n] -> [n]."""
    best, fitted = None, line.median().expand_as(line)
    for slack in (-1.5, 0.0, 1.5):
        low, span = radius + slack, SIZE - 2 * (radius + slack)
        rates = pace * torch.linspace(0.88, 1.12, 13, dtype=torch.float64)  # [V]
        phases = torch.arange(0, 2 * span, 1.0, dtype=torch.float64)  # [P]
        ramp = (phases[:, None, None] + rates[:, None] * time) % (2 * span)  # [P, V, n]
        waves = (low + span - (ramp - span).abs()).flatten(0, 1)
        errors = (waves - line).abs().mean(1)
        if best is None or errors.min() < best:
            best, fitted = errors.min(), waves[errors.argmin()]
    return fitted
