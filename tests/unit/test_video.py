"""The MP4 writer: exact frames, true colours, and a file that plays whatever happened to its end."""

import contextlib
import io
import os
import resource

import av
import numpy as np
import pytest
import torch

from runtime.video import VideoWriter, boxes, easy_scale, encoder

FPS = 16
CHUNKS = (9, 12, 12)


def moving_bars(count, height, width, first=0):
    """Frames [count, 3, H, W] of smooth colour whose brightness names the frame: 0.2 + 0.01 * number."""
    frames = torch.full((count, 3, height, width), 0.2)
    frames[:, 0, :, : width // 2] = 0.6
    return frames + 0.01 * torch.arange(first, first + count).view(-1, 1, 1, 1)


def write(path, sizes=CHUNKS, height=48, width=64, **options):
    with VideoWriter(path, FPS, scale=1, **options) as video:
        for count in sizes:
            video.add(moving_bars(count, height, width, video.written.frames))
    return video


def decode(path):
    """Every frame as [H, W, 3] in [0, 1], and the presentation times in seconds."""
    with av.open(path) as container:
        pairs = [(f.to_ndarray(format="rgb24") / 255, f.time) for f in container.decode(video=0)]
    return np.stack([frame for frame, _ in pairs]), [time for _, time in pairs]


@pytest.mark.parametrize("codec", [encoder(), "mpeg4"])
def test_every_frame_comes_back_in_order_and_in_its_colour(tmp_path, codec):
    video = write(tmp_path / "a.mp4", codec=codec)
    frames, times = decode(tmp_path / "a.mp4")
    assert len(frames) == sum(CHUNKS) == video.written.frames
    assert times == pytest.approx([n / FPS for n in range(len(frames))])
    exact = moving_bars(sum(CHUNKS), 48, 64).permute(0, 2, 3, 1).numpy()
    assert np.abs(frames[:, 8:40, 4:28] - exact[:, 8:40, 4:28]).max() < 0.03
    assert np.abs(frames[:, 8:40, 36:60] - exact[:, 8:40, 36:60]).max() < 0.03
    assert (tmp_path / "a.mp4").stat().st_size == video.size_bytes


def test_the_stream_is_tagged_bt709_limited_range(tmp_path):
    write(tmp_path / "a.mp4")
    with av.open(tmp_path / "a.mp4") as container:
        context = container.streams.video[0].codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]
        assert context.pix_fmt == "yuv420p"
        assert container.streams.video[0].average_rate == FPS


def test_the_file_is_a_head_and_one_fragment_per_chunk(tmp_path):
    write(tmp_path / "a.mp4")
    kinds = [kind for kind, _ in boxes((tmp_path / "a.mp4").read_bytes())]
    assert kinds == [b"ftyp", b"moov"] + [b"moof", b"mdat"] * len(CHUNKS)


def test_a_chunk_plays_as_soon_as_it_was_added(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", FPS) as video:
        for count in CHUNKS:
            video.add(moving_bars(count, 48, 64))
            assert len(decode(tmp_path / "a.mp4")[0]) == video.written.frames


@pytest.mark.parametrize("share", [0.6, 0.95])
def test_a_file_that_was_cut_plays_its_first_chunks(tmp_path, share):
    torch.manual_seed(0)
    with VideoWriter(tmp_path / "a.mp4", FPS, scale=1) as video:
        for _ in range(5):
            video.add(torch.rand(12, 3, 48, 64))
    content = (tmp_path / "a.mp4").read_bytes()
    cut = content[: int(len(content) * share)]
    whole = sum(kind == b"mdat" for kind, _ in boxes(cut))
    (tmp_path / "cut.mp4").write_bytes(cut)
    assert 2 <= whole < 5
    played = 0
    with av.open(tmp_path / "cut.mp4") as container, contextlib.suppress(av.error.InvalidDataError):
        for _ in container.decode(video=0):
            played += 1
    assert played >= 12 * whole


@pytest.mark.parametrize(
    ("height", "width", "scale", "size"),
    [
        (96, 96, 0, (384, 384)),
        (96, 96, 1, (96, 96)),
        (256, 300, 0, (256, 300)),
        (31, 33, 1, (32, 34)),
        (31, 33, 3, (94, 100)),
        (5, 7, 2, (10, 14)),
    ],
)
def test_sizes_are_scaled_and_made_even(tmp_path, height, width, scale, size):
    with VideoWriter(tmp_path / "a.mp4", FPS, scale=scale) as video:
        video.add(moving_bars(2, height, width))
    frames, _ = decode(tmp_path / "a.mp4")
    assert frames.shape == (2, *size, 3)
    assert (video.height, video.width) == size


def test_small_videos_are_enlarged_until_they_are_easy_to_watch():
    assert [easy_scale(h, w) for h, w in [(96, 96), (480, 832), (255, 900), (8, 8)]] == [
        4,
        1,
        2,
        48,
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_any_float_and_any_layout_is_taken(tmp_path, dtype):
    frames = moving_bars(3, 48, 64).to(dtype)
    strided = frames.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    with VideoWriter(tmp_path / "a.mp4", FPS, scale=1) as video:
        video.add(strided)
    got, _ = decode(tmp_path / "a.mp4")
    assert np.abs(got[:, 8:40, 4:28, 1] - 0.21).max() < 0.04


def test_nan_and_values_out_of_range_do_not_stop_a_video(tmp_path):
    frames = moving_bars(3, 48, 64)
    frames[0, :, :8], frames[1, :, :8], frames[2, :, :8] = float("nan"), 7.0, -7.0
    with VideoWriter(tmp_path / "a.mp4", FPS, scale=1) as video:
        video.add(frames)
    assert len(decode(tmp_path / "a.mp4")[0]) == 3


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 4, 8, 8), (3, 8, 8), (2, 3, 0, 8)])
def test_a_wrong_shape_is_told(tmp_path, shape):
    wanted = pytest.raises(ValueError, match=r"frames: want shape \[T, 3, H, W\]")
    with VideoWriter(tmp_path / "a.mp4", FPS) as video, wanted:
        video.add(torch.zeros(shape))
    assert not (tmp_path / "a.mp4").exists()


