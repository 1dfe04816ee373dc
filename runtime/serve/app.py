"""``build_app(backend, options)``: the server as an ASGI application, for the door, for Ray Serve and for mounting.

A mounted application's lifespan is not run by the outer one; that has to enter it:

    video = build_app(WorkerLink(["--preset", "sprites"]), ServeOptions(folder=Path("videos")))

    @asynccontextmanager
    async def lifespan(app):
        async with video.router.lifespan_context(video):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/video", video)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

import runtime
from runtime.serve import content, errors, events, health, pages, session, videos
from runtime.serve.auth import Keyring
from runtime.serve.backend import Backend
from runtime.serve.bodies import CreateVideo, Error
from runtime.serve.desk import Desk
from runtime.serve.gate import Gate
from runtime.serve.metrics import Metrics
from runtime.serve.options import ServeOptions
from runtime.serve.service import Service, Slots

ANYTHING_ELSE: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "the request cannot be answered"},
    "5XX": {"model": Error, "description": "the server cannot answer"},
}
ROUTERS = (videos.router, content.router, events.router, health.router, session.router, pages.router)  # fmt: skip
REF = "#/components/schemas/{model}"


def build_app(backend: Backend, options: ServeOptions) -> FastAPI:
    """One server in front of ``backend``. Starts nothing: its lifespan does."""
    service = build_service(backend, options)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.desk.start()
        try:
            yield
        finally:
            await service.desk.stop(options.grace_s)
            await service.desk.close()

    app = FastAPI(redirect_slashes=False, title="Stream-T1", version=runtime.__version__, lifespan=lifespan,
                  docs_url=None, redoc_url=None, responses=ANYTHING_ELSE)  # fmt: skip
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(Gate, options=options, keyring=service.keyring)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID", "Range", "X-Request-Id"],
        )  # fmt: skip
    described: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not described:
            described.update(describe(app))
        return described

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def build_service(backend: Backend, options: ServeOptions) -> Service:
    """What the routes share."""
    metrics, bounds = Metrics(), options.bounds
    return Service(
        options=options,
        desk=Desk(backend, options, metrics),
        metrics=metrics,
        keyring=Keyring(options.key),
        streams=Slots("streams", bounds.streams),
        sockets=Slots("sockets", bounds.sockets),
        page=pages.page_files(),
    )


def describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI of ``app``, with the body that is read by hand and without an answer that is never given."""
    whole = get_openapi(title=app.title, version=app.version, routes=app.routes,
                        summary="Beam search over the chunks of a streaming video model.")  # fmt: skip
    schemas = whole["components"]["schemas"]
    body = CreateVideo.model_json_schema(ref_template=REF)
    schemas |= body.pop("$defs", {})
    schemas[CreateVideo.__name__] = body
    for path in whole["paths"].values():
        for call in path.values():
            call["responses"].pop("422", None)  # what is wrong is a 400 here
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    whole["security"] = [{}, {"key": []}]
    return whole
