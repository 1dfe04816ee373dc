"""The front of many replicas: the contract of a single server, each request with the replica that it belongs to.

An order goes to the least busy replica, and on to the next one when that is full; what is about a video goes to the
replica that has it; the list, the health and the metrics are put together. The front has the key and the cookies, and
shows a key of its own to the replicas, who know no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from runtime.serve import errors, session
from runtime.serve.auth import Keyring
from runtime.serve.cluster.asking import Answer, Asked, Unanswered, Unreachable, asking
from runtime.serve.cluster.directory import Directory, Replica
from runtime.serve.cluster.merging import one_exposition, one_health, one_page
from runtime.serve.cluster.slots import slot_in
from runtime.serve.cluster.sockets import relay_socket
from runtime.serve.errors import ApiError, not_found
from runtime.serve.gate import Gate
from runtime.serve.jobs import ID
from runtime.serve.logs import REQUEST
from runtime.serve.options import ServeOptions
from runtime.serve.reading import body_of
from runtime.serve.sending import unless_gone

log = logging.getLogger("runtime.serve.cluster")
GLANCE_S = 0.5  # between two looks at who is there
AWAY_RETRY_S = 3
ORDERS = ("/v1/videos", "/v1/videos/sync")
# What is between a client and the front, or has been dealt with there.
NOT_ASKED = {b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
             b"expect", b"content-length", b"authorization", b"cookie", b"origin", b"x-request-id",
             b"x-forwarded-prefix", b"proxy-authorization", b"proxy-connection"}  # fmt: skip
NOT_ANSWERED = {b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server",
                b"x-request-id", b"x-content-type-options", b"referrer-policy"}  # fmt: skip
router = APIRouter()


class Cluster(Protocol):
    """The replicas, asked all at once. One that died is left out; one that is late is a TimeoutError."""

    async def reports(self) -> list[dict[str, Any]]:
        """``House.report`` of each."""
        ...

    async def pages(
        self, limit: int, behind: tuple[float, str] | None, newest_first: bool
    ) -> list[list[dict[str, Any]]]:
        """``House.page`` of each."""
        ...

    async def created(self, name: str) -> float | None:
        """``House.created`` of the one that has the video."""
        ...

    async def metrics(self) -> dict[str, str]:
        """``House.metrics`` of each, by the replica's name."""
        ...


@dataclass(frozen=True, slots=True)
class Facade:
    """What the front's routes share; ``options`` and ``keyring`` are a single server's."""

    options: ServeOptions
    keyring: Keyring
    cluster: Cluster
    directory: Directory
    pass_key: str  # shown to the replicas


def build_front(options: ServeOptions, cluster: Cluster, pass_key: str, seal: bytes) -> FastAPI:
    """The front as an ASGI application. Several of one cluster need the same ``pass_key`` and ``seal`` (of cookies)."""
    facade = Facade(options, Keyring(options.key, seal), cluster, Directory(), pass_key)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await _look(facade)
        watching = app.state.watching = asyncio.create_task(_watch(facade))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = facade
    app.include_router(session.router)
    app.include_router(router)
    app.mount("/", Forward(facade))
    errors.install(app)
    app.add_exception_handler(TimeoutError, _late)
    app.add_middleware(Gate, options=options, keyring=facade.keyring)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Range", "X-Request-Id"],
        )  # fmt: skip
    return app


async def _late(_: Request, error: Exception) -> Response:
    text = "the replicas do not answer in time"
    return ApiError(503, text, code="replicas_late", retry_after_s=AWAY_RETRY_S).response()


async def _watch(facade: Facade) -> None:
    while True:
        await asyncio.sleep(GLANCE_S)
        await _look(facade)


async def _look(facade: Facade) -> None:
    try:
        facade.directory.update(await facade.cluster.reports(), time.monotonic())
    except TimeoutError as error:  # what was known stays
        log.warning("the replicas do not report: %s", error)


