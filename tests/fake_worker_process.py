"""The real worker process around an engine that draws discs: ``python -m tests.fake_worker_process --link-fd N``.

What is to go wrong in it comes by STREAM_T1_FAKE, a JSON object: {"chunk_s": 0.2, "slow_snapshot_s": 5, ...}.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import time
from pathlib import Path

from runtime import output, snapshot
from runtime.request import Limits
from runtime.serve.worker import main
from runtime.settings import Settings
from tests.fake_async_engine import FakeAsyncEngine


def build(settings: Settings, limits: Limits) -> FakeAsyncEngine:
    return FakeAsyncEngine(hooks.get("chunk_s", 0.0), limits.queued, holds=hooks.get("holds", ()))


def slow_snapshots(seconds: float, first: int) -> None:
    """Snapshots after the first ones wait in the middle of being written, and say so by a file."""
    fill, seen = snapshot._fill, []

    def slow(folder: Path, *args) -> None:
        fill(folder, *args)
        seen.append(folder)
        if len(seen) > first:
            (folder / snapshot.TREE_FILE).write_bytes(b"{")
            (folder.parent.parent / "writing").touch()
            time.sleep(seconds)

    snapshot._fill = slow


def full_disk(name: str, job: str, after_bytes: int) -> None:
    """Writes to a job's file of that name fail beyond so many bytes, as they would on a full disk."""
    write = output.OutputFile._write

    def full(self, content: bytes) -> None:
        mine = self.path.name == name and self.path.parent.name == job
        if mine and self.size + len(content) > after_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        write(self, content)

    output.OutputFile._write = full


def full_snapshots(job: str) -> None:
    flush = snapshot._flush

    def full(file) -> None:
        if f"/{job}/" in str(file.name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))
        flush(file)

    snapshot._flush = full


hooks = json.loads(os.environ.get("STREAM_T1_FAKE", "{}"))
if __name__ == "__main__":
    if "slow_snapshot_s" in hooks:
        slow_snapshots(hooks["slow_snapshot_s"], hooks.get("first", 1))
    for full in hooks.get("full", ()):
        full_disk(*full)
    if "file_bytes" in hooks:  # a disk that is really full, as far as the process can tell
        resource.setrlimit(resource.RLIMIT_FSIZE, (hooks["file_bytes"],) * 2)
    if "full_snapshots" in hooks:
        full_snapshots(hooks["full_snapshots"])
    sys.exit(main(build=build))
