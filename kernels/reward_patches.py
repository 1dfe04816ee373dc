"""Make what a Qwen2-VL reward model reads from frames: quantised, resized, normalised, cut into patches.

    byte   = q(255 u(x))                             as a video file holds it: kernels/frame_pack.py; bytes enter as they are
    pixel  = antialiased bicubic of the bytes        rows, rounded to bytes, then columns: kernels/bicubic.py
    value  = pixel scale + shift                     scale = 1 / (255 std), shift = -mean / std, so (pixel / 255 - mean) / std
    patch  = 14 x 14 pixels of two frames            an image is its own second frame; a video's odd last frame is repeated

Patches follow each other in the order of time, merged row, merged column, row in it, column in it, where 2 x 2 patches are
merged. One patch is colour, time (2), row (14), column (14).

Shapes   frames  [T, 3, H, W] float32, bfloat16, float16 or uint8. A frame is dense; T may have any stride.
         result  [G * height / 14 * width / 14, 1176] in the format's dtype, G = T for images, ceil(T / 2) for a video.
                 height and width are multiples of 28; ``fit_size`` chooses them as the models do.
Math     Integers up to ``pixel``; scale and shift are float32, product and sum rounded one by one, then one rounding to
         the dtype. The implementations agree bit for bit. In float64 the reference keeps (pixel / 255 - mean) / std.
Source   Wang et al., "Qwen2-VL", 2024: sizes and order of patches; Radford et al., "CLIP", 2021: mean and std.
Raises   ValueError for a wrong shape, dtype, layout, size or ``lowest``, or an impl on a device it does not run on;
         RuntimeError for one that is not built or whose launch fails.
"""

import functools
import math
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.kernels import bicubic, check, reward_patches_triton, tuning
from runtime.kernels.bicubic import Taps
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.frame_pack import DTYPE_NAMES, quantise_reference, range_from
from runtime.kernels.native import extension
from runtime.kernels.reward_patches_triton import SPACE, builds
from runtime.kernels.tuning import Config

__all__ = ["SPACE", "PatchFormat", "builds", "fit_size", "reward_patches", "reward_patches_reference"]  # fmt: skip

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PATCH = 14
FACTOR = 2 * PATCH  # of 2 x 2 merged patches
KNOWN = NARROW | {torch.uint8}
OFFERS = {"native": KNOWN, "triton": KNOWN, "cuda": KNOWN}


