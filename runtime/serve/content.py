"""The files of a video: the whole MP4 with ranges, the MP4 while it grows, and the record of the search."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from runtime.serve.errors import ApiError, not_found
from runtime.serve.jobs import ID, State
from runtime.serve.journal import follow
from runtime.serve.live import QUIET_S, Live
from runtime.serve.sending import Following
from runtime.serve.service import Served, Service

MP4: dict[str, Any] = {
    "content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}},
    "description": "fragmented MP4",
}
NO_STORE = {"Cache-Control": "no-store"}
TRACE_TRIES = 20  # the worker may be writing it
VideoName = Annotated[str, Path(pattern=ID)]
router = APIRouter(prefix="/v1/videos/{name}", tags=["videos"])


@router.get("/content", response_class=Response, responses={200: MP4, 206: MP4},
            summary="Download a finished video")  # fmt: skip
async def content(
    name: VideoName, request: Request, service: Served, variant: Literal["video"] = "video"
) -> Response:
    """One range at most. 409 until the video is complete: what there is of it is at ``/stream``."""
    live = service.desk.look(name)
    if live.job.state is not State.DONE:
        how = "is still being made" if live.job.open else f"was not finished ({live.job.reason})"
        text = f"the video {how}; GET /v1/videos/{name}/stream has what there is of it"
        raise ApiError(409, text, code="video_not_complete")
    return whole_video(live, request, service)


router.head("/content", include_in_schema=False)(content)


def whole_video(live: Live, request: Request, service: Service) -> Response:
    """A finished video, or the range of it that was asked for. Raises ApiError (404, 416)."""
    size = live.job.bytes
    try:
        there = live.video.stat().st_size >= size
    except OSError:
        there = False
    if not there:
        raise not_found(live.job.id)
    tag = f'"{live.job.id}-{size}"'
    headers = {
        "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes", "ETag": tag, "X-Video-Id": live.job.id,
        "Content-Disposition": f'inline; filename="{live.job.id}.mp4"',
    }  # fmt: skip
    if tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range", "") if request.method != "POST" else ""
    if request.headers.get("if-range", tag) != tag:
        asked = ""
    span = one_range(asked, size)
    if span is None:
        return ApiError(416, f"range: this video has {size} bytes", code="range_not_satisfiable",
                        headers={"Content-Range": f"bytes */{size}"}).response()  # fmt: skip
    first, end = span
    partial = (first, end) != (0, size)
    headers |= {"Content-Length": str(end - first)}
    if partial:
        headers |= {"Content-Range": f"bytes {first}-{end - 1}/{size}"}
    status = 206 if partial else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="video/mp4")
    pieces = follow(live.video, lambda: (end, True), live.bell, first, QUIET_S)
    return Following(pieces, service.streams, service.options.bounds.stalled_s,
                     media_type="video/mp4", headers=headers, status_code=status)  # fmt: skip


def one_range(asked: str, size: int) -> tuple[int, int] | None:
    """[first, end) of a ``Range`` header; all of it for a header that is absent, strange or names several; None: 416."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", asked.replace(" ", ""))
    if not found or found[0] == "bytes=-":
        return 0, size
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    if int(first) >= size:
        return None
    if last and int(last) < int(first):
        return 0, size
    return int(first), min(size, int(last) + 1) if last else size


@router.get("/stream", response_class=Response, responses={200: MP4}, summary="Watch it grow")
async def stream(
    name: VideoName,
    service: Served,
    cancel_on_disconnect: Annotated[bool, Query(description="hanging up stops the job")] = False,
) -> Response:
    """From the first frame on, each chunk as soon as it is settled; ends with the job."""
    desk = service.desk
    live = desk.look(name)

    def empty() -> ApiError:
        return ApiError(409, f"there is no frame of the video: {live.job.reason}", code="no_frames")

    def left() -> None:
        if cancel_on_disconnect:
            desk.cancel(name, "the client went away")

    return Following(
        live.video_bytes(), service.streams, service.options.bounds.stalled_s,
        media_type="video/mp4", headers=NO_STORE | {"X-Accel-Buffering": "no"}, empty=empty, left=left,
    )  # fmt: skip


@router.get("/trace", response_class=Response, summary="Read the search so far",
            responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}})  # fmt: skip
async def trace(name: VideoName, service: Served) -> Response:
    """Every candidate of every chunk, its scores and its picture: the JSON that lies on disk, valid at any time."""
    live = service.desk.look(name)
    for _ in range(TRACE_TRIES):
        try:
            found = await asyncio.to_thread(live.trace.read_bytes)
        except FileNotFoundError:
            raise ApiError(409, "nothing was drawn for this video yet", code="no_trace") from None
        if not live.job.open or await asyncio.to_thread(_whole, found):
            return Response(found, media_type="application/json", headers=NO_STORE)
        await asyncio.sleep(0.01)
    raise ApiError(503, "the trace is being written; try again", code="busy", retry_after_s=1)


def _whole(content: bytes) -> bool:
    """Whether the worker was not in the middle of writing."""
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
