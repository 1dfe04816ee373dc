"""A stand-in for the server that the page talks to: its routes, with events that a test sends by hand."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

from tests.http_thread import serving_app

PAGE = Path(__file__).resolve().parent.parent / "runtime" / "serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; base-uri 'self'; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'"
)
Event = dict[str, Any]


@dataclass
class FakeJob:
    """What the server knows of one video, and who listens."""

    video: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list)  # of the file
    whole: bool = False
    breaks: int = 0  # connections that end in the middle of the file
    trace: dict[str, Any] | None = None
    sockets: list[WebSocket] = field(default_factory=list)
    heard: list[Any] = field(default_factory=list)  # messages of the page
    connections: int = 0


class StandIn:
    """Serves the page and answers it. Every method may be called from the test's own thread."""

    def __init__(self) -> None:
        self.jobs: dict[str, FakeJob] = {}
        self.ordered: list[dict[str, Any]] = []  # bodies of POST
        self.deleted: list[str] = []
        self.key: str | None = None
        self.app = self._routes()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.address = ""

    def url(self, path: str = "") -> str:
        return self.address + path

    def job(self, name: str, prompt: str, **more: Any) -> FakeJob:
        video = {"id": name, "prompt": prompt, "status": "in_progress", "progress": 0}
        job = self.jobs[name] = FakeJob(video | {"seconds": "5", "size": "96x96"} | more)
        return job

    def tell(self, job: FakeJob, *events: Event) -> None:
        """Make ``events`` happen: they are kept for those who come later and sent to those who listen."""
        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(self._tell(job, events), self.loop).result(10)

    async def _tell(self, job: FakeJob, events: tuple[Event, ...]) -> None:
        for event in events:
            job.events.append(event)
            for socket in job.sockets:
                await socket.send_json(event)

    def cut(self, job: FakeJob) -> None:
        """Close every socket of a job, as a network does."""
        assert self.loop is not None

        async def close() -> None:
            for socket in list(job.sockets):
                await socket.close(1012)

        asyncio.run_coroutine_threadsafe(close(), self.loop).result(10)

    def _routes(self) -> FastAPI:
        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self.loop = asyncio.get_running_loop()
            yield

        app = FastAPI(lifespan=lifespan)

        @app.middleware("http")
        async def guard(request: Request, call_next: Any) -> Response:
            closed = self.key and request.url.path.startswith("/v1")
            if closed and not self._knows(request):
                return JSONResponse({"error": {"message": "no key"}}, 401)
            answer = await call_next(request)
            answer.headers["Content-Security-Policy"] = POLICY
            return answer

        @app.get("/")
        @app.get("/videos/{name}")
        async def page() -> Response:
            return FileResponse(PAGE / "index.html")

        @app.post("/v1/session", status_code=204)
        async def enter(response: Response) -> None:
            response.set_cookie("session", "good", httponly=True, samesite="strict")

        app.mount("/page", StaticFiles(directory=PAGE))
        self._api(app)
        return app

    def _knows(self, request: Request) -> bool:
        if request.url.path == "/v1/session":
            return request.headers.get("authorization") == f"Bearer {self.key}"
        return request.cookies.get("session") == "good"

    def _api(self, app: FastAPI) -> None:
        @app.get("/v1/videos")
        async def everything() -> dict[str, Any]:
            return {"data": [job.video for job in self.jobs.values()], "has_more": False}

        @app.post("/v1/videos")
        async def order(request: Request) -> dict[str, Any]:
            self.ordered.append(await request.json())
            return self.job("ordered", self.ordered[-1]["prompt"]).video

        @app.get("/v1/videos/{name}")
        async def one(name: str) -> Any:
            return self.jobs[name].video

        @app.delete("/v1/videos/{name}")
        async def remove(name: str) -> dict[str, Any]:
            self.deleted.append(name)
            return {"id": name, "deleted": True}

        @app.get("/v1/videos/{name}/trace")
        async def trace(name: str) -> Response:
            told = self.jobs[name].trace
            return JSONResponse(told, 200 if told else 404)

        @app.get("/v1/videos/{name}/content")
        async def content(name: str) -> Response:
            return Response(b"".join(self.jobs[name].pieces), media_type="video/mp4")

        @app.get("/v1/videos/{name}/stream")
        async def stream(name: str) -> Response:
            return StreamingResponse(_growing(self.jobs[name]), media_type="video/mp4")

        @app.websocket("/v1/videos/{name}/live")
        async def live(socket: WebSocket, name: str) -> None:
            await self._live(socket, self.jobs[name])

    async def _live(self, socket: WebSocket, job: FakeJob) -> None:
        await socket.accept(subprotocol="stream-t1")
        job.connections += 1
        for event in list(job.events):
            await socket.send_json(event)
        job.sockets.append(socket)
        try:
            async for message in socket.iter_json():
                job.heard.append(message)
        finally:
            job.sockets.remove(socket)


async def _growing(job: FakeJob) -> Any:
    sent = 0
    while sent < len(job.pieces) or not job.whole:
        if sent < len(job.pieces):
            if sent and job.breaks:
                job.breaks -= 1
                raise ConnectionResetError
            yield job.pieces[sent]
            sent += 1
        else:
            await asyncio.sleep(0.05)


def until(found: Callable[[], object]) -> None:
    """Return once ``found`` does."""
    end = time.monotonic() + 30
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def serving() -> Iterator[StandIn]:
    """A stand-in on a free port of this machine, in a thread."""
    stand_in = StandIn()
    with serving_app(stand_in.app) as address:
        stand_in.address = address
        yield stand_in
