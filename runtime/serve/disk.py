"""The data folder: who owns it, how full it is, and how things leave it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.output import reason
from runtime.serve.options import Bounds


class Owned:
    """The data folder in the hands of one server; a second one is told so."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where there is none. Raises ValueError when it cannot be used."""
        try:
            (folder / "videos").mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ValueError(f"--data: cannot use {folder}: {reason(error)}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ValueError(f"--data: another server works in {folder}; give this one another folder") from None  # fmt: skip

    def close(self) -> None:
        os.close(self._lock)


def crowded(folder: Path, bounds: Bounds) -> str:
    """Why no further video fits into ``folder``; "" when one does."""
    used = sum(sizes(folder))
    if used >= bounds.disk_bytes:
        return f"the videos here take {used >> 20} MiB, and {bounds.disk_bytes >> 20} MiB are allowed; delete some"  # fmt: skip
    if (free := shutil.disk_usage(folder).free) < bounds.free_bytes:
        return f"the disk has {free >> 20} MiB left, and {bounds.free_bytes >> 20} MiB are wanted; make room"  # fmt: skip
    return ""


def sizes(folder: Path) -> Iterator[int]:
    """Bytes of every file below ``folder``; what vanishes meanwhile counts nothing."""
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(root, name)).st_size


def remove(folder: Path) -> None:
    """Take a folder away with all that is in it; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def finished(folder: Path) -> dict[str, Any] | None:
    """What the worker said at the end of a video that is whole; None when it is not."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads((folder / "done.json").read_text())
        if (
            0 < int(told["bytes"]) <= (folder / "video.mp4").stat().st_size
            and int(told["frames"]) > 0
        ):
            return dict(told)
    return None


def holds_snapshot(folder: Path) -> bool:
    """Whether the worker left something to go on from."""
    with contextlib.suppress(OSError):
        return any((folder / "snapshot").iterdir())
    return False
