"""A writer of snapshots that fails or is killed leaves the ones before, and a reader finds the newest that is whole."""

import errno
import io
import os
import signal
import subprocess
import sys
import tracemalloc

import pytest
import torch

from runtime.snapshot import TENSOR_FILE, TREE_FILE, Packed, newest, read, snapshots, write

CONFIG = '{"weights": "abc"}'
SMALL = Packed({"chunk": 1, "list": [1.5, None]}, {"a": torch.arange(3.0), "b": torch.ones(2)})


@pytest.fixture
def saved(tmp_path):
    return write(tmp_path, SMALL, CONFIG, "chunk-000002")


class Full(io.FileIO):
    """A disk with room for so many more bytes."""

    room = 0

    def write(self, raw) -> int:
        if len(raw) > Full.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        Full.room -= len(raw)
        return super().write(raw)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("room", [0, 10, 150, 170, 300])
def test_a_full_disk_leaves_the_previous_snapshots_and_nothing_else(saved, room, monkeypatch):
    folder = saved.parent
    before = names(folder)
    monkeypatch.setattr(Full, "room", room)
    monkeypatch.setattr("pathlib.Path.open", lambda path, mode="r": Full(path, mode))
    with pytest.raises(RuntimeError, match=r"cannot write the snapshot .*: No space left on dev"):
        write(folder, SMALL, CONFIG, "chunk-000003")
    monkeypatch.undo()
    assert names(folder) == before
    assert newest(folder, CONFIG)[0] == saved


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fails_late_leaves_the_previous_snapshots(saved, call, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    where = os if call == "fsync" else "pathlib.Path"
    args = (where, call, failing) if where is os else ("pathlib.Path.rename", failing)
    monkeypatch.setattr(*args)
    with pytest.raises(RuntimeError, match="Input/output error"):
        write(saved.parent, SMALL, CONFIG, "chunk-000003")
    monkeypatch.undo()
    assert names(saved.parent) == [saved.name]
    assert newest(saved.parent, CONFIG)[0] == saved


def test_a_snapshot_of_the_same_name_survives_a_failing_rename(saved, monkeypatch):
    rename = type(saved).rename

    def failing(path, target):
        if path.name == f".{saved.name}.tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr("pathlib.Path.rename", failing)
    with pytest.raises(RuntimeError, match="Input/output error"):
        write(saved.parent, Packed({"chunk": 9}, {}), CONFIG, saved.name)
    monkeypatch.undo()
    assert names(saved.parent) == [saved.name]
    assert read(saved, CONFIG).tree == SMALL.tree


def test_an_interrupt_leaves_no_temporary(saved, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(saved.parent, SMALL, CONFIG, "chunk-000003")
    monkeypatch.undo()
    assert names(saved.parent) == [saved.name]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from runtime import snapshot
from runtime.snapshot import Packed, write

calls, deadly = 0, int(sys.argv[2])
def counted(call):
    def counting(*args):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)
    return counting

folder = Path(sys.argv[1])
write(folder, Packed({"chunk": 0}, {"x": torch.zeros(1000)}), "c", "chunk-000000")
write(folder, Packed({"chunk": 1}, {"x": torch.ones(1000)}), "c", "chunk-000001")
snapshot.raw_bytes, os.fsync = counted(snapshot.raw_bytes), counted(os.fsync)
os.rename, os.rmdir = counted(os.rename), counted(os.rmdir)
write(folder, Packed({"chunk": 2}, {"x": torch.ones(1000)}), "c", "chunk-000002")
print("whole")
"""


@pytest.mark.parametrize("deadly", [1, 3, 6])
def test_a_writer_that_is_killed_leaves_a_snapshot_to_go_on_from(tmp_path, deadly):
    """Killed while the first tensor, the tree, or the folder's new name is on its way to the disk."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(deadly)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    refused: list[str] = []
    path, found = newest(tmp_path, "c", tell=refused.append)
    assert found.tree["chunk"] == (2 if deadly == 6 else 1) and not refused
    write(tmp_path, Packed({"chunk": 3}, {}), "c", "chunk-000003")
    assert names(tmp_path) == sorted({path.name, "chunk-000003"})


# Falling back.


def test_the_one_before_is_found_when_the_newest_is_refused_and_it_is_said_why(tmp_path, caplog):
    old = write(tmp_path, SMALL, CONFIG, "chunk-000001")
    new = write(tmp_path, SMALL, CONFIG, "chunk-000002")
    (new / TENSOR_FILE).write_bytes(b"")
    path, found = newest(tmp_path, CONFIG)
    assert path == old and torch.equal(found.tensors["a"], SMALL.tensors["a"])
    assert [str(new / TENSOR_FILE) in line for line in caplog.messages] == [True]
    (old / TREE_FILE).unlink()
    assert newest(tmp_path, CONFIG) is None
    assert len(snapshots(tmp_path)) == 2  # nothing that was refused is removed by reading


def test_reading_and_writing_take_a_piece_of_memory_beside_the_tensors(tmp_path):
    big = Packed({}, {"x": torch.zeros(64 << 20, dtype=torch.uint8)})
    tracemalloc.start()  # sees what Python allocates, and not what torch does
    try:
        read(write(tmp_path, big, "", "a"), "")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
