"""The Triton kernels of ``reward_patches``: rows, then columns with everything after it.

Two kernels and bytes in between: at 832x480 to 588x336 a frame is 4.8 MB of float32 in, 0.8 MB of bytes written and read
again, and 2.4 MB of bfloat16 patches out, and the bytes of a chunk stay in the L2 cache. One kernel would narrow the rows
that two tiles share twice, and has no way to hold them on the chip: a Triton program cannot index what it computed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from runtime.kernels.bicubic import BITS, HALF, Taps
from runtime.kernels.build import Build, pointer
from runtime.kernels.dispatch import NARROW
from runtime.kernels.triton_lang import jit, tl, triton
from runtime.kernels.tuning import Config, shipped

SPACE: list[Config] = [
    {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
    for rows in (4, 8, 16)
    for columns in (64, 128, 256)
    for warps in (4, 8)
    if 2 <= rows * columns // (32 * warps) <= 16  # pixels of a thread
]


@jit
def _pixel(total, BITS: tl.constexpr):
    return tl.minimum(tl.maximum(total >> BITS, 0), 255).to(tl.uint8)


@jit
def _rows_kernel(
    out,  # [T, 3, H, width] uint8
    frames,
    starts,
    weights,
    frame_stride,
    gain,
    bias,
    H,
    W,
    width,
    taps,
    BITS: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    plane = tl.program_id(2)  # of all frames' colours
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = x < width
    mask = (y < H)[:, None] & there[None, :]
    start = tl.load(starts + x, mask=there, other=0)
    base = frames + (plane // 3).to(tl.int64) * frame_stride + (plane % 3).to(tl.int64) * H * W
    window = base + y.to(tl.int64)[:, None] * W + start[None, :]
    total = tl.full([ROWS, COLUMNS], HALF, tl.int32)
    for tap in range(taps):
        weight = tl.load(weights + tap * width + x, mask=there, other=0)
        pixel = tl.load(window + tap, mask=mask, other=0)
        if pixel.dtype != tl.uint8:
            unit = pixel.to(tl.float32) * gain + bias
            unit = tl.where(unit > 0.0, unit, 0.0)  # NaN is not above 0
            pixel = tl.where(unit < 1.0, unit, 1.0) * 255.0 + 0.5
        total += weight[None, :] * pixel.to(tl.int32)
    to = out + (plane.to(tl.int64) * H + y[:, None]) * width + x[None, :]
    tl.store(to, _pixel(total, BITS), mask=mask)


@jit
def _columns_kernel(
    out,
    narrow,  # [T, 3, H, width] uint8
    starts,
    weights,
    scale0,
    scale1,
    scale2,
    shift0,
    shift1,
    shift2,
    frames,
    H,
    height,
    width,
    taps,
    VIDEO: tl.constexpr,
    BITS: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    plane = tl.program_id(2)  # of all frames' colours; a video's odd last frame counts twice
    colour, frame = plane % 3, plane // 3
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = y < height
    mask = inside[:, None] & (x < width)[None, :]
    start = tl.load(starts + y, mask=inside, other=0)
    source = tl.minimum(frame, frames - 1).to(tl.int64) * 3 + colour
    window = narrow + (source * H + start[:, None]) * width + x[None, :]
    total = tl.full([ROWS, COLUMNS], HALF, tl.int32)
    for tap in range(taps):
        weight = tl.load(weights + tap * height + y, mask=inside, other=0)
        pixel = tl.load(window + tap * width, mask=mask, other=0)
        total += weight[:, None] * pixel.to(tl.int32)
    scale = tl.where(colour == 0, scale0, tl.where(colour == 1, scale1, scale2))
    shift = tl.where(colour == 0, shift0, tl.where(colour == 1, shift1, shift2))
    value = (_pixel(total, BITS).to(tl.float32) * scale + shift).to(out.dtype.element_ty)

    row, column = (y // 14)[:, None], (x // 14)[None, :]  # of patches
    merged = width // 28
    place = ((row // 2 * merged + column // 2) * 2 + row % 2) * 2 + column % 2
    group = frame // 2 if VIDEO else frame
    patch = group.to(tl.int64) * (height // 14) * (width // 14) + place
    to = out + (patch * 3 + colour) * 392 + (y % 14 * 14)[:, None] + (x % 14)[None, :]
    if VIDEO:
        tl.store(to + frame % 2 * 196, value, mask=mask)
    else:
        tl.store(to, value, mask=mask)
        tl.store(to + 196, value, mask=mask)


def run(
    out: Tensor,
    frames: Tensor,
    axes: tuple[Taps, Taps],
    scale_shift: tuple[float, ...],
    unit: tuple[float, float],
    video: bool,
    config: Config,
) -> None:
    """Launch on checked tensors; ``axes`` are those of rows and columns, ``unit`` is ``range_from``'s pair."""
    T, (rows, columns) = len(frames), axes
    H, W, height, width = rows.size, columns.size, rows.resized, columns.resized
    narrow = torch.empty(T, 3, H, width, dtype=torch.uint8, device=frames.device)
    tile = {"ROWS": config["ROWS"], "COLUMNS": config["COLUMNS"], "BITS": BITS, "HALF": HALF}
    options = {"num_warps": config["num_warps"], "enable_fp_fusion": False}
    across = triton.cdiv(width, config["COLUMNS"])
    grid = (across, triton.cdiv(H, config["ROWS"]), 3 * T)
    sizes = (H, W, width, columns.count)
    _rows_kernel[grid](
        narrow, frames, columns.starts, columns.weights, frames.stride(0), *unit, *sizes, **tile, **options
    )  # fmt: skip
    planes = 3 * (T + T % 2 if video else T)
    grid = (across, triton.cdiv(height, config["ROWS"]), planes)
    _columns_kernel[grid](
        out, narrow, rows.starts, rows.weights, *scale_shift, T, H, height, width, rows.count,
        VIDEO=video, **tile, **options,
    )  # fmt: skip


