"""What machines ask: is it up, what does it serve, how is it doing."""

from __future__ import annotations

import time

from fastapi import APIRouter, Response

from runtime.serve.bodies import Health, Model, Models
from runtime.serve.service import Served

router = APIRouter()
STARTED = int(time.time())


@router.get("/health", responses={503: {"model": Health}}, summary="Whether videos can be ordered")
async def health(service: Served, response: Response) -> Health:
    """200 when the worker is alive and has made a chunk to warm up; needs no key."""
    state = service.desk.state
    response.status_code = 200 if state == "ready" else 503
    response.headers["Cache-Control"] = "no-store"
    return Health.model_validate({"state": state})


@router.get("/metrics", response_class=Response, summary="Numbers for Prometheus",
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})  # fmt: skip
async def metrics(service: Served) -> Response:
    """Needs the key, where there is one: it tells what people do here."""
    return Response(
        service.metrics.render(), headers={"Content-Type": service.metrics.content_type}
    )


@router.get("/v1/models", summary="The model that is served")
async def models(service: Served) -> Models:
    """One; its size and pace are known once it is loaded."""
    desk = service.desk
    size, fps = (desk.size, desk.ready["fps"]) if desk.ready else (None, None)
    return Models(data=[Model(id=service.options.model, created=STARTED, size=size, fps=fps)])
