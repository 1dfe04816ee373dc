"""Every job there ever was, in one SQLite file: what a restarted server knows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from runtime.serve.jobs import Job, State, job_from

VERSION = 1
TABLE = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    ended REAL,
    job TEXT NOT NULL
);
CREATE INDEX jobs_by_state ON jobs (state, ended);
"""


class Store:
    """Rows of jobs in the order they came. One writer, and only in the thread that opened it."""

    def __init__(self, path: Path) -> None:
        """Raises RuntimeError that names the file when it is damaged or of another version."""
        self._path = path
        self._base = sqlite3.connect(path, isolation_level=None)
        try:
            self._open()
        except (sqlite3.DatabaseError, ValueError) as error:
            self._base.close()
            raise RuntimeError(
                f"{path}: the list of jobs cannot be read: {error}; move the file away to begin with an "
                "empty one (the videos stay where they are)"
            ) from error

    def _open(self) -> None:
        run = self._base.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")  # safe with WAL: a power cut may lose the last moments
        (found,) = run("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise ValueError(found)
        (version,) = run("PRAGMA user_version").fetchone()
        if version == 0:
            self._base.executescript(f"BEGIN;{TABLE}PRAGMA user_version = {VERSION};COMMIT;")
        elif version != VERSION:
            raise ValueError(f"it has version {version}, and this server knows {VERSION}")
        for (text,) in run("SELECT job FROM jobs"):
            job_from(text)

    def add(self, job: Job) -> None:
        """Append a new job. Raises RuntimeError when the disk is full."""
        self._write(
            "INSERT INTO jobs (state, ended, job, id) VALUES (?, ?, ?, ?)",
            (job.state.value, job.ended, job.to_json(), job.id),
        )

    def put(self, job: Job) -> None:
        """Overwrite a job that is there. Raises RuntimeError when the disk is full."""
        self._write(
            "UPDATE jobs SET state = ?, ended = ?, job = ? WHERE id = ?",
            (job.state.value, job.ended, job.to_json(), job.id),
        )

    def remove(self, name: str) -> None:
        """Forget a job; one that is not there is forgotten already."""
        self._write("DELETE FROM jobs WHERE id = ?", (name,))

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        try:
            self._base.execute(statement, values)
        except sqlite3.Error as error:
            raise RuntimeError(f"{self._path}: cannot write: {error}") from error

    def get(self, name: str) -> Job | None:
        """A job by its id; None when there is none, or none any more."""
        row = self._base.execute(
            "SELECT job FROM jobs WHERE id = ? AND state != ?", (name, State.DELETED.value)
        ).fetchone()
        return job_from(row[0]) if row else None

    def page(self, limit: int, after: str | None, newest_first: bool) -> list[Job]:
        """At most ``limit`` jobs behind ``after``. Raises KeyError when there is no such job."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = "state != ?", [State.DELETED.value]
        if after is not None:
            row = self._base.execute("SELECT number FROM jobs WHERE id = ?", (after,)).fetchone()
            if row is None:
                raise KeyError(after)
            where, values = f"{where} AND number {sign} ?", [*values, row[0]]
        rows = self._base.execute(
            f"SELECT job FROM jobs WHERE {where} ORDER BY number {order} LIMIT ?", (*values, limit)
        )
        return [job_from(text) for (text,) in rows]

    def in_states(self, states: Sequence[State]) -> list[Job]:
        """The jobs that are in one of ``states``, oldest first."""
        marks = ", ".join("?" * len(states))
        rows = self._base.execute(
            f"SELECT job FROM jobs WHERE state IN ({marks}) ORDER BY number",
            [state.value for state in states],
        )
        return [job_from(text) for (text,) in rows]

    def ended_before(self, when: float) -> list[str]:
        """Names of the jobs that ended before ``when``, oldest first."""
        rows = self._base.execute(
            "SELECT id FROM jobs WHERE ended < ? AND state != ? ORDER BY number",
            (when, State.DELETED.value),
        )
        return [name for (name,) in rows]

    def close(self) -> None:
        """Close the file; again is harmless."""
        self._base.close()
