"""Folders of jobs that replicas hold and hand on: ``slots/<8 hex digits>/``, and who writes in them.

The ids of a slot's videos begin with its name, so whoever sees an id knows the slot. A slot is free when nobody holds
its lock (``disk.Owned``) and the worker that last wrote in it has ended: a worker whose replica was killed goes on for
some seconds, to save what it has, and holds its own lock (``workers/<name>``) to its last moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

SLOT = re.compile(r"[0-9a-f]{8}")
IN_PATH = re.compile(r"/video_([0-9a-f]{8})[0-9a-f]{24}(?:/|$)")
MOST_TRIES = 3
STALE_S = 3600.0


def slot_in(path: str) -> str | None:
    """The slot of the video that an address is about."""
    found = IN_PATH.search(path)
    return found[1] if found else None


def new_slot(root: Path) -> Path:
    """A folder for a slot that is not there yet."""
    return root / "slots" / secrets.token_hex(4)


class WorkerLock:
    """Held by this process and by the worker that inherits ``fd``: free when both are gone."""

    def __init__(self, root: Path) -> None:
        """Raises ValueError when the folder cannot be used."""
        folder = root / "workers"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (root / "slots").mkdir(mode=0o700, exist_ok=True)
            _sweep(folder)
            self.path = folder / secrets.token_hex(8)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ValueError(f"data: cannot use {root}: {error.strerror}") from None
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Let go of it; for good when the worker has ended."""
        os.close(self.fd)


def sign(slot: Path, worker: Path) -> None:
    """Note in a slot that is held which worker writes in it from now on."""
    fresh = slot / "worker.new"
    fresh.write_text(worker.name)
    os.replace(fresh, slot / "worker")


def all_slots(root: Path) -> list[Path]:
    """Every slot that there is, held or not."""
    return sorted(slot for slot in (root / "slots").iterdir() if SLOT.fullmatch(slot.name))


def free_slots(root: Path) -> Iterator[Path]:
    """Slots that nobody holds and no worker writes in. Another replica may be quicker to take one."""
    for slot in all_slots(root):
        if _free(slot / "lock"):
            with contextlib.suppress(OSError):
                worker = (slot / "worker").read_text()[:64]
                if worker.isalnum() and not _free(root / "workers" / worker):
                    continue
            yield slot


def _free(lock: Path) -> bool:
    """Whether nobody holds a lock; one that is not there is free."""
    try:
        fd = os.open(lock, os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _sweep(workers: Path) -> None:
    """Take away the locks of workers that ended long ago."""
    for path in workers.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - STALE_S and _free(path):
                path.unlink()


class Tries:
    """How often each job of a slot was begun without getting any further: some bring every worker down."""

    def __init__(self, slot: Path) -> None:
        self._path = slot / "tries.json"
        self._count: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_text())
            self._count = {str(job): int(count) for job, count in dict(found).items()}

    def again(self, job: str) -> bool:
        """Count one more; whether it may be tried."""
        self._count[job] = self._count.get(job, 0) + 1
        self._keep()
        return self._count[job] <= MOST_TRIES

    def forget(self, job: str) -> None:
        """The job got further, or ended."""
        if self._count.pop(job, None):
            self._keep()

    def forget_all(self) -> None:
        self._count = {}
        self._keep()

    def _keep(self) -> None:
        fresh = self._path.with_suffix(".new")
        with contextlib.suppress(
            OSError
        ):  # on a full disk they are counted while this process lives
            fresh.write_text(json.dumps(self._count))
            os.replace(fresh, self._path)
