"""What happens to a job, told as it happens: Server-Sent Events, and a socket that also takes another prompt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Response, WebSocket
from pydantic import Field, ValidationError
from starlette.websockets import WebSocketDisconnect

from runtime.serve.auth import PROTOCOL
from runtime.serve.bodies import Closed, Prompt
from runtime.serve.errors import ApiError, told
from runtime.serve.jobs import ID
from runtime.serve.live import Live
from runtime.serve.options import Bounds
from runtime.serve.orders import check_text, read_json
from runtime.serve.sending import Following
from runtime.serve.service import Served, Service, service_of

POLICY_VIOLATION, TOO_BIG = 1008, 1009
PATIENCE = 3  # refusals for haste in a row, and then the socket is closed
log = logging.getLogger("runtime.serve.http")
router = APIRouter(prefix="/v1/videos/{name}", tags=["videos"])
VideoName = Annotated[str, Path(pattern=ID)]


@router.get("/events", response_class=Response, summary="Hear what happens",
            responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
                       204: {"description": "all was told"}})  # fmt: skip
async def events(
    name: VideoName,
    service: Served,
    last_event_id: Annotated[str, Header(pattern=r"^[0-9]{0,15}$")] = "",
) -> Response:
    """Server-Sent Events from the job's first one on, or behind ``Last-Event-ID``; ends with the job."""
    live = service.desk.look(name)
    offset = int(last_event_id or 0)
    if offset > live.journal.size:
        offset = 0  # of another life of the job
    if offset and offset == live.journal.size and not live.job.open:
        return Response(status_code=204)  # an EventSource would ask forever
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Following(
        _told(live, offset), service.streams, service.options.bounds.stalled_s,
        media_type="text/event-stream", headers=headers,
    )  # fmt: skip


async def _told(live: Live, offset: int) -> AsyncGenerator[bytes, None]:
    yield b": events of the job\n\n"
    async with contextlib.aclosing(live.events(offset)) as found:
        async for end, line in found:
            kind = json.loads(line)["event"].encode() if line else b""
            yield b"id: %d\nevent: %s\ndata: %s\n\n" % (end, kind, line) if line else b": quiet\n\n"


class Switch(Closed):
    """Show something else from the next chunk on, or from a later one."""

    prompt: Prompt
    chunk: Annotated[int | None, Field(ge=0, le=1_000_000)] = None


class Bucket:
    """So many messages at once, and so many a second after that."""

    def __init__(self, at_once: int, per_s: float) -> None:
        self._left, self._most, self._per_s = float(at_once), float(at_once), per_s
        self._when = time.monotonic()

    def take(self) -> bool:
        """Whether one more is fine."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._when) * self._per_s)
        self._when = now
        fine = self._left >= 1
        self._left -= fine
        return fine


@router.websocket("/live")
async def live(socket: WebSocket, name: str) -> None:
    """The events as JSON messages; takes {"prompt": TEXT, "chunk": null or a number} and answers switched or refused."""
    service = service_of(socket)
    try:
        with service.sockets.take():
            found = service.desk.look(name)
            offered = socket.scope["subprotocols"]
            await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
            await _talk(Conversation(socket, found, service))
    except ApiError as error:  # before it was accepted
        await socket.send_denial_response(error.response())


async def _talk(conversation: Conversation) -> None:
    """Tell and hear until the job ends or the client leaves."""
    both = [asyncio.ensure_future(conversation.tell()), asyncio.ensure_future(conversation.hear())]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    except (WebSocketDisconnect, asyncio.TimeoutError, RuntimeError) as error:
        log.debug("a socket ended: %r", error)  # a RuntimeError says that it was closed already
    finally:
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)


class Conversation:
    """One socket of one job."""

    def __init__(self, socket: WebSocket, live: Live, service: Service) -> None:
        self._socket, self._live, self._desk = socket, live, service.desk
        self._bounds: Bounds = service.options.bounds
        self._speaking = asyncio.Lock()

    async def tell(self) -> None:
        """Every event, then a good-bye."""
        async with contextlib.aclosing(self._live.events()) as found:
            async for _, line in found:
                if line:
                    await self._say(line.decode())
        await self._socket.close(1000)

    async def hear(self) -> None:
        """Prompts, one after the other."""
        bounds = self._bounds
        bucket, hasty = Bucket(bounds.messages_at_once, bounds.messages_per_s), 0
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text") or (message.get("bytes") or b"").decode("utf-8", "replace")
            if len(text.encode("utf-8", "replace")) > bounds.message_bytes:
                return await self._socket.close(TOO_BIG)
            hasty = 0 if bucket.take() else hasty + 1
            if hasty > PATIENCE:
                return await self._socket.close(POLICY_VIOLATION)
            answer = self._refused("too many messages; wait") if hasty else await self._obey(text)
            if answer["event"] == "refused":  # what was switched is an event, and told to all
                await self._say(json.dumps(answer))

    async def _obey(self, text: str) -> dict[str, Any]:
        try:
            asked = Switch.model_validate(read_json(text.encode("utf-8", "replace")), strict=True)
            check_text(asked.prompt, self._bounds)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False)
            return self._refused(told(problems, Switch.model_fields).message)
        except ApiError as error:
            return self._refused(error.message)
        return await self._desk.switch(self._live, asked.prompt, asked.chunk)

    def _refused(self, why: str) -> dict[str, Any]:
        return {"event": "refused", "job": self._live.job.id, "reason": why}

    async def _say(self, text: str) -> None:
        async with self._speaking:
            await asyncio.wait_for(self._socket.send_text(text), self._bounds.stalled_s)
