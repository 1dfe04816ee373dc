"""Pack frames into the bytes a video encoder takes: interleaved RGB or planar YUV 4:2:0.

    u(x)   = min(max(x, 0), 1)                       for frames in [0, 1]: lowest=0, the engine's
    u(x)   = min(max(x / 2 + 1/2, 0), 1)             for frames in [-1, 1]: lowest=-1, the decoder's
    q(x)   = floor(x + 1/2)                          half up
    rgb24  = q(255 u(x))                             NaN -> 0
    Y      = q(219 L(r, g, b) + 16)                  L = (0.2126 r + 0.7152 g) + 0.0722 b
    Cb, Cr = q(224 / 1.8556 (B - L) + 128), q(224 / 1.5748 (R - L) + 128)
             R, G, B mean of a 2x2 block: ((top left + top right) + (bottom left + bottom right)) / 4

That is BT.709 in limited range: Y in [16, 235], Cb and Cr in [16, 240].

Shapes   frames  [T, 3, H, W] float32, bfloat16 or float16, contiguous, H * W below 2^31.
         rgb24   [T, H, W, 3] uint8.
         yuv420  [T, H * W * 3 / 2] uint8: plane Y [H, W], then Cb and Cr, [H / 2, W / 2] each (I420).
                 H and W even.
Math     float32, every operation rounded by itself in the order written: the implementations agree
         bit for bit. uint8 input enters as x / 255.
Source   ITU-R BT.709-6, sections 3 and 4 (coefficients, quantisation for 8 bits).
Raises   ValueError for a wrong shape, dtype, layout or ``lowest``, an odd size for YUV, or an impl on a
         device it does not run on; RuntimeError for one that is not built or whose launch fails.
"""

import torch
from torch import Tensor

from runtime.kernels import check, frame_pack_triton, tuning
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.frame_pack_triton import SPACE, builds
from runtime.kernels.native import extension
from runtime.kernels.tuning import Config

__all__ = [
    "SPACE",
    "builds",
    "implementation",
    "quantise_reference",
    "range_from",
    "rgb24",
    "rgb24_reference",
    "rgb24_to_yuv420",
    "rgb24_to_yuv420_reference",
    "yuv420",
    "yuv420_reference",
]

OFFERS = {"native": NARROW, "triton": NARROW, "cuda": NARROW}
BYTES = {"native": frozenset({torch.uint8})}  # what rgb24_to_yuv420 offers
DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.uint8: "uint8",
}


def rgb24_reference(frames: Tensor, lowest: float = 0.0) -> Tensor:
    """frames [T, 3, H, W] -> [T, H, W, 3] uint8, in plain torch."""
    return quantise_reference(frames, lowest).permute(0, 2, 3, 1).contiguous()


def yuv420_reference(frames: Tensor, lowest: float = 0.0) -> Tensor:
    """frames [T, 3, H, W] -> [T, H * W * 3 / 2] uint8, in plain torch."""
    return _yuv420(_unit(frames, lowest))


def rgb24_to_yuv420_reference(rgb: Tensor) -> Tensor:
    """rgb [T, H, W, 3] uint8 -> [T, H * W * 3 / 2] uint8, in plain torch."""
    return _yuv420(rgb.permute(0, 3, 1, 2).float() / 255.0)


def quantise_reference(frames: Tensor, lowest: float = 0.0) -> Tensor:
    """q(255 u(x)) of frames of any shape, uint8."""
    return _round(_unit(frames, lowest) * 255.0)


def range_from(lowest: float) -> tuple[float, float]:
    """(gain, bias) with u(x) = x gain + bias before clamping. Both products are exact, so neither is ever fused."""
    if lowest not in (0.0, -1.0):
        raise ValueError(f"lowest: want 0.0 (frames in [0, 1]) or -1.0 (in [-1, 1]), got {lowest}")
    return (1.0, 0.0) if lowest == 0.0 else (0.5, 0.5)


def _unit(frames: Tensor, lowest: float) -> Tensor:
    gain, bias = range_from(lowest)
    wide = frames.to(torch.promote_types(frames.dtype, torch.float32))
    return (wide * gain + bias).nan_to_num(nan=0.0).clamp(0.0, 1.0)