def builds() -> Iterator[Build]:
    """Every form that a launch with a shipped configuration could ask for, at sizes that are multiples of 16."""
    taps = {"starts": "*i32", "weights": "*i32", "taps": "i32"}
    numbers = ("scale0", "scale1", "scale2", "shift0", "shift1", "shift2")
    aligned = frozenset({"out", "starts", "H"})
    for config in shipped("reward_patches"):
        tile = {"ROWS": config["ROWS"], "COLUMNS": config["COLUMNS"], "BITS": BITS, "HALF": HALF}
        label = f"ROWS={config['ROWS']} COLUMNS={config['COLUMNS']}"
        for dtype in (*sorted(NARROW, key=str), torch.uint8):
            sizes = {"frame_stride": "i32", "H": "i32", "W": "i32", "width": "i32"}
            yield Build(
                f"reward_patches rows {str(dtype).removeprefix('torch.')} {label}",
                _rows_kernel,
                {"out": "*u8", "frames": pointer(dtype), **taps, "gain": "fp32", "bias": "fp32", **sizes},
                tile,
                num_warps=config["num_warps"],
                aligned=aligned | {"frames", "frame_stride", "W"},
                fused=False,
            )  # fmt: skip
        for dtype in sorted(NARROW, key=str):
            for video in (False, True):
                sizes = {"frames": "i32", "H": "i32", "height": "i32", "width": "i32"}
                yield Build(
                    f"reward_patches columns {str(dtype).removeprefix('torch.')} {video=} {label}",
                    _columns_kernel,
                    {"out": pointer(dtype), "narrow": "*u8", **taps, **dict.fromkeys(numbers, "fp32"), **sizes},
                    tile | {"VIDEO": video},
                    num_warps=config["num_warps"],
                    aligned=aligned | {"narrow"},
                    fused=False,
                )  # fmt: skip