def test_the_size_may_not_change(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", FPS) as video:
        video.add(moving_bars(2, 16, 16))
        with pytest.raises(ValueError, match="want 16x16 as before, got 16x18"):
            video.add(moving_bars(2, 16, 18))
    assert len(decode(tmp_path / "a.mp4")[0]) == 2


def test_equal_frames_make_equal_bytes(tmp_path):
    write(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        VideoWriter(tmp_path / "folder.mp4", FPS)
    with pytest.raises(ValueError, match="there is no folder"):
        VideoWriter(tmp_path / "missing" / "a.mp4", FPS)
    with pytest.raises(ValueError, match="File name too long"):
        VideoWriter(tmp_path / ("a" * 300 + ".mp4"), FPS)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="is a pipe"):
        VideoWriter(tmp_path / "pipe.mp4", FPS)


def test_without_a_chunk_no_file_is_made_and_none_is_lost(tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"precious")
    for name in ("old.mp4", "new.mp4"):
        VideoWriter(tmp_path / name, FPS).close()
    assert (tmp_path / "old.mp4").read_bytes() == b"precious"
    assert not (tmp_path / "new.mp4").exists()


def test_a_longer_old_file_is_replaced_whole(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x" * 10**6)
    write(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


class FullDisk(io.FileIO):
    """Takes ``room`` bytes, half of a write that goes beyond them, and then says that the disk is full."""

    room = 0

    def write(self, content):
        if self.tell() >= self.room:
            raise OSError(28, "No space left on device")
        return super().write(bytes(content[: max(1, self.room - self.tell())]))


def test_a_full_disk_is_named_and_what_was_written_plays(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, FPS, scale=1) as video:
        video.add(moving_bars(9, 48, 64))
        safe = video.size_bytes
        video._file._file.close()
        video._file._file = FullDisk(path, "r+")
        video._file._file.room = safe + 100
        with pytest.raises(RuntimeError, match=r"cannot write .*a\.mp4: No space left on device"):
            video.add(moving_bars(12, 48, 64))
        assert path.stat().st_size == safe
        video._file._file.room = 10**6  # somebody made room
        video.add(moving_bars(12, 48, 64))
    assert len(decode(path)[0]) == 21


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_device_without_room_fails_the_same_way():
    full = pytest.raises(RuntimeError, match="cannot write /dev/full: No space left on device")
    with VideoWriter("/dev/full", FPS) as video, full:
        video.add(moving_bars(2, 16, 16))


def test_a_file_size_limit_of_the_system_leaves_a_video_that_plays(tmp_path):
    torch.manual_seed(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with VideoWriter(tmp_path / "a.mp4", FPS, scale=1) as video:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        try:
            with pytest.raises(RuntimeError, match="File too large"):
                while video.written.chunks < 50:
                    video.add(torch.rand(4, 3, 48, 64))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0 < video.written.frames == len(decode(tmp_path / "a.mp4")[0])
    assert (tmp_path / "a.mp4").stat().st_size == video.size_bytes <= 60_000
