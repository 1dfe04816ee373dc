"""Reads bodies of a bounded size in a bounded time, whatever length and kind they claim to have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from runtime.serve.errors import ApiError, wrong
from runtime.serve.jobs import Order
from runtime.serve.options import Bounds
from runtime.serve.orders import Menu, read_form, read_json

FIELDS = 512
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


async def order_of(request: Request, menu: Menu) -> Order:
    """The order in a request's body, which is JSON or a form. Raises ApiError."""
    bounds = menu.options.bounds
    kind = _kind(request)
    if kind == "application/json":
        return menu.order(read_json(await body_of(request, bounds)), strict=True)
    if kind in FORMS:
        return menu.order(read_form(await form_of(request, bounds)), strict=False)
    raise ApiError(415, f"content-type: want application/json or a form, got {kind[:60]!r}",
                   code="unsupported_media_type")  # fmt: skip


async def body_of(request: Request, bounds: Bounds) -> bytes:
    """The whole body. Raises ApiError when it is too long (413) or too slow (408)."""
    most = bounds.body_bytes
    too_long = ApiError(413, f"body: this server takes at most {most} bytes", code="body_too_large")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and (len(told) > 18 or int(told) > most):
        raise too_long

    async def read() -> bytes:
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > most:
                raise too_long
        return bytes(content)

    try:
        return await asyncio.wait_for(read(), bounds.body_s)
    except asyncio.TimeoutError:
        text = f"body: did not arrive within {bounds.body_s:g} s"
        raise ApiError(408, text, code="body_too_slow") from None


async def form_of(request: Request, bounds: Bounds) -> list[tuple[str, str]]:
    """The texts of a form, in order. Raises ApiError for a file among them."""
    content = await body_of(request, bounds)

    async def once() -> AsyncIterator[bytes]:
        yield content
        yield b""

    limits: dict[str, Any] = {"max_fields": FIELDS, "max_part_size": bounds.body_bytes}
    try:
        if _kind(request) == FORMS[0]:
            form = await MultiPartParser(request.headers, once(), max_files=4, **limits).parse()  # type: ignore[arg-type]
        else:
            form = await FormParser(request.headers, once(), **limits).parse()  # type: ignore[arg-type]
    except (MultiPartException, FormParserError, UnicodeError, LookupError) as error:
        words = getattr(error, "message", "") or "not a valid form"
        raise ApiError(400, f"body: {words}", code="invalid_form") from None
    pairs = []
    for name, value in form.multi_items():
        if not isinstance(value, str):
            await form.close()
            text = "is a file; this model draws from words alone, leave it out"
            raise wrong(name[:60], text, "unsupported_field")
        pairs.append((name, value))
    return pairs


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
