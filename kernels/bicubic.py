"""Weights of an antialiased bicubic resize of 8-bit pixels along one axis, in fixed point, as Pillow rounds them.

    scale     = in / out,   stretch = max(scale, 1),   reach = 2 stretch
    centre(o) = (o + 1/2) scale
    taps(o)   = the pixels x with floor(centre - reach + 1/2) <= x < floor(centre + reach + 1/2), inside the image
    w(o, x)   = f((x - centre + 1/2) / stretch), divided by the sum over taps(o)
    f(t)      = 3/2 |t|^3 - 5/2 t^2 + 1 for |t| < 1,  -1/2 (|t|^3 - 5 t^2 + 8 |t| - 4) for |t| < 2,  else 0
    weight    = w 2^22, rounded half away from zero
    pixel(o)  = min(max(floor((2^21 + sum of weight * pixel(x)) / 2^22), 0), 255)

An image is resized along its rows first and rounded to bytes, then along its columns, as Pillow does up to version 12
always, and from 13 on unless the height shrinks much more than the width.

Math     Weights in float64, every operation in the order above; the sums fit 32 bits, so no result depends on order.
Source   Pillow, Image.resize with Resampling.BICUBIC on 8-bit images; R. Keys, "Cubic convolution interpolation", 1981.
Raises   ValueError for sizes below one.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = 22  # of the weights' fraction
HALF = 1 << (BITS - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """What every pixel of one axis of a resized image is made of: ``count`` neighbours from ``starts`` on.

    All reads lie inside the image: windows that end early or begin late are moved, and their first or last weights are 0.
    """

    size: int  # before
    resized: int
    count: int
    starts: Tensor  # [resized] int32, never falling
    weights: Tensor  # [count, resized] int32
    host_starts: Tensor  # a copy of starts on the CPU


@functools.cache
def taps(size: int, resized: int, device: torch.device) -> Taps:
    """The taps from ``size`` to ``resized`` pixels, on ``device``. Kept for good: a captured graph holds their addresses."""
    if min(size, resized) < 1:
        raise ValueError(f"bicubic: want sizes of at least 1, got {size} to {resized}")
    first, weights = _windows(size, resized)
    used = weights.ne(0)
    reach = torch.arange(len(weights))[:, None]
    begin = torch.where(used, reach, len(weights)).amin(0)
    count = int((torch.where(used, reach, -1).amax(0) - begin).max()) + 1
    starts = (first + begin).clamp(max=size - count)
    index = reach[:count] + starts - first  # [count, resized], where a tap's weight was
    inside = (index >= 0) & (index < len(weights))
    moved = torch.where(inside, weights.gather(0, index.clamp(0, len(weights) - 1)), 0)
    table = torch.cat([starts[None], moved]).to(torch.int32)  # [1 + count, resized]
    host = table[0]
    if device.type == "cuda":
        table = table.pin_memory().to(device, non_blocking=True)
    return Taps(size, resized, count, table[0], table[1:], host)


def _windows(size: int, resized: int) -> tuple[Tensor, Tensor]:
    """First pixel [resized] and weights [longest window, resized] of every output pixel, int64."""
    scale = size / resized
    stretch = max(scale, 1.0)
    centre = (torch.arange(resized, dtype=torch.float64) + 0.5) * scale
    first = (centre - 2.0 * stretch + 0.5).clamp(min=0).to(torch.int64)
    last = (centre + 2.0 * stretch + 0.5).to(torch.int64).clamp(max=size)
    real = torch.zeros(math.ceil(2.0 * stretch) * 2 + 1, resized, dtype=torch.float64)
    total = torch.zeros(resized, dtype=torch.float64)
    for tap, row in enumerate(real):
        row[:] = _keys((tap + first - centre + 0.5) * (1.0 / stretch))
        row.masked_fill_(tap >= last - first, 0.0)
        total += row
    scaled = real / total * (1 << BITS)
    return first, torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).to(torch.int64)


def _keys(t: Tensor) -> Tensor:
    """Keys' cubic with a = -1/2, as a polynomial in the order that Pillow evaluates it."""
    t = t.abs()
    near = ((1.5 * t - 2.5) * t) * t + 1.0
    far = (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5
    return torch.where(t < 1.0, near, torch.where(t < 2.0, far, 0.0))


def resize_reference(pixels: Tensor, height: int, width: int) -> Tensor:
    """pixels [..., H, W] uint8 -> [..., height, width] uint8, in plain torch."""
    return _resize(_resize(pixels, -1, width), -2, height)


def _resize(pixels: Tensor, dim: int, resized: int) -> Tensor:
    axis = taps(pixels.shape[dim], resized, pixels.device)
    wide, starts = pixels.to(torch.int32), axis.starts.long()
    total = wide.new_full((), HALF)
    for tap in range(axis.count):
        weights = axis.weights[tap].view(-1, *[1] * (-1 - dim))
        total = total + weights * wide.index_select(dim, starts + tap)
    return (total >> BITS).clamp(0, 255).to(torch.uint8)
