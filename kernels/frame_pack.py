"""Pack frames in [0, 1] into the bytes a video encoder takes: interleaved RGB or planar YUV 4:2:0.

    q(x)   = floor(x + 1/2)                          half up
    rgb24  = q(255 x)                                x clamped to [0, 1], NaN -> 0
    Y      = q(16 + 219 L(r, g, b))                  L = (0.2126 r + 0.7152 g) + 0.0722 b
    Cb, Cr = q(128 + 224 (B - L) / 1.8556), q(128 + 224 (R - L) / 1.5748)
             R, G, B mean of a 2x2 block: ((top left + top right) + (bottom left + bottom right)) / 4

That is BT.709 in limited range: Y in [16, 235], Cb and Cr in [16, 240].

Shapes   frames  [T, 3, H, W] float32, bfloat16 or float16, contiguous.
         rgb24   [T, H, W, 3] uint8.
         yuv420  [T, H * W * 3 / 2] uint8: plane Y [H, W], then Cb and Cr, [H / 2, W / 2] each (I420).
                 H and W even.
Math     float32, every operation rounded by itself in the order written: the implementations agree
         bit for bit. uint8 input enters as x / 255.
Source   ITU-R BT.709-6, sections 3 and 4 (coefficients, quantisation for 8 bits).
Raises   ValueError for a wrong shape, dtype or layout, an odd size for YUV, or impl="native" off the
         CPU; RuntimeError for impl="native" when the extension is not built.
"""

import torch
from torch import Tensor

from runtime.kernels.dispatch import implementation
from runtime.kernels.native import extension

__all__ = [
    "implementation",
    "rgb24",
    "rgb24_reference",
    "rgb24_to_yuv420",
    "rgb24_to_yuv420_reference",
    "yuv420",
    "yuv420_reference",
]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def rgb24_reference(frames: Tensor) -> Tensor:
    """frames [T, 3, H, W] -> [T, H, W, 3] uint8, in plain torch."""
    return _quantise(_unit(frames) * 255.0).permute(0, 2, 3, 1).contiguous()


def yuv420_reference(frames: Tensor) -> Tensor:
    """frames [T, 3, H, W] -> [T, H * W * 3 / 2] uint8, in plain torch."""
    return _yuv420(_unit(frames))


def rgb24_to_yuv420_reference(rgb: Tensor) -> Tensor:
    """rgb [T, H, W, 3] uint8 -> [T, H * W * 3 / 2] uint8, in plain torch."""
    return _yuv420(rgb.permute(0, 3, 1, 2).float() / 255.0)


def _unit(frames: Tensor) -> Tensor:
    return frames.float().nan_to_num(nan=0.0).clamp(0.0, 1.0)


def _quantise(x: Tensor) -> Tensor:
    return (x + 0.5).to(torch.int32).to(torch.uint8)


def _luma(r: Tensor, g: Tensor, b: Tensor) -> Tensor:
    return (r * 0.2126 + g * 0.7152) + b * 0.0722


def _yuv420(unit: Tensor) -> Tensor:
    luma = _luma(*unit.unbind(1))  # [T, H, W]
    pairs = unit[..., 0::2] + unit[..., 1::2]
    means = (pairs[..., 0::2, :] + pairs[..., 1::2, :]) * 0.25
    r, g, b = means.unbind(1)  # each [T, H / 2, W / 2]
    grey = _luma(r, g, b)
    planes = [
        luma * 219.0 + 16.0,
        (b - grey) * (224 / 1.8556) + 128.0,
        (r - grey) * (224 / 1.5748) + 128.0,
    ]
    return torch.cat([_quantise(plane).flatten(1) for plane in planes], 1)


def rgb24(frames: Tensor, impl: str = "auto") -> Tensor:
    """frames [T, 3, H, W] in [0, 1] -> [T, H, W, 3] uint8, same device."""
    T, H, W = _check_frames(frames)
    if implementation(impl, frames.device) == "torch":
        return rgb24_reference(frames)
    out = torch.empty(T, H, W, 3, dtype=torch.uint8)
    if out.numel():
        _run("rgb24", out, frames, _DTYPES[frames.dtype], (T, H, W))
    return out


def yuv420(frames: Tensor, impl: str = "auto") -> Tensor:
    """frames [T, 3, H, W] in [0, 1] -> [T, H * W * 3 / 2] uint8, same device."""
    T, H, W = _check_frames(frames)
    _check_even(H, W)
    if implementation(impl, frames.device) == "torch":
        return yuv420_reference(frames)
    return _native_yuv420(frames, _DTYPES[frames.dtype], (T, H, W))


def rgb24_to_yuv420(rgb: Tensor, impl: str = "auto") -> Tensor:
    """rgb [T, H, W, 3] uint8 -> [T, H * W * 3 / 2] uint8, same device."""
    if rgb.dim() != 4 or rgb.shape[3] != 3:
        raise ValueError(f"rgb: want shape [T, H, W, 3], got {list(rgb.shape)}")
    if rgb.dtype != torch.uint8:
        raise ValueError(
            f"rgb: want dtype torch.uint8, got {rgb.dtype}; frames in [0, 1] go to yuv420"
        )
    _check_contiguous("rgb", rgb)
    T, H, W, _ = rgb.shape
    _check_even(H, W)
    if implementation(impl, rgb.device) == "torch":
        return rgb24_to_yuv420_reference(rgb)
    return _native_yuv420(rgb, "uint8", (T, H, W))


def _native_yuv420(pixels: Tensor, dtype: str, sizes: tuple[int, int, int]) -> Tensor:
    T, H, W = sizes
    out = torch.empty(T, H * W * 3 // 2, dtype=torch.uint8)
    if out.numel():
        _run("yuv420", out, pixels, dtype, sizes)
    return out


def _run(op: str, out: Tensor, pixels: Tensor, dtype: str, sizes: tuple[int, int, int]) -> None:
    call = getattr(extension(), op)
    call(out.data_ptr(), pixels.data_ptr(), dtype, sizes, torch.get_num_threads())


def _check_frames(frames: Tensor) -> tuple[int, int, int]:
    if frames.dim() != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames: want shape [T, 3, H, W], got {list(frames.shape)}")
    if frames.dtype not in _DTYPES:
        raise ValueError(f"frames: want dtype {', '.join(_DTYPES.values())}, got {frames.dtype}")
    _check_contiguous("frames", frames)
    T, _, H, W = frames.shape
    return T, H, W


def _check_contiguous(name: str, pixels: Tensor) -> None:
    if not pixels.is_contiguous():
        raise ValueError(f"{name}: want a contiguous tensor, got strides {list(pixels.stride())}")


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise ValueError(f"yuv420: want even height and width, got {height}x{width}; pad by one")
