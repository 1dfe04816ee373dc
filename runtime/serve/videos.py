"""Ordering videos, looking at them and taking them back: the calls that OpenAI's client makes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.requests import ClientDisconnect

from runtime.serve.bodies import CreateVideo, Deleted, Video, VideoPage, video_of
from runtime.serve.content import MP4, whole_video
from runtime.serve.errors import ApiError
from runtime.serve.jobs import CODES, ID, State
from runtime.serve.reading import order_of
from runtime.serve.sending import unless_gone
from runtime.serve.service import Served, Service

POLL_MS = "500"  # how often OpenAI's ``poll`` asks
router = APIRouter(prefix="/v1/videos", tags=["videos"])
VideoName = Annotated[str, Path(pattern=ID, description="as POST /v1/videos answered")]
REF = {"schema": {"$ref": f"#/components/schemas/{CreateVideo.__name__}"}}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": REF, "multipart/form-data": REF},
    }
}


@router.post("", openapi_extra=BODY, summary="Order a video")
async def create(request: Request, service: Served) -> Video:
    """Answers at once with the job; ask for it again, or watch its stream, its events or its page."""
    order = await order_of(request, service.desk.menu)
    return _shown(service, await service.desk.submit(order))


@router.post("/sync", openapi_extra=BODY, response_class=Response, responses={200: MP4},
             summary="Order a video and wait for it")  # fmt: skip
async def create_and_wait(request: Request, service: Served) -> Response:
    """Answers with the MP4 itself. Who hangs up cancels the video."""
    desk = service.desk
    with service.streams.take():
        order = await order_of(request, desk.menu)
        job = await desk.submit(order)
        live = desk.look(job.id)
        if not await unless_gone(request.receive, live.ended()):
            desk.cancel(job.id, "the client went away")
            raise ClientDisconnect
    job = live.job
    if job.state is State.DELETED:
        raise ApiError(410, "the video was deleted while it was made", code="deleted")
    if job.state is not State.DONE:
        once = {"X-Should-Retry": "false"}  # OpenAI's client would order it again
        raise ApiError(500, f"{job.id}: {job.reason}", code=CODES[job.state], headers=once)
    return whole_video(live, request, service)


@router.get("", summary="List videos")
async def page(
    service: Served,
    after: Annotated[
        str | None, Query(pattern=ID, description="last_id of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoPage:
    """Newest first, unless ``order`` is asc."""
    jobs, more = service.desk.page(limit, after, order == "desc")
    shown = [_shown(service, job) for job in jobs]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return VideoPage(data=shown, first_id=first, last_id=last, has_more=more)


@router.get("/{name}", summary="Look at a video's job")
async def retrieve(name: VideoName, service: Served, response: Response) -> Video:
    """How far it is; ``error`` says why there is no video."""
    response.headers["openai-poll-after-ms"] = POLL_MS
    return _shown(service, service.desk.find(name))


@router.delete("/{name}", summary="Take a video back")
async def delete(name: VideoName, service: Served) -> Deleted:
    """Stops a running job within a chunk; its files are gone."""
    await service.desk.delete(name)
    return Deleted(id=name)


def _shown(service: Service, job: Any) -> Video:
    return video_of(job, service.options.keep_hours)
