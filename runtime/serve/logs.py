"""Structured logs: one JSON object a line, with the request and the job that it is about.

    with about(request="r-17", job="v-3"):
        log.info("submitted", extra={"facts": {"chunks": 7}})
    {"time": "2026-01-01T00:00:00.000Z", "level": "info", "logger": "...", "message": "submitted", "request": "r-17", ...}

Prompts are what people think: none is ever logged, only its length, at any level. Nor are request bodies and headers.
The texts named as ``secrets`` are struck out of every line, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TextIO

from runtime.serve.wire import finite

REQUEST: ContextVar[str | None] = ContextVar("request", default=None)
JOB: ContextVar[str | None] = ContextVar("job", default=None)
LEVELS = ("debug", "info", "warning", "error")
STRUCK_OUT = "***"
LONGEST_MESSAGE = 8192  # characters; a traceback keeps its end


@contextlib.contextmanager
def about(*, request: str | None = None, job: str | None = None) -> Iterator[None]:
    """Every line logged inside, in this task and what it calls, names the request and the job; None leaves one as it is."""
    told = [(REQUEST, request), (JOB, job)]
    tokens = [(variable, variable.set(name)) for variable, name in told if name is not None]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


class JsonLines(logging.Formatter):
    """A record as one line of JSON; ``extra={"facts": {...}}`` adds fields of its own."""

    def __init__(self, process: str, secrets: Sequence[str] = ()) -> None:
        super().__init__()
        self._process = process
        self._secrets = tuple(secret for secret in secrets if secret)

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self._time(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": self._clean(record.getMessage()),
            "request": REQUEST.get(),
            "job": JOB.get(),
        }
        facts = getattr(record, "facts", {})
        fields |= {name: value for name, value in facts.items() if name not in fields}
        if record.exc_info:
            fields["error"] = self._clean(self.formatException(record.exc_info))
        told = {key: value for key, value in finite(fields).items() if value is not None}
        return self._struck(json.dumps(told, default=str))

    def _time(self, seconds: float) -> str:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{whole}.{int(seconds % 1 * 1000):03d}Z"

    def _clean(self, text: str) -> str:
        """Struck out before it is cut, so that no half of a secret is left."""
        return self._struck(text)[-LONGEST_MESSAGE:]

    def _struck(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, STRUCK_OUT)
            text = text.replace(json.dumps(secret)[1:-1], STRUCK_OUT)
        return text


def log_to(
    stream: TextIO | None = None,
    *,
    level: str = "info",
    process: str = "server",
    secrets: Sequence[str] = (),
) -> None:
    """Make the root logger write JSON lines to ``stream`` (stderr). For a process's own main alone.

    Raises ValueError for an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"--log-level: want one of {', '.join(LEVELS)}, got {level!r}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(process, secrets))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
