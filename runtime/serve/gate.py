"""What every request passes, in this order: a name for the log, the host it asked for, where it comes from, its key."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serve.auth import Keyring, unauthorised
from runtime.serve.errors import ApiError
from runtime.serve.logs import about
from runtime.serve.options import ServeOptions

log = logging.getLogger("runtime.serve.http")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN_PATHS = ("/health", "/v1/session")  # the second looks at the key itself
SAFE = ("GET", "HEAD", "OPTIONS")
PORT = re.compile(r":\d*$")
CLIENT_LEFT = 499  # in the log alone


class Gate:
    """Plain ASGI: what wraps a response in a task of its own would hold streams back."""

    def __init__(self, app: ASGIApp, options: ServeOptions, keyring: Keyring) -> None:
        self._app, self._options, self._keyring = app, options, keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        connection = HTTPConnection(scope)
        asked = connection.headers.get("x-request-id", "")
        name = asked if REQUEST_ID.fullmatch(asked) else secrets.token_hex(8)
        seen = _Seen(send, name)
        began = time.perf_counter()
        with about(request=name):
            try:
                refusal = self._refusal(connection)
                await (_denied(refusal, scope) if refusal else self._app)(scope, receive, seen.send)
            except ClientDisconnect:
                seen.status = CLIENT_LEFT
            except Exception:
                # The client learns that it was our fault, and the log learns why.
                log.exception("a request failed")
                if not seen.status:
                    wrong = ApiError(500, f"the server failed; its log knows why, under {name}").response()  # fmt: skip
                    await _denied(wrong, scope)(scope, receive, seen.send)
            finally:
                spent_ms = round((time.perf_counter() - began) * 1e3, 1)
                facts = {"method": scope.get("method", "WEBSOCKET"), "path": scope["path"][:200]}
                facts |= {"status": seen.status, "bytes": seen.bytes, "ms": spent_ms}
                log.info("%s %s", facts["method"], facts["path"], extra={"facts": facts})

    def _refusal(self, connection: HTTPConnection) -> Response | None:
        hosts = self._options.hosts
        host = connection.headers.get("host", "")
        if hosts and PORT.sub("", host).lower() not in hosts:
            return ApiError(400, "host: this server does not go by that name; see --allowed-host",
                            code="wrong_host").response()  # fmt: skip
        scope, origin = connection.scope, connection.headers.get("origin")
        acts = scope["type"] == "websocket" or scope["method"] not in SAFE
        if acts and origin is not None and not self._from_here(origin, host):
            return ApiError(403, "origin: web pages of other sites may not use this server",
                            code="wrong_origin").response()  # fmt: skip
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS or self._keyring.admits(connection):
            return None
        return unauthorised(connection)

    def _from_here(self, origin: str, host: str) -> bool:
        return origin.partition("://")[2] == host or origin in self._options.allowed_origins


class _Seen:
    """Passes messages on, gives responses their common headers, and remembers what was said."""

    def __init__(self, send: Send, name: str) -> None:
        self.status = self.bytes = 0
        self._send, self._name = send, name

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            self.status = message.get("status", 101)
            common = [(b"x-request-id", self._name.encode())]
            if kind != "websocket.accept":
                common += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin")]  # fmt: skip
            message = {**message, "headers": [*message.get("headers", ()), *common]}
        elif kind == "websocket.close" and not self.status:
            self.status = 403
        self.bytes += len(message.get("body", b""))
        await self._send(message)


def _denied(response: Response, scope: Scope) -> ASGIApp:
    """``response`` as an answer to either kind of request; a server that cannot deny a socket in words closes it."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        return response

    async def close(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1008, "reason": ""})

    return close
