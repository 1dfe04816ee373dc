"""Files that an earlier writer began go on as if it had never stopped: same bytes, whatever lay behind the cut."""

import contextlib

import pytest
import torch

from runtime.output import OutputFile
from runtime.settings import Settings
from runtime.trace import TraceWriter, read_trace, turn_of
from runtime.video import VideoWriter, Written
from tests.fake_engine import FakeEngine


@pytest.fixture(scope="module")
def made():
    """Records and settled chunks of one video of five chunks."""
    engine, records = FakeEngine(Settings(seconds=3.6)), []
    events = list(engine.stream("a disc", watch=records.append))
    return records, events


@pytest.mark.parametrize("kept", [1, 3])
def test_a_resumed_video_is_the_same_bytes_as_one_that_never_stopped(tmp_path, made, kept):
    _, events = made
    whole, resumed = tmp_path / "whole.mp4", tmp_path / "resumed.mp4"
    with VideoWriter(whole, 16) as writer:
        for event in events:
            writer.add(event.frames)
    with VideoWriter(resumed, 16) as writer:
        for event in events[:kept]:
            writer.add(event.frames)
        written, size = writer.written, writer.size_bytes
        writer.add(torch.rand_like(events[kept].frames))  # a future that is not to be
    with VideoWriter(resumed, 16) as writer:
        writer.resume(written, size)
        for event in events[kept:]:
            writer.add(event.frames)
        assert writer.written == Written(5, sum(len(event.frames) for event in events))
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_resumed_trace_is_the_same_bytes_as_one_that_never_stopped(tmp_path, made):
    records, events = made
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"

    def begun(path):
        writer = TraceWriter(path)
        writer.begin("a disc", Settings(), 16, 5, {"noise": "torch"})
        return writer

    with begun(whole) as writer:
        for record in records:
            writer(record)
        for event in events:
            writer.settled(event)
    first = begun(resumed)
    for record in records[:2]:
        first(record)
    size = first.size_bytes
    first.add(turn_of(records[2]))
    with TraceWriter(resumed) as writer:
        writer.resume(size, 2, [events[0].seed])
        assert len(read_trace(resumed).chunks) == 2  # valid at once
        for record in records[2:]:
            writer(record)
        for event in events[1:]:
            writer.settled(event)
    assert resumed.read_bytes() == whole.read_bytes()


def test_a_file_that_lost_what_was_to_be_kept_is_refused(tmp_path):
    path = tmp_path / "short.mp4"
    path.write_bytes(b"12345")
    with contextlib.closing(OutputFile(path, "video")) as file:
        with pytest.raises(ValueError, match="want at least 6 bytes to go on, got 5"):
            file.resume(6)
        file.resume(3)
    assert path.read_bytes() == b"123"
