"""A WebSocket through the front: one to the client, one to the replica, and what either says to the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from runtime.serve.auth import PROTOCOL
from runtime.serve.cluster.asking import CONNECT_S, Headers
from runtime.serve.cluster.directory import Replica
from runtime.serve.errors import ApiError
from runtime.serve.wire import MAX_LINE_BYTES

PASSED = (b"authorization", b"x-request-id", b"last-event-id")
GOING_AWAY, POLICY_VIOLATION = 1001, 1008


async def relay_socket(
    scope: Scope, receive: Receive, send: Send, place: Callable[[], Replica], headers: Headers
) -> None:
    """Connect the client to the replica that ``place`` names; what refuses either is the client's answer."""
    socket = WebSocket(scope, receive, send)
    offered = [PROTOCOL] if PROTOCOL in scope.get("subprotocols", ()) else None
    try:
        replica = place()
        host = f"[{replica.host}]" if ":" in replica.host else replica.host
        passed = [(name.decode(), value.decode("latin-1")) for name, value in headers if name in PASSED]  # fmt: skip
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        async with connect(
            f"ws://{host}:{replica.port}{path}", subprotocols=offered, additional_headers=passed,  # type: ignore[arg-type]
            proxy=None, compression=None, max_size=MAX_LINE_BYTES, open_timeout=CONNECT_S,
        ) as other:  # fmt: skip
            await socket.accept(subprotocol=other.subprotocol)
            await _both(socket, other)
    except ApiError as error:
        await _deny(socket, error.response())
    except InvalidStatus as error:
        told = error.response
        kind = told.headers.get("Content-Type", "application/json")
        await _deny(socket, Response(bytes(told.body or b""), told.status_code, media_type=kind))
    except (OSError, asyncio.TimeoutError, InvalidHandshake):
        gone = ApiError(503, "the replica does not answer", code="replica_away", retry_after_s=3)
        await _deny(socket, gone.response())


async def _deny(socket: WebSocket, response: Response) -> None:
    """Answer in words; a server that cannot closes."""
    if socket.application_state.name != "CONNECTING":
        return
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(response)
    else:
        await socket.close(POLICY_VIOLATION)


async def _both(socket: WebSocket, other: ClientConnection) -> None:
    """Until one side ends; the other is told."""
    pumps = [asyncio.ensure_future(_down(socket, other)), asyncio.ensure_future(_up(socket, other))]
    try:
        done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in done:
            pump.result()
    except (WebSocketDisconnect, ConnectionClosed, RuntimeError):
        pass  # RuntimeError is how a socket says that the client is gone
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _down(socket: WebSocket, other: ClientConnection) -> None:
    try:
        async for message in other:
            if isinstance(message, str):
                await socket.send_text(message)
            else:
                await socket.send_bytes(message)
    except ConnectionClosed:
        pass
    code = other.close_code or GOING_AWAY
    await socket.close(code if code not in (1005, 1006) else GOING_AWAY)


async def _up(socket: WebSocket, other: ClientConnection) -> None:
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        text = message.get("text")
        await other.send(text if text is not None else message.get("bytes") or b"")
