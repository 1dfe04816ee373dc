"""Times ``reward_patches``: a chunk of frames to what the image reward and the video reward read.

    python -m runtime.bench.reward_patches                    # tests first, then the table
    python -m runtime.bench.reward_patches --plot reward_patches.png

The baseline is what one would write in torch: quantise, ``interpolate`` with antialiasing, normalise, permute. On a GPU it
resizes in float32 and rounds, since torch resizes bytes on the CPU only. Its error is that of another resize, up to a few
bytes; ``torch`` is this repository's reference, whose pixels are Pillow's. Errors are of normalised values (one byte is
about 0.014), against the reference in float64. Copying is no ceiling here: at 1.4 to 1 a pixel takes some twelve products.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from runtime.bench.op import Case, implementations, main
from runtime.bench.tune import Tunable
from runtime.kernels.reward_patches import (
    CLIP_MEAN,
    CLIP_STD,
    PATCH,
    PatchFormat,
    fit_size,
    reward_patches,
    reward_patches_reference,
)
from runtime.kernels.reward_patches_triton import SPACE

FRAMES = {"embedded": (12, 3, 96, 96), "full": (12, 3, 480, 832)}
MOST_PIXELS = 200_704  # of a frame, for both published reward models
DTYPES = (torch.float32, torch.bfloat16)


def cases(device: torch.device, size: str) -> Iterator[Case]:
    T, _, H, W = FRAMES[size]
    height, width = fit_size(H, W, 28 * 28, MOST_PIXELS)
    for dtype in DTYPES:
        frames = (torch.rand(FRAMES[size], device=device) * 2 - 1).to(dtype)
        for video in (False, True):
            yield case(frames, PatchFormat(height, width, video=video, dtype=torch.bfloat16))


def case(frames: Tensor, form: PatchFormat) -> Case:
    call = partial(reward_patches, frames, form, -1.0)
    runs = {impl: partial(call, impl=impl) for impl in implementations(frames.device)}
    runs = {"eager": partial(eager, frames, form), **runs}
    exact = reward_patches_reference(frames, dataclasses.replace(form, dtype=torch.float64), -1.0)
    errors = {impl: float((run().double() - exact).abs().max()) for impl, run in runs.items()}
    T, _, H, W = frames.shape
    moved = frames.nbytes + exact.numel() * form.dtype.itemsize
    shape = f"T={T} {W}x{H} to {form.width}x{form.height} {'video' if form.video else 'images'}"
    return Case("reward_patches", shape, frames.dtype, runs, errors, moved)


def tunables(device: torch.device) -> Iterator[Tunable]:
    """One shape for all: full-size frames for a video reward."""
    T, _, H, W = FRAMES["full"]
    frames = (torch.rand(T, 3, H, W, device=device) * 2 - 1).bfloat16()
    form = PatchFormat(*fit_size(H, W, 28 * 28, MOST_PIXELS), video=True, dtype=torch.bfloat16)
    exact = reward_patches_reference(frames, form, -1.0)
    yield Tunable(
        {},
        SPACE,
        lambda config: reward_patches(frames, form, -1.0, "triton", config=config),
        lambda got: float((got.float() - exact.float()).abs().max()),
        allowed_error=0,
    )


def eager(frames: Tensor, form: PatchFormat) -> Tensor:
    """The usual lines."""
    pixels = ((frames.float() * 0.5 + 0.5).clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    size = (form.height, form.width)
    resize = partial(functional.interpolate, size=size, mode="bicubic", antialias=True)
    resized = resize(pixels) if not frames.is_cuda else resize(pixels.float()).round().clamp(0, 255)
    mean, std = (frames.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))  # fmt: skip
    values = ((resized.float() / 255 - mean) / std).to(form.dtype)
    pairs = values.unflatten(0, (-1, 2)) if form.video else torch.stack([values, values], 1)
    rows, columns = form.height // (2 * PATCH), form.width // (2 * PATCH)
    blocks = pairs.reshape(-1, 2, 3, rows, 2, PATCH, columns, 2, PATCH)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 6 * PATCH * PATCH)


if __name__ == "__main__":
    sys.exit(main("reward_patches", cases, "Frames to the patches that the reward models read."))
