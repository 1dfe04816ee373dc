"""One HTTP request to a replica, its answer as it comes. A connection each: they are a network's hop apart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import h11

CONNECT_S = 3.0
READ_BYTES = 64 * 1024
HEAD_BYTES = 64 * 1024
Headers = Sequence[tuple[bytes, bytes]]


class Unreachable(ConnectionError):
    """Nobody listens there: the request was not made."""


class Unanswered(ConnectionError):
    """The request was made, and nobody knows what became of it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request; ``target`` is path and query."""

    method: str
    target: bytes
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and its body in pieces. Reading them raises ConnectionError when the replica dies."""

    status: int
    headers: Headers
    pieces: AsyncIterator[bytes]

    async def whole(self) -> bytes:
        return b"".join([piece async for piece in self.pieces])


@contextlib.asynccontextmanager
async def asking(host: str, port: int, asked: Asked) -> AsyncIterator[Answer]:
    """Ask; leaving the block hangs up.

    Raises Unreachable, Unanswered, ValueError for a header that is none.
    """
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_S)
    except (OSError, asyncio.TimeoutError) as error:
        raise Unreachable(f"{host}:{port}: {error}") from None
    try:
        yield await _ask(_Talk(reader), writer, asked)
    finally:
        writer.close()


async def _ask(talk: _Talk, writer: asyncio.StreamWriter, asked: Asked) -> Answer:
    length = [(b"content-length", b"%d" % len(asked.body))] if asked.body or asked.method == "POST" else []  # fmt: skip
    headers = [*asked.headers, *length, (b"connection", b"close")]
    state = talk.state
    try:
        request = h11.Request(method=asked.method, target=asked.target, headers=headers)
        writer.write(state.send(request) or b"")
    except h11.LocalProtocolError as error:
        raise ValueError(f"a header cannot be passed on: {error}") from None
    if asked.body:
        writer.write(state.send(h11.Data(data=asked.body)) or b"")
    writer.write(state.send(h11.EndOfMessage()) or b"")
    try:
        await writer.drain()
        event = await talk.next()
        while isinstance(event, h11.InformationalResponse):
            event = await talk.next()
    except ConnectionError as error:
        raise Unanswered(str(error)) from None
    if not isinstance(event, h11.Response):
        raise Unanswered("the replica hung up without an answer")
    return Answer(event.status_code, event.headers.raw_items(), talk.pieces())


class _Talk:
    """What the other side says, event by event."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.state = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._reader = reader

    async def next(self) -> object:
        try:
            while (event := self.state.next_event()) is h11.NEED_DATA:
                self.state.receive_data(await self._reader.read(READ_BYTES))
        except h11.RemoteProtocolError as error:
            raise ConnectionError(f"the replica did not speak HTTP: {error}") from None
        return event

    async def pieces(self) -> AsyncIterator[bytes]:
        while not isinstance(event := await self.next(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise ConnectionError("the replica broke off its answer")
            yield bytes(event.data)
