"""Who may come in: a key compared in constant time, or a short-lived cookie that a key was exchanged for.

Browsers cannot give a <video> or a WebSocket a header, hence the cookie; a page's script may also offer the key as
the WebSocket subprotocol ``key.<base64url>`` beside ``stream-t1``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time

from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, Response

from runtime.serve.errors import ApiError

COOKIE = "stream_t1_session"
COOKIE_S = 12 * 3600
PROTOCOL = "stream-t1"
LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Stream-T1</title>
<form method="post" action="{root}/v1/session"><label>This server asks for its API key
<input name="key" type="password" autocomplete="off" required autofocus></label> <button>Enter</button></form></html>
"""


class Keyring:
    """The key of one server, or none: then everybody may come in."""

    def __init__(self, key: str | None, seal: bytes | None = None) -> None:
        self.open = key is None
        self._key = _digest(key or "")
        self._seal = seal or secrets.token_bytes(32)  # without one, cookies end with the process

    def fits(self, key: str) -> bool:
        """Whether ``key`` is the key; takes as long for every other one of its length."""
        return self.open or hmac.compare_digest(_digest(key), self._key)

    def admits(self, connection: HTTPConnection) -> bool:
        """Whether a request carries the key, or a cookie that is still good."""
        return self.open or self._by_key(connection) or self.by_cookie(connection)

    def _by_key(self, connection: HTTPConnection) -> bool:
        if self.fits(bearer(connection)):
            return True
        return connection.scope["type"] == "websocket" and any(
            self.fits(_plain(name[4:]))
            for name in connection.scope["subprotocols"]
            if name.startswith("key.")
        )

    def by_cookie(self, connection: HTTPConnection) -> bool:
        until, _, mark = connection.cookies.get(COOKIE, "").partition(".")
        good = hmac.compare_digest(self._mark(until).encode(), mark.encode())
        return good and until.isdecimal() and int(until) > time.time()

    def cookie(self) -> str:
        until = str(int(time.time()) + COOKIE_S)
        return f"{until}.{self._mark(until)}"

    def _mark(self, until: str) -> str:
        return hmac.new(self._seal, until.encode(), hashlib.sha256).hexdigest()


def bearer(connection: HTTPConnection) -> str:
    """The key of an ``Authorization: Bearer`` header; "" without one."""
    kind, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _plain(text: str) -> str:
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        return base64.b64decode(padded, b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def unauthorised(connection: HTTPConnection) -> Response:
    """401: for a browser that wants a page, with a place to enter the key."""
    error = ApiError(401, "want the API key, as in `Authorization: Bearer KEY`", code="invalid_api_key")  # fmt: skip
    browsing = connection.scope.get("method") == "GET" and "text/html" in connection.headers.get("accept", "")  # fmt: skip
    if not browsing:
        return error.response()
    return HTMLResponse(LOGIN.format(root=root_of(connection)), 401, error.headers)


def root_of(connection: HTTPConnection) -> str:
    """The path under which this server is mounted, fit for an HTML attribute; mostly ""."""
    root = connection.scope.get("root_path", "").rstrip("/")
    return "".join(c for c in root if c.isalnum() or c in "/-_.~")