@router.get("/health")
async def health(request: Request) -> Response:
    """200 when some replica can take orders; tells how each is doing."""
    told = one_health(request.app.state.service.directory.everybody())
    status = 200 if told["state"] == "ready" else 503
    return JSONResponse(told, status, {"Cache-Control": "no-store"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """The metrics of every replica, told apart by a label."""
    text = one_exposition(await request.app.state.service.cluster.metrics())
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/v1/videos")
async def page(
    request: Request,
    after: Annotated[str | None, Query(pattern=ID)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The videos of all replicas, newest first unless ``order`` is asc."""
    facade: Facade = request.app.state.service
    behind = None
    if after is not None:
        moment = await facade.cluster.created(after)
        if moment is None:
            raise not_found(after)
        behind = (moment, after)
    newest_first = order == "desc"
    found = await facade.cluster.pages(limit + 1, behind, newest_first)
    return JSONResponse(one_page(found, limit, newest_first))


class Forward:
    """ASGI: hands a request on to a replica and the answer back, piece by piece."""

    def __init__(self, facade: Facade) -> None:
        self._facade = facade
        self._directory = facade.directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] == "websocket":
            return await relay_socket(scope, receive, send, lambda: self._place(path), self._headers(scope))  # fmt: skip
        request = Request(scope, receive)
        if request.method == "POST":
            body = await body_of(request, self._facade.options.bounds)
            asked = self._asked(scope, path, body)
            work = self._order(asked, send) if path in ORDERS else self._pass(path, asked, send)
        else:
            work = self._pass(path, self._asked(scope, path), send)
        if not await unless_gone(receive, work):
            raise ClientDisconnect

    def _asked(self, scope: Scope, path: str, body: bytes = b"") -> Asked:
        query = scope.get("query_string", b"")
        target = quote(path, safe="/%:@!$&'()*+,;=~-._").encode() + (b"?" + query if query else b"")
        return Asked(scope["method"], target, self._headers(scope), body)

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        passed = [(name, value) for name, value in scope["headers"] if name not in NOT_ASKED]
        ours = {
            "authorization": f"Bearer {self._facade.pass_key}",
            "x-request-id": REQUEST.get() or "",
            "x-forwarded-prefix": scope.get("root_path", ""),
        }
        return [*passed, *((name.encode(), value.encode()) for name, value in ours.items() if value)]  # fmt: skip

    def _place(self, path: str) -> Replica:
        """Who a request belongs to. Raises ApiError: 503 while a video's replica is replaced, 404 when it is not."""
        slot = slot_in(path)
        if slot is None:
            if found := self._directory.for_orders() or self._directory.everybody():
                return found[0]
            raise ApiError(503, "no replica is there", code="no_replica", retry_after_s=5)
        if holder := self._directory.holder(slot):
            return holder
        if self._directory.away(slot, time.monotonic()):
            text = (
                "the replica that had this video is gone; another one goes on with it in a moment"
            )
            raise ApiError(503, text, code="replica_away", retry_after_s=AWAY_RETRY_S)
        text = "no replica has this video: there is none of that id, or its replica is gone and its folder with it"
        raise ApiError(404, text, code="video_not_found")

    async def _pass(self, path: str, asked: Asked, send: Send) -> None:
        replica = self._place(path)
        try:
            async with asking(replica.host, replica.port, _to(replica, asked)) as answer:
                await _relay(answer, send)
        except (Unreachable, Unanswered):
            self._directory.lost(replica)
            raise _away() from None
        except ValueError as error:
            raise ApiError(400, f"headers: {error}", code="invalid_header") from None

    async def _order(self, asked: Asked, send: Send) -> None:
        """Ask one after the other until somebody takes the order; 429 when all are full."""
        waits: list[int] = []
        tried: set[str] = set()
        while found := [one for one in self._directory.for_orders() if one.name not in tried]:
            replica = found[0]
            tried.add(replica.name)
            promised = self._directory.promise(replica)
            try:
                async with asking(replica.host, replica.port, _to(replica, asked)) as answer:
                    if answer.status >= 400:
                        self._directory.refused(promised)
                    if answer.status == 503:
                        continue
                    if answer.status == 429:
                        waits.append(_retry_after(answer))
                        continue
                    return await _relay(answer, send)
            except Unreachable:
                self._directory.lost(replica)
            except Unanswered:
                self._directory.lost(replica)
                raise _away(
                    "it died with this order; look at the list before you order again"
                ) from None
            except ValueError as error:
                raise ApiError(400, f"headers: {error}", code="invalid_header") from None
        if waits:
            wait_s = min(waits)
            text = f"every replica has as many videos as it may; try again in {wait_s} s"
            raise ApiError(429, text, code="too_many_jobs", retry_after_s=wait_s)
        text = "no replica can take an order now"
        raise ApiError(503, text, code="no_replica", retry_after_s=5)


def _away(what: str = "another one goes on with its videos in a moment") -> ApiError:
    text = f"the replica does not answer; {what}"
    return ApiError(503, text, code="replica_away", retry_after_s=AWAY_RETRY_S)


def _to(replica: Replica, asked: Asked) -> Asked:
    host = f"[{replica.host}]" if ":" in replica.host else replica.host
    place = (b"host", f"{host}:{replica.port}".encode())
    return Asked(asked.method, asked.target, [place, *asked.headers], asked.body)


def _retry_after(answer: Answer) -> int:
    told = {name.lower(): value for name, value in answer.headers}.get(b"retry-after", b"")
    return int(told) if told.isdigit() else 5


def _from_here(name: bytes, value: bytes) -> bytes:
    """A header as the client should see it: a redirection names a path, and not the replica."""
    return (
        urlsplit(value)._replace(scheme=b"", netloc=b"").geturl() if name == b"location" else value
    )


async def _relay(answer: Answer, send: Send) -> None:
    """Raises ConnectionError when it breaks off, which ends the connection: the client sees that it is not whole."""
    kept = [(name.lower(), value) for name, value in answer.headers]
    kept = [(name, _from_here(name, value)) for name, value in kept if name not in NOT_ANSWERED]
    await send({"type": "http.response.start", "status": answer.status, "headers": kept})
    async for piece in answer.pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
