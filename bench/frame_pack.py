"""Times ``frame_pack``: a chunk of frames to RGB and to YUV 4:2:0, on the embedded model's frames and at 832x480.

    python -m runtime.bench.frame_pack                        # tests first, then the table
    python -m runtime.bench.frame_pack --plot frame_pack.png

The baseline of RGB is what one would write in torch, without care for NaN; of YUV it is the reference, since torch has no
shorter way. Frames are the decoder's, in [-1, 1]. The error is in bytes, against the formula in float64: a sum that lies
on a half may fall to either side, for every implementation alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from runtime.bench.op import Case, implementations, main
from runtime.bench.tune import Tunable
from runtime.kernels import frame_pack, frame_pack_triton

FRAMES = {"embedded": (12, 3, 96, 96), "full": (12, 3, 480, 832)}
DTYPES = (torch.float32, torch.bfloat16)


def cases(device: torch.device, size: str) -> Iterator[Case]:
    for dtype in DTYPES:
        frames = (torch.rand(FRAMES[size], device=device) * 2 - 1).to(dtype)
        for op in ("rgb24", "yuv420"):
            yield case(op, frames)


def case(op: str, frames: Tensor) -> Case:
    call = partial(getattr(frame_pack, op), frames, lowest=-1.0)
    runs = {impl: partial(call, impl=impl) for impl in implementations(frames.device)}
    if op == "rgb24":
        runs = {"eager": partial(eager_rgb24, frames), **runs}
    exact = getattr(frame_pack, f"{op}_reference")(frames.double(), -1.0).int()
    errors = {impl: float((run().int() - exact).abs().max()) for impl, run in runs.items()}
    T, _, H, W = frames.shape
    moved = frames.nbytes + exact.numel()
    return Case(f"frame_pack {op}", f"T={T} {W}x{H}", frames.dtype, runs, errors, moved)


def tunables(device: torch.device) -> Iterator[Tunable]:
    """Both ops at both sizes; a byte off is already wrong."""
    for shape in FRAMES.values():
        frames = (torch.rand(shape, device=device) * 2 - 1).bfloat16()
        for op in ("rgb24", "yuv420"):
            exact = getattr(frame_pack, f"{op}_reference")(frames, -1.0)
            call = partial(getattr(frame_pack, op), frames, lowest=-1.0, impl="triton")
            yield Tunable(
                {"op": op, "pixels": frames.numel() // 3},
                frame_pack_triton.SPACE,
                lambda config, call=call: call(config=config),
                lambda got, exact=exact: float((got.int() - exact.int()).abs().max()),
                allowed_error=0,
            )


def eager_rgb24(frames: Tensor) -> Tensor:
    """The usual lines."""
    scaled = (frames.float() * 0.5 + 0.5).clamp(0, 1) * 255 + 0.5
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


if __name__ == "__main__":
    sys.exit(main("frame_pack", cases, "Frames to the bytes a video encoder takes."))
