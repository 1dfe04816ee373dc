"""The Triton kernels of ``frame_pack``: bytes are made in registers and leave as words of four.

Memory traffic is the op's own: every pixel is read once and every byte written once, so both kernels are bound by
bandwidth. They are compiled without fused multiply-add, which would round differently from the formula.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from runtime.kernels.build import Build, pointer
from runtime.kernels.dispatch import NARROW
from runtime.kernels.triton_lang import jit, tl, triton
from runtime.kernels.tuning import Config, shipped

SPACE: list[Config] = [
    {"BLOCK": block, "num_warps": warps}
    for block in (512, 1024, 2048, 4096)
    for warps in (2, 4, 8)
    if block // warps in (128, 256, 512)  # pixels of a warp: one to four 16-byte loads of a thread
]
COLUMNS = 64  # of a YUV tile; 832 and 96 pixels leave little of a tile unused


@jit
def _unit(pointers, mask, gain, bias):
    x = tl.load(pointers, mask=mask, other=0.0).to(tl.float32) * gain + bias
    x = tl.where(x > 0.0, x, 0.0)  # NaN is not above 0
    return tl.where(x < 1.0, x, 1.0)


@jit
def _byte(x):
    return (x + 0.5).to(tl.int32)


@jit
def _luma(r, g, b):
    return (r * 0.2126 + g * 0.7152) + b * 0.0722


@jit
def _quarters(x, BLOCK: tl.constexpr):
    """Values 0, 4, 8 ... of ``x`` [BLOCK], then 1, 5, 9 ..., and so on: four vectors."""
    even, odd = tl.split(tl.reshape(x, [BLOCK // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@jit
def _rgb24_kernel(out, frames, gain, bias, plane, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < plane
    red = frames + 3 * frame * plane + pixel
    green = red + plane
    r = _byte(_unit(red, mask, gain, bias) * 255.0)
    g = _byte(_unit(green, mask, gain, bias) * 255.0)
    b = _byte(_unit(green + plane, mask, gain, bias) * 255.0)
    to = out + 3 * frame * plane
    if WORDS:  # four pixels are three words; the plane is a multiple of four
        r0, r1, r2, r3 = _quarters(r, BLOCK)
        g0, g1, g2, g3 = _quarters(g, BLOCK)
        b0, b1, b2, b3 = _quarters(b, BLOCK)
        quad = tl.program_id(0) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        whole = quad < plane // 4
        word = to.to(tl.pointer_type(tl.int32)) + 3 * quad
        tl.store(word, r0 | (g0 << 8) | (b0 << 16) | (r1 << 24), mask=whole)
        tl.store(word + 1, g1 | (b1 << 8) | (r2 << 16) | (g2 << 24), mask=whole)
        tl.store(word + 2, b2 | (r3 << 8) | (g3 << 16) | (b3 << 24), mask=whole)
    else:
        byte = to + 3 * pixel.to(tl.int64)
        tl.store(byte, r.to(tl.uint8), mask=mask)
        tl.store(byte + 1, g.to(tl.uint8), mask=mask)
        tl.store(byte + 2, b.to(tl.uint8), mask=mask)


@jit
def _pairs(x, ROWS: tl.constexpr, HALF: tl.constexpr):
    """The sum of every two neighbours in the rows of ``x`` [ROWS, 2 * HALF]."""
    left, right = tl.split(tl.reshape(x, [ROWS, HALF, 2]))
    return left + right


@jit
def _yuv420_kernel(out, frames, gain, bias, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    HALF: tl.constexpr = COLUMNS // 2
    frame, plane = tl.program_id(2).to(tl.int64), H.to(tl.int64) * W
    pair = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]  # of rows
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (pair < H // 2) & (x < W)
    upper = pair.to(tl.int64) * 2 * W + x  # [ROWS, COLUMNS]
    red = frames + 3 * frame * plane + upper
    green = red + plane
    blue = green + plane
    r0, r1 = _unit(red, mask, gain, bias), _unit(red + W, mask, gain, bias)
    g0, g1 = _unit(green, mask, gain, bias), _unit(green + W, mask, gain, bias)
    b0, b1 = _unit(blue, mask, gain, bias), _unit(blue + W, mask, gain, bias)
    to = out + frame * (plane + plane // 2)
    tl.store(to + upper, _byte(_luma(r0, g0, b0) * 219.0 + 16.0).to(tl.uint8), mask=mask)
    tl.store(to + upper + W, _byte(_luma(r1, g1, b1) * 219.0 + 16.0).to(tl.uint8), mask=mask)

    r = (_pairs(r0, ROWS, HALF) + _pairs(r1, ROWS, HALF)) * 0.25
    g = (_pairs(g0, ROWS, HALF) + _pairs(g1, ROWS, HALF)) * 0.25
    b = (_pairs(b0, ROWS, HALF) + _pairs(b1, ROWS, HALF)) * 0.25
    grey = _luma(r, g, b)
    half = tl.program_id(0) * HALF + tl.arange(0, HALF)[None, :]
    chroma = to + plane + pair.to(tl.int64) * (W // 2) + half
    there = (pair < H // 2) & (half < W // 2)
    cb = _byte((b - grey) * (224 / 1.8556) + 128.0)
    cr = _byte((r - grey) * (224 / 1.5748) + 128.0)
    tl.store(chroma, cb.to(tl.uint8), mask=there)
    tl.store(chroma + plane // 4, cr.to(tl.uint8), mask=there)


def rgb24(out: Tensor, frames: Tensor, gain: float, bias: float, config: Config) -> None:
    """Launch on checked tensors: frames [T, 3, H, W] -> out [T, H, W, 3]."""
    T, _, H, W = frames.shape
    block = config["BLOCK"]
    _rgb24_kernel[(triton.cdiv(H * W, block), T)](
        out, frames, gain, bias, H * W, WORDS=H * W % 4 == 0, BLOCK=block, **_options(config)
    )


def yuv420(out: Tensor, frames: Tensor, gain: float, bias: float, config: Config) -> None:
    """Launch on checked tensors: frames [T, 3, H, W] -> out [T, H * W * 3 / 2]."""
    T, _, H, W = frames.shape
    rows = config["BLOCK"] // COLUMNS
    grid = (triton.cdiv(W, COLUMNS), triton.cdiv(H // 2, rows), T)
    sizes = {"ROWS": rows, "COLUMNS": COLUMNS}
    _yuv420_kernel[grid](out, frames, gain, bias, H, W, **sizes, **_options(config))


def _options(config: Config) -> dict[str, int | bool]:
    return {"num_warps": config["num_warps"], "enable_fp_fusion": False}


def builds() -> Iterator[Build]:
    """Every form that a launch with a shipped configuration could ask for."""
    floats = {"gain": "fp32", "bias": "fp32"}
    aligned = frozenset({"out", "frames"})
    for dtype in sorted(NARROW, key=str):
        name = str(dtype).removeprefix("torch.")
        pointers = {"out": pointer(torch.uint8), "frames": pointer(dtype)}
        for config in shipped("frame_pack"):
            block, warps = config["BLOCK"], config["num_warps"]
            for words in (True, False):
                yield Build(
                    f"frame_pack rgb24 {name} {'words' if words else 'bytes'} BLOCK={block}",
                    _rgb24_kernel,
                    {**pointers, **floats, "plane": "i32"},
                    {"WORDS": words, "BLOCK": block},
                    num_warps=warps,
                    aligned=aligned | {"plane"} if words else aligned,
                    fused=False,
                )
            yield Build(
                f"frame_pack yuv420 {name} BLOCK={block}",
                _yuv420_kernel,
                {**pointers, **floats, "H": "i32", "W": "i32"},
                {"ROWS": block // COLUMNS, "COLUMNS": COLUMNS},
                num_warps=warps,
                aligned=aligned | {"H", "W"},
                fused=False,
            )
