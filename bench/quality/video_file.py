"""Write one finished video for other people's tools to read: a plain MP4 with its index in front, whole or not there at all.

``runtime.video`` writes files that play while they grow. Scorers seek and count frames before they read them, which a file
of fragments answers differently from reader to reader; so these are written once more, in one piece.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from runtime.kernels import frame_pack
from runtime.output import reason

FRAMES_AT_ONCE = 48  # that are float at a time: 230 MB at 832x480


def write_video(path: Path, frames: Tensor, fps: int) -> None:
    """Encode frames [T, 3, H, W] uint8 as they are, but for a last row or column that an odd side gets twice.

    RuntimeError where the disk or the encoder fails; ``path`` is then what it was before.
    """
    part = path.parent.parent / f".{path.parent.name}.{os.getpid()}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _encode(part, frames, fps)
        part.replace(path)
    except OSError as error:
        raise RuntimeError(f"cannot write {path}: {reason(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def _encode(path: Path, frames: Tensor, fps: int) -> None:
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    from runtime.video import ENCODERS, encoder

    codec = encoder()
    height, width = (side + side % 2 for side in frames.shape[2:])
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=fps, options=ENCODERS[codec])
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = Fraction(1, fps)
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        number = 0
        for some in frames.split(FRAMES_AT_ONCE):
            for plane in _planes(some, height, width):
                frame = av.VideoFrame.from_ndarray(plane.numpy(), format="yuv420p")
                frame.pts, number = number, number + 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _planes(frames: Tensor, height: int, width: int) -> Tensor:
    """frames [T, 3, H, W] uint8 -> [T, 3 height / 2, width] uint8 I420 on the host."""
    some = frames.float() / 255
    odd = (0, width - frames.shape[3], 0, height - frames.shape[2])
    if any(odd):
        some = functional.pad(some, odd, mode="replicate")
    return frame_pack.yuv420(some.contiguous()).view(len(frames), height * 3 // 2, width).cpu()