def _round(x: Tensor) -> Tensor:
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
    return torch.cat([_round(plane).flatten(1) for plane in planes], 1)


def rgb24(
    frames: Tensor, impl: str = "auto", *, lowest: float = 0.0, config: Config | None = None
) -> Tensor:
    """frames [T, 3, H, W] in [``lowest``, 1] -> [T, H, W, 3] uint8, same device."""
    T, H, W = _check_frames(frames)
    impl = implementation(impl, frames.device, frames.dtype, OFFERS)
    if impl == "torch":
        return rgb24_reference(frames, lowest)
    out = torch.empty(T, H, W, 3, dtype=torch.uint8, device=frames.device)
    _launch("rgb24", impl, out, frames, lowest, config)
    return out


def yuv420(
    frames: Tensor, impl: str = "auto", *, lowest: float = 0.0, config: Config | None = None
) -> Tensor:
    """frames [T, 3, H, W] in [``lowest``, 1] -> [T, H * W * 3 / 2] uint8, same device."""
    T, H, W = _check_frames(frames)
    _check_even(H, W)
    impl = implementation(impl, frames.device, frames.dtype, OFFERS)
    if impl == "torch":
        return yuv420_reference(frames, lowest)
    out = torch.empty(T, H * W * 3 // 2, dtype=torch.uint8, device=frames.device)
    _launch("yuv420", impl, out, frames, lowest, config)
    return out


def rgb24_to_yuv420(rgb: Tensor, impl: str = "auto") -> Tensor:
    """rgb [T, H, W, 3] uint8 -> [T, H * W * 3 / 2] uint8, same device."""
    check.shape("rgb", rgb, ("T", "H", "W", 3))
    if rgb.dtype != torch.uint8:
        raise ValueError(
            f"rgb: want dtype torch.uint8, got {rgb.dtype}; frames in [0, 1] go to yuv420"
        )
    check.contiguous("rgb", rgb)
    T, H, W, _ = rgb.shape
    _check_even(H, W)
    if implementation(impl, rgb.device, rgb.dtype, BYTES) == "torch":
        return rgb24_to_yuv420_reference(rgb)
    out = torch.empty(T, H * W * 3 // 2, dtype=torch.uint8)
    if out.numel():
        _native("yuv420", out, rgb, (T, H, W), 0.0)
    return out


def _launch(
    op: str, impl: str, out: Tensor, frames: Tensor, lowest: float, config: Config | None
) -> None:
    """Run ``op`` on checked tensors."""
    gain, bias = range_from(lowest)
    if not out.numel():
        return
    T, _, H, W = frames.shape
    if impl == "native":
        _native(op, out, frames, (T, H, W), lowest)
    elif impl == "cuda":
        call = getattr(extension("cuda"), f"{op}_cuda")
        stream = torch.cuda.current_stream(frames.device).cuda_stream
        dtype = DTYPE_NAMES[frames.dtype]
        with torch.cuda.device(frames.device):
            call(out.data_ptr(), frames.data_ptr(), dtype, (T, H, W), lowest, stream)
    else:
        config = config or tuning.nearest(
            "frame_pack", {"op": op, "pixels": T * H * W}, tuning.gpu_name()
        )
        getattr(frame_pack_triton, op)(out, frames, gain, bias, config)


def _native(
    op: str, out: Tensor, pixels: Tensor, sizes: tuple[int, int, int], lowest: float
) -> None:
    call, dtype = getattr(extension(), op), DTYPE_NAMES[pixels.dtype]
    call(out.data_ptr(), pixels.data_ptr(), dtype, sizes, lowest, torch.get_num_threads())


def _check_frames(frames: Tensor) -> tuple[int, int, int]:
    check.shape("frames", frames, ("T", 3, "H", "W"))
    check.dtype("frames", frames, NARROW)
    check.contiguous("frames", frames)
    T, _, H, W = frames.shape
    if H * W >= 1 << 31:
        raise ValueError(f"frames: want fewer than 2^31 pixels a frame, got {H}x{W}")
    return T, H, W


def _check_even(height: int, width: int) -> None:
    if height % 2 or width % 2:
        raise ValueError(f"yuv420: want even height and width, got {height}x{width}; pad by one")
