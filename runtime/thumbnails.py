"""Small pictures of candidates for traces and pages. Neither torch nor a video library is needed to import this.

Legend: B candidates, T frames of a chunk, H x W pixels.
"""

from __future__ import annotations

import base64
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

THUMBNAIL_PIXELS = 96  # width of a candidate's picture, at most


def small(frames: Tensor) -> Tensor:
    """The last frame of each of the clips [B, T, 3, H, W] at a thumbnail's size: [B, 1, 3, h, w] fp32.

    Smaller frames stay as they are, so it may be done early and again.
    """
    from torch.nn import functional

    last = frames[:, -1].float()  # [B, 3, H, W]
    _, _, H, W = last.shape
    if W > THUMBNAIL_PIXELS:
        size = (max(1, round(H * THUMBNAIL_PIXELS / W)), THUMBNAIL_PIXELS)
        last = functional.interpolate(last.nan_to_num(nan=0.0), size, mode="area")
    return last[:, None]


def thumbnails(frames: Tensor) -> list[str]:
    """The last frame of each of the clips [B, T, 3, H, W] as a base64 JPEG of at most THUMBNAIL_PIXELS in width."""
    import av

    from runtime.kernels import frame_pack

    last = small(frames)
    pictures = []
    for picture in frame_pack.rgb24(last[:, 0].contiguous()).cpu().numpy():
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        codec = av.CodecContext.create("mjpeg", "w")
        codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuvj420p"
        codec.time_base, codec.qmin, codec.qmax = Fraction(1, 25), 3, 3
        packets = [*codec.encode(frame.reformat(format="yuvj420p")), *codec.encode(None)]
        pictures.append(base64.b64encode(b"".join(map(bytes, packets))).decode())
    return pictures
