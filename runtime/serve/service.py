"""What the routes of one server share, and how they get hold of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from runtime.serve.auth import Keyring
from runtime.serve.desk import Desk
from runtime.serve.errors import ApiError
from runtime.serve.metrics import Metrics
from runtime.serve.options import ServeOptions


class Slots:
    """So many at once and no more."""

    def __init__(self, name: str, most: int) -> None:
        self.used = 0
        self._name, self._most = name, most

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Hold one. Raises ApiError (429) when all are taken."""
        if self.used >= self._most:
            raise ApiError(429, f"{self._most} {self._name} are open, and that is all that may be",
                           code="too_many_readers", retry_after_s=5)  # fmt: skip
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1


@dataclass(frozen=True, slots=True)
class Service:
    """One server from the inside."""

    options: ServeOptions
    desk: Desk
    metrics: Metrics
    keyring: Keyring
    streams: Slots
    sockets: Slots
    page: Mapping[str, bytes]  # files by name


def service_of(connection: HTTPConnection) -> Service:
    """The server that a request or a socket came to."""
    service: Service = connection.app.state.service
    return service


Served = Annotated[Service, Depends(service_of)]
