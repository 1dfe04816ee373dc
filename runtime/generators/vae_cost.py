"""What decoding a chunk costs, from sizes alone: multiplications, bytes of state, the most memory at any moment.

Counted for a later chunk of a video, prepared (``WanVAE.prepare_``), as the layers of ``vae_layers`` hold their tensors.
Legend: n frames at a stage, a positions of a frame that a stage holds, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from runtime.generators.vae import VAEConfig

PAST = 2  # frames that a causal convolution of three remembers


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the decoder: what comes in, what goes out, and by how much frames and picture grow within."""

    kind: str  # "stem", "attention", "block", "grow" or "head"
    channels: int
    out_channels: int
    time: int = 1
    space: int = 1


def stages(config: VAEConfig) -> Iterator[Stage]:
    """The decoder's steps in order."""
    widths = config.decoder_widths
    channels = widths[0]
    yield Stage("stem", config.latent_channels, channels)
    yield Stage("block", channels, channels)
    if config.mid_attention:
        yield Stage("attention", channels, channels)
    yield Stage("block", channels, channels)
    steps = list(zip(config.space_downsample, config.time_downsample, strict=True))[::-1]
    for level, width in enumerate(widths[1:]):
        for _ in range(config.res_blocks + 1):
            yield Stage("block", channels, width)
            channels = width
        if level < len(steps) and any(steps[level]):
            space, time = (2 if doubled else 1 for doubled in steps[level])
            channels = width // space
            yield Stage("grow", width, channels, time, space)
    yield Stage("head", channels, 3 * config.patch**2)


def decoder_flops(
    config: VAEConfig, rows: int, height: int, width: int, latents: int = 3, *, fold: bool = False
) -> int:
    """Multiplications and additions of ``latents`` more latent frames of height x width for ``rows`` videos.

    Two for each product of a convolution or of attention, edges counted as if padded; ``fold`` as in ``prepare_``.
    """
    frames, area = latents, height * width
    total = latents * area * config.latent_channels**2  # before the stem
    for stage in stages(config):
        c, out = stage.channels, stage.out_channels
        here = frames * area
        if stage.kind in ("stem", "head"):
            total += here * c * out * 27
        elif stage.kind == "attention":
            total += here * (4 * c * c + 2 * area * c)
        elif stage.kind == "block":
            total += here * ((c + out) * out * 27 + (c * out if c != out else 0))
        else:
            total += here * c * 2 * c * 3 if stage.time == 2 else 0
            frames, area = frames * stage.time, area * stage.space**2
            taps = 4 if fold else 9
            total += frames * area * c * out * taps if stage.space == 2 else 0
    return 2 * rows * total


def decoder_bytes(
    config: VAEConfig,
    rows: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    latents: int = 3,
    tile: int = 0,
) -> tuple[int, int]:
    """(state bytes of one video, most bytes of activations at once) for ``rows`` videos of latents height x width.

    The second counts what ``WanVAE.step`` allocates for ``latents`` more frames, the new state and the pixels among it, but
    neither its arguments nor what a library takes as workspace. ``tile`` as in ``decode_next``.
    """
    places = _places(config, latents)
    last = places[-1]
    picture = last.stage.out_channels * last.frames * height * width * last.scale**2
    state = sum(place.cached(height * width) for place in places)
    kept, standing, before, peak = 0, 0, height * width, 0
    for place in places:
        whole = height * width * place.scale**2
        if not tile or place.halo is None:
            area = whole
            kept += place.cached(height * width)
        else:
            area = place.reach(height, tile) * place.reach(width, tile)
            if (
                not standing
            ):  # the features that tiles are cut from, and the picture they are put into
                standing = place.stage.channels * place.frames * whole + picture
                kept, before = state, 0
        peak = max(peak, standing + kept + place.live(area, before))
        before = area * place.stage.space**2
    # At the end the pixels lie twice, as the head made them and in the order of a picture.
    peak = max(peak, 2 * picture + state)
    return state * dtype.itemsize, rows * peak * dtype.itemsize


def rows_at_once(config: VAEConfig, height: int, width: int, latents: int = 3) -> int:
    """The most videos whose largest tensor still has fewer than 2^31 elements, at least one.

    Beyond that, convolutions on a GPU need 64-bit indices, for which libraries have slow code or none.
    """
    return max(1, (2**31 - 1) // max(p.largest(height * width) for p in _places(config, latents)))


@dataclass(frozen=True, slots=True)
class _Place:
    """A stage where it stands in a decode."""

    stage: Stage
    frames: int  # that come in
    scale: int  # positions a side per latent position, of what comes in
    halo: (
        int | None
    )  # positions beyond a tile that its input needs; None where pictures are never cut

    def cached(self, area: int) -> int:
        """Elements remembered of one video whose latents have ``area`` positions."""
        c, out = self.stage.channels, self.stage.out_channels
        grown = c if self.stage.time == 2 else 0
        channels = {"block": c + out, "attention": 0, "grow": grown}.get(self.stage.kind, c)
        return channels * PAST * area * self.scale**2

    def largest(self, area: int) -> int:
        """Elements of the largest tensor inside, for one video whose latents have ``area`` positions."""
        n, c, out = self.frames, self.stage.channels, self.stage.out_channels
        grown = self.stage.time * max(c, out * self.stage.space**2) * n
        return area * self.scale**2 * max(c * (n + PAST), out * (n + PAST), grown)

    def reach(self, side: int, tile: int) -> int:
        """Positions of the longest tile with its halo, on an axis of ``side`` latent positions."""
        halo = self.halo or 0
        spans = (
            (max(0, low * self.scale - halo), min(side, low + tile) * self.scale + halo)
            for low in range(0, side, tile)
        )
        return max(min(side * self.scale, high) - low for low, high in spans)

    def live(self, area: int, before: int) -> int:
        """Most elements held at once inside, the input included, which holds ``before`` positions."""
        n, c, out = self.frames, self.stage.channels, self.stage.out_channels
        x = c * n * before
        extended = area * c * (n + PAST)
        if self.stage.kind == "stem":
            return 2 * x + extended + area * n * out
        if self.stage.kind == "attention":
            return x + 5 * area * n * c
        if self.stage.kind == "head":
            return x + extended + area * n * max(c, out)
        if self.stage.kind == "block":
            first = x + extended + area * n * max(c, out)
            return max(first, x + area * out * (3 * n + PAST))
        doubled = area * c * 2 * n if self.stage.time == 2 else 0
        growing = x + doubled + (max(extended, doubled) if doubled else 0)
        enlarged = area * self.stage.space**2 * out * n * self.stage.time
        return max(growing, x + doubled + (enlarged if self.stage.space == 2 else 0))


def _places(config: VAEConfig, latents: int) -> list[_Place]:
    steps = list(stages(config))
    enlarging = [step.space == 2 for step in steps]
    first = enlarging.index(True) if any(enlarging) else len(steps) - 1
    halos: list[int | None] = [1]
    for step in reversed(steps[first:-1]):
        after = halos[-1] or 0
        if step.kind == "block":
            halos.append(after + 2)
        else:
            halos.append((after + 2) // 2 if step.space == 2 else after)
    halos += [None] * first
    places, frames, scale = [], latents, 1
    for step, halo in zip(steps, reversed(halos), strict=True):
        places.append(_Place(step, frames, scale, halo))
        frames, scale = frames * step.time, scale * step.space
    return places