@dataclass(frozen=True, slots=True)
class PatchFormat:
    """What a model wants its frames to become."""

    height: int  # pixels after resizing, a multiple of 28
    width: int
    video: bool = False  # two frames to a patch; else each frame is an image
    dtype: torch.dtype = torch.bfloat16
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if min(self.height, self.width) < FACTOR or self.height % FACTOR or self.width % FACTOR:
            raise ValueError(
                f"patches: want a height and width that are multiples of {FACTOR}, got {self.height}x{self.width}; "
                "fit_size chooses them"
            )

    def patches(self, frames: int) -> int:
        """How many patches ``frames`` frames make."""
        groups = -(-frames // 2) if self.video else frames
        return groups * (self.height // PATCH) * (self.width // PATCH)


def fit_size(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width nearest to the given that are multiples of 28 and whose product lies between the bounds."""
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"fit_size: want sides of at least 1 and at most 1:200, got {height}x{width}"
        )
    tall, wide = round(height / FACTOR), round(width / FACTOR)
    if tall * wide * FACTOR**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall, wide = (max(1, math.floor(side / shrink / FACTOR)) for side in (height, width))
    elif tall * wide * FACTOR**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall, wide = (math.ceil(side * grow / FACTOR) for side in (height, width))
    return tall * FACTOR, wide * FACTOR


def reward_patches_reference(frames: Tensor, form: PatchFormat, lowest: float = 0.0) -> Tensor:
    """frames [T, 3, H, W] -> [patches, 1176], in plain torch; ``form.dtype`` may be float64."""
    pixels = frames if frames.dtype == torch.uint8 else quantise_reference(frames, lowest)
    pixels = bicubic.resize_reference(pixels, form.height, form.width)
    if form.dtype == torch.float64:
        mean, std = (
            pixels.new_tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (form.mean, form.std)
        )
        values = (pixels.double() / 255 - mean) / std
    else:
        colours = zip(pixels.unbind(1), *_scale_shift(form), strict=True)
        values = torch.stack([colour.float() * a + b for colour, a, b in colours], 1).to(form.dtype)
    if not form.video:
        pairs = values[:, None].expand(-1, 2, -1, -1, -1)
    else:
        pairs = torch.cat([values, values[-1:]][: 1 + len(values) % 2]).unflatten(0, (-1, 2))
    rows, columns = form.height // FACTOR, form.width // FACTOR
    blocks = pairs.reshape(-1, 2, 3, rows, 2, PATCH, columns, 2, PATCH)
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * 2 * PATCH * PATCH)


@functools.cache
def _scale_shift(form: PatchFormat) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of the three colours, each rounded to float32."""
    scale = tuple(_single(1 / (255 * std)) for std in form.std)
    shift = tuple(_single(-mean / std) for mean, std in zip(form.mean, form.std, strict=True))
    return scale, shift


def _single(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def reward_patches(
    frames: Tensor,
    form: PatchFormat,
    lowest: float = 0.0,
    impl: str = "auto",
    *,
    config: Config | None = None,
) -> Tensor:
    """frames [T, 3, H, W] in [``lowest``, 1], or bytes, -> [patches, 1176] of ``form``, same device."""
    check.shape("frames", frames, ("T", 3, "H", "W"))
    check.dtype("frames", frames, KNOWN)
    check.dense_rows("frames", frames, 3)
    unit = range_from(lowest)
    impl = implementation(impl, frames.device, frames.dtype, OFFERS)
    T, _, H, W = frames.shape
    if T * H * W == 0:
        raise ValueError(f"frames: want at least one pixel, got {list(frames.shape)}")
    if impl == "torch":
        return reward_patches_reference(frames, form, lowest)
    if form.dtype not in NARROW:
        raise ValueError(
            f"patches: want dtype float32, bfloat16 or float16 from impl={impl!r}, got {form.dtype}"
        )
    axes = bicubic.taps(H, form.height, frames.device), bicubic.taps(W, form.width, frames.device)
    out = torch.empty(form.patches(T), 6 * PATCH * PATCH, dtype=form.dtype, device=frames.device)
    if impl == "triton":
        config = config or tuning.nearest("reward_patches", {}, tuning.gpu_name())
        both = sum(_scale_shift(form), ())
        reward_patches_triton.run(out, frames, axes, both, unit, form.video, config)
    elif impl == "cuda":
        job = native_job(out, frames, axes, form, lowest)
        with torch.cuda.device(frames.device):
            stream = torch.cuda.current_stream(frames.device).cuda_stream
            extension("cuda").reward_patches_cuda(*job, stream)
    else:
        job = native_job(out, frames, axes, form, lowest)
        extension().reward_patches(*job, torch.get_num_threads())
    return out


def native_job(
    out: Tensor, frames: Tensor, axes: tuple[Taps, Taps], form: PatchFormat, lowest: float
) -> tuple[object, ...]:
    """The first arguments of the C++ and CUDA functions: addresses and numbers."""
    described = [
        (axis.starts.data_ptr(), axis.weights.data_ptr(), axis.host_starts.data_ptr(), axis.count, axis.size, axis.resized)
        for axis in axes
    ]  # fmt: skip
    return (
        out.data_ptr(), DTYPE_NAMES[form.dtype], frames.data_ptr(), DTYPE_NAMES[frames.dtype], frames.stride(0),
        len(frames), form.video, lowest, *described, *_scale_shift(form),
    )  # fmt: skip
