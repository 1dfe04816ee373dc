"""Answers that take their time: sent piece by piece, and given up when the client goes away or takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runtime.serve.errors import ApiError
from runtime.serve.service import Slots


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Any]) -> bool:
    """Do ``work`` unless the client goes away first, which ends it; whether it was done."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            return False
        doing.result()
        return True
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Following(Response):
    """Sends what ``pieces`` yields until it ends; b"" is skipped.

    Nothing is sent before there is something: without a single piece ``empty()`` is raised, and the client learns why.
    ``left`` is called when the client went away before the end.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        slots: Slots,
        stalled_s: float,
        *,
        media_type: str,
        headers: Mapping[str, str],
        status_code: int = 200,
        empty: Callable[[], ApiError] | None = None,
        left: Callable[[], None] | None = None,
    ) -> None:
        self.media_type = media_type
        self.status_code = status_code
        self.background = None
        self._pieces, self._slots, self._stalled_s = pieces, slots, stalled_s
        self._empty, self._on_left = empty, left
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slots.take():
            try:
                done = await unless_gone(receive, self._pump(send))
            except asyncio.TimeoutError:
                done = False
            if not done:
                if self._on_left:
                    self._on_left()
                raise ClientDisconnect

    async def _pump(self, send: Send) -> None:
        started = False
        try:
            async for piece in self._pieces:
                if not piece:
                    continue
                if not started:
                    await self._start(send)
                    started = True
                message = {"type": "http.response.body", "body": piece, "more_body": True}
                await asyncio.wait_for(send(message), self._stalled_s)
            if not started:
                if self._empty:
                    raise self._empty()
                await self._start(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._pieces.aclose()

    async def _start(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
