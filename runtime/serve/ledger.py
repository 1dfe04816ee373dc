"""The list of jobs as the desk uses it: on disk, and for as long as the disk is full, in memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from runtime.serve.jobs import Job, State
from runtime.serve.store import Store

log = logging.getLogger("runtime.serve")


class Ledger:
    """What is known of every job but the ones that are being made, whose newest state the desk has."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: dict[str, Job] = {}

    def add(self, job: Job) -> None:
        """A new job. Raises RuntimeError when it cannot be kept."""
        self._store.add(job)

    def put(self, job: Job) -> None:
        """The newest state of a job, which is never lost while this process lives."""
        try:
            self._store.put(job)
            self._unwritten.pop(job.id, None)
        except RuntimeError as error:
            log.error("job %s: %s", job.id, error)
            self._unwritten[job.id] = job

    def flush(self) -> None:
        """Try again to write what could not be written."""
        for job in list(self._unwritten.values()):
            self.put(job)

    def get(self, name: str) -> Job | None:
        """A job that was not deleted, by its id."""
        job = self._unwritten.get(name) or self._store.get(name)
        return None if job is None or job.state is State.DELETED else job

    def remove(self, name: str) -> None:
        """Forget a deleted job. Where the disk refuses, the next start does."""
        self._unwritten.pop(name, None)
        with contextlib.suppress(RuntimeError):
            self._store.remove(name)

    def page(self, limit: int, after: str | None, newest_first: bool) -> list[Job]:
        """At most ``limit`` jobs behind ``after``. Raises KeyError when there is no such job."""
        found = self._store.page(limit, after, newest_first)
        newest = [self._unwritten.get(job.id, job) for job in found]
        return [job for job in newest if job.state is not State.DELETED]

    def in_states(self, states: Sequence[State]) -> list[Job]:
        return self._store.in_states(states)

    def ended_before(self, when: float) -> list[str]:
        return self._store.ended_before(when)

    def close(self) -> None:
        self.flush()
        self._store.close()
