"""Writes settled chunks to an MP4 file that plays while it grows, and whatever stopped it.

Every chunk becomes one fragment (moof + mdat) that begins with a key frame and needs no other. It is encoded and
muxed in memory and appended in one piece; the file's head (ftyp + moov) comes with the first.

Legend: T frames of H x W pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from torch import Tensor
from torch.nn import functional

from runtime.kernels import frame_pack
from runtime.output import OutputFile

ENCODERS = {  # best first: encoder -> its options; one thread, so that equal frames make equal bytes
    "libx264": {"preset": "veryfast", "crf": "16", "bf": "0", "threads": "1"},
    "mpeg4": {"qmin": "2", "qmax": "4", "bf": "0", "threads": "1"},
}
MUXER = {
    "movflags": "frag_custom+empty_moov+default_base_moof+frag_discont+skip_trailer",
    "avoid_negative_ts": "disabled",  # a fragment keeps its place in the video
}
SMALL_PIXELS = 256  # a shorter side below this is enlarged ...
EASY_PIXELS = 384  # ... until it has at least so many


@dataclass(frozen=True, slots=True)
class Written:
    """How much of a video is safe on disk."""

    chunks: int = 0
    frames: int = 0


def easy_scale(height: int, width: int) -> int:
    """The integer enlargement at which a video of this size is easy to watch; 1 for all but small ones."""
    short = min(height, width)
    return 1 if short >= SMALL_PIXELS else -(-EASY_PIXELS // short)


def encoder() -> str:
    """The best encoder that this build of PyAV has."""
    for name in ENCODERS:
        if name in av.codecs_available:
            return name
    raise RuntimeError(f"PyAV has none of the encoders {', '.join(ENCODERS)}; run `pip install av`")


class VideoWriter:
    """Appends chunks to a fragmented MP4: H.264 (MPEG-4 part 2 without libx264), yuv420p, BT.709.

    Nothing is buffered between two calls. When ``add`` has returned the chunk is in the file, and the file plays.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: int,
        *,
        scale: int = 0,
        codec: str | None = None,
        name: str = "output",
        ops: str = "auto",
    ) -> None:
        """``scale`` repeats every pixel so many times in both directions; 0 means ``easy_scale`` of the first chunk.
        ``ops`` names the implementation that packs frames.

        Raises ValueError when the file cannot be written, before anything else is done; ``name`` says whose path it is.
        """
        if scale < 0:
            raise ValueError(f"scale: want at least 1, or 0 for an easy size, got {scale}")
        self.fps = fps
        self.codec = codec or encoder()
        self.written = Written()
        self.height = self.width = 0  # of the file's pixels, once there are any
        self._scale = scale
        self._ops = ops
        self._shape: tuple[int, int] | None = None
        self._file = OutputFile(path, name)

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def size_bytes(self) -> int:
        return self._file.size

    @property
    def seconds(self) -> float:
        return self.written.frames / self.fps

    def resume(self, written: Written, size: int) -> None:
        """Go on behind what an earlier writer put into the first ``size`` bytes; what follows them is cut off.

        Equal chunks make the same bytes as if it had never stopped. Raises as ``OutputFile.resume``.
        """
        self._file.resume(size)
        self.written = written

    def add(self, frames: Tensor) -> None:
        """Append one chunk, frames [T, 3, H, W] float in [0, 1] on any device.

        An odd side gets its last row or column twice, as 4:2:0 wants. Raises ValueError for a shape that does not fit,
        RuntimeError when the disk or the encoder fails; what was added before stays playable.
        """
        planes = self._planes(frames)
        fragment = self._encode(planes)
        if self.written.chunks:
            fragment = b"".join(box for kind, box in boxes(fragment) if kind in (b"moof", b"mdat"))
        self._file.append(fragment)
        self.written = Written(self.written.chunks + 1, self.written.frames + len(planes))

    def _planes(self, frames: Tensor) -> Tensor:
        """frames [T, 3, H, W] -> [T, 3 H' / 2, W'] uint8 I420 on the host, H' x W' the size of the file's pixels."""
        if frames.dim() != 4 or frames.shape[1] != 3 or not frames.numel():
            raise ValueError(
                f"frames: want shape [T, 3, H, W], none of them 0, got {list(frames.shape)}"
            )
        _, _, H, W = frames.shape
        if self._shape is None:
            self._scale = self._scale or easy_scale(H, W)
            self._shape = (H, W)
        if self._shape != (H, W):
            raise ValueError(
                f"frames: want {self._shape[0]}x{self._shape[1]} as before, got {H}x{W}"
            )
        if self._scale > 1:
            frames = functional.interpolate(
                frames.float(), scale_factor=self._scale, mode="nearest"
            )
        if frames.shape[2] % 2 or frames.shape[3] % 2:
            odd = (0, frames.shape[3] % 2, 0, frames.shape[2] % 2)
            frames = functional.pad(frames.float(), odd, mode="replicate")
        self.height, self.width = frames.shape[2], frames.shape[3]
        packed = frame_pack.yuv420(frames.float().contiguous(), self._ops)
        return packed.view(len(frames), self.height * 3 // 2, self.width).cpu()

    def _encode(self, planes: Tensor) -> bytes:
        """A whole MP4 of one fragment whose first frame has the number of frames before it as its time."""
        target = io.BytesIO()
        options = MUXER | {"fragment_index": str(self.written.chunks + 1)}
        try:
            with av.open(target, "w", format="mp4", options=options) as container:
                stream = container.add_stream(
                    self.codec, rate=self.fps, options=ENCODERS[self.codec]
                )
                assert isinstance(stream, av.VideoStream)
                context = stream.codec_context
                context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
                context.time_base = Fraction(1, self.fps)
                context.gop_size = max(len(planes), 12)
                context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
                context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
                for index, plane in enumerate(planes.numpy()):
                    frame = av.VideoFrame.from_ndarray(plane, format="yuv420p")
                    frame.pts = self.written.frames + index
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
        except av.error.FFmpegError as error:
            raise RuntimeError(
                f"{self.codec} cannot encode {self.width}x{self.height} frames: {error}"
            ) from error
        return target.getvalue()

    def close(self) -> None:
        """Close the file; again is harmless. A new file without a chunk is removed, an old one is left as it was."""
        self._file.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, box) of the boxes at the top of an MP4; a box that was cut short ends them."""
    start = 0
    while start + 8 <= len(content):
        end = start + int.from_bytes(content[start : start + 4], "big")
        if not start + 8 <= end <= len(content):
            return
        yield content[start + 4 : start + 8], content[start:end]
        start = end
