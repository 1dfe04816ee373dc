"""What clients send and get, as OpenAPI describes it. The names are OpenAI's; ``search`` and ``settings`` are ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.serve.jobs import CODES, ID, STATUS, Job, State
from runtime.settings import POLICIES, PROMPT_CHARACTERS

NUMERIC = r"^[0-9]{1,6}(\.[0-9]{1,6})?$"
Prompt = Annotated[str, Field(min_length=1, max_length=PROMPT_CHARACTERS)]
VideoId = Annotated[str, Field(pattern=ID)]
Count = Annotated[int, Field(ge=1, le=10_000)]


class Closed(BaseModel):
    """An object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Scene(Closed):
    """A prompt and the chunk from which on it holds."""

    chunk: Annotated[int, Field(ge=1, le=1_000_000)]
    prompt: Prompt


class Search(Closed):
    """How hard to look for a better video. What is absent is as the server was started."""

    policy: Literal[POLICIES] | None = None  # type: ignore[valid-type]
    histories: Annotated[Count | None, Field(description="K, histories kept after a chunk")] = None
    expansions: Annotated[Count | None, Field(description="M, candidates per history")] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    propagation: Annotated[bool | None, Field(description="noise remembers its parent's")] = None
    beta: Annotated[float | None, Field(ge=-1, le=1, description="weight of that noise")] = None
    pruning: bool | None = None
    sinking: Annotated[bool | None, Field(description="remember chunks that leave")] = None
    tau: Annotated[float | None, Field(ge=0, le=1, description="cap of the image reward")] = None
    quality_threshold: Annotated[float | None, Field(ge=-1e6, le=1e6)] = None
    transition_threshold: Annotated[float | None, Field(ge=-1e6, le=1e6)] = None
    ema_alpha: Annotated[float | None, Field(ge=0, le=1)] = None
    reward_stride: Annotated[Count | None, Field(description="frames per judged frame")] = None
    reward_window: Annotated[Count | None, Field(description="chunks a reward sees")] = None
    window: Annotated[int | None, Field(ge=3, le=10_000, description="latent frames")] = None
    horizon: Annotated[Count | None, Field(description="chunks that may be taken back")] = None


Setting = bool | int | float | str


class CreateVideo(Closed):
    """One video, please."""

    prompt: Prompt
    model: Annotated[str | None, Field(max_length=200, description="the one served")] = None
    seconds: Annotated[
        float | Annotated[str, Field(pattern=NUMERIC)] | None, Field(description="length")
    ] = None
    size: Annotated[str | None, Field(max_length=20, description="WIDTHxHEIGHT, as served")] = None
    scenes: Annotated[list[Scene], Field(max_length=1000)] = []
    search: Search = Search()
    settings: Annotated[
        dict[str, Setting],
        Field(max_length=64, description="settings by dotted name, as in noise.mode"),
    ] = {}
    priority: Annotated[int, Field(ge=-8, le=8)] = 0
    deadline_s: Annotated[float | None, Field(gt=0, le=86_400)] = None
    budget_fps: Annotated[float | None, Field(gt=0, le=1000)] = None


class JobError(BaseModel):
    """Why there is no finished video."""

    code: str
    message: str


class Video(BaseModel):
    """A job, as OpenAI's clients read it, and some fields of ours behind."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    prompt: str
    seconds: str
    size: str
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    error: JobError | None = None
    remixed_from_video_id: None = None
    scenes: list[Scene] = []
    settings: dict[str, Any] = {}
    priority: int = 0
    chunks: int | None = None
    settled_chunks: int = 0
    frames: int | None = None
    bytes: int = 0
    degraded: list[str] = []


class VideoPage(BaseModel):
    """Some of the jobs; ``after=last_id`` asks for the next."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """The video and its files are gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "stream-t1-runtime"
    size: str | None = None
    fps: int | None = None


class Models(BaseModel):
    """All of them: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether videos can be ordered."""

    state: Literal["starting", "ready", "silent", "stopping", "gone"]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str | None
    param: str | None


class Error(BaseModel):
    """Every answer that is not the one hoped for."""

    error: ErrorBody


def video_of(job: Job, keep_hours: float = 0.0) -> Video:
    """A job as a client sees it."""
    order = job.order
    kept = keep_hours and job.ended
    why = None
    if code := CODES.get(job.state):
        why = JobError(code=code, message=job.reason or "no reason was given")
    return Video(
        id=job.id,
        model=job.model,
        status=STATUS[job.state],  # type: ignore[arg-type]
        progress=job.progress,
        prompt=order.prompts[0][1],
        seconds=f"{order.seconds:g}",
        size=job.size,
        created_at=int(job.created),
        completed_at=int(job.ended) if job.ended and job.state is State.DONE else None,
        expires_at=int(job.ended + keep_hours * 3600) if kept and job.ended else None,
        error=why,
        scenes=[Scene(chunk=chunk, prompt=prompt) for chunk, prompt in order.prompts[1:]],
        settings=order.settings,
        priority=order.priority,
        chunks=job.chunks,
        settled_chunks=job.settled,
        frames=job.frames,
        bytes=job.bytes,
        degraded=list(job.degraded),
    )
