"""Reward models that raise, are late or run out of memory: what becomes of the clips that they did not judge.

A model that raises is asked once more, and then about each clip alone. Where memory runs out it is asked about half as
many clips at once. A clip that still has no score gets NaN, which is never selected, and an ``Incident`` says why. With a
deadline a model runs on a thread of its own: what is not there in time is NaN, and dropped when it comes.

Legend: B clips.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from runtime.portions import OUT_OF_MEMORY, release
from runtime.types import Clip, Incident, Picking, RewardModel, row_ranges

log = logging.getLogger(__name__)

REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores [B], NaN where there is none, and why there is none."""

    scores: Tensor
    incidents: tuple[Incident, ...] = ()


class Guarded:
    """A reward model that always answers. What went wrong is kept until ``take`` asks for it."""

    def __init__(self, model: RewardModel, role: str, deadline_s: float = 0.0) -> None:
        """``role`` is what incidents call it; ``deadline_s`` 0 waits for as long as it takes, on the caller's thread."""
        self.model, self.role, self.deadline_s = model, role, deadline_s
        self.horizon = model.horizon
        self.most_rows = 0  # 0: any number; falls when memory runs out, and stays
        self._errand = Errand(f"{role} reward") if deadline_s else None
        self._incidents: list[Incident] = []

    @property
    def end(self) -> float:
        """When what begins now is late, on the monotonic clock."""
        return time.monotonic() + (self.deadline_s or math.inf)

    def score(self, clip: Clip, end: float | None = None) -> Tensor:
        """Scores [B] of any float dtype, NaN for clips that the model could not judge.

        Parts of one batch, asked for one after the other, share an ``end``.
        """
        if self._errand is None:
            answer = self._asked(clip)
        else:
            there = self._errand.run(lambda: self._asked(clip), clip.frames, end or self.end)
            answer = there or self._out(clip, "late", f"not there after {self.deadline_s} s")
        self._incidents += answer.incidents
        return answer.scores

    def take(self) -> tuple[Incident, ...]:
        """What went wrong since the last time, its rows those of the clips."""
        taken = tuple(self._incidents)
        self._incidents.clear()
        return taken

    def _asked(self, clip: Clip) -> Answer:
        answer = self._in_parts(clip, self.most_rows, tries=2)
        return replace(answer, incidents=merged(answer.incidents))

    def _in_parts(self, clip: Clip, size: int, tries: int) -> Answer:
        """The answers to at most ``size`` clips at a time, as one; 0 leaves them together."""
        rows = len(clip.frames)
        if not 0 < size < rows:
            return self._judged(clip, tries)
        scores, incidents = [], []
        for part in row_ranges(rows, size):
            answer = self._judged(clip_rows(clip, part), tries)
            scores.append(answer.scores)
            incidents += [moved(incident, part.start) for incident in answer.incidents]
        return Answer(torch.cat([x.to(scores[0].device) for x in scores]), tuple(incidents))

    def _judged(self, clip: Clip, tries: int) -> Answer:
        """The model's answer within so many ``tries``, else those to smaller parts."""
        rows, kind, reason = len(clip.frames), "", ""
        # What is tried next must not find the frames of a traceback in memory, so it begins after the handlers.
        while tries and kind != "memory":
            try:
                return Answer(one_score_each(self.model.score(clip), rows, self.role))
            except OUT_OF_MEMORY as error:
                kind, reason = "memory", told(error)
            except Exception as error:  # a model is anybody's code; what it may raise nobody knows
                kind, reason = "raised", told(error)
                tries -= 1
        if rows == 1:
            return self._out(clip, kind, reason)
        if kind == "raised":
            return self._in_parts(clip, 1, tries=1)
        release(clip.frames.device)
        self.most_rows = rows // 2
        log.warning("%s reward: no memory for %d clips at once, %d from now on", self.role, rows, rows // 2)  # fmt: skip
        return self._in_parts(clip, rows // 2, tries)

    def _out(self, clip: Clip, kind: str, reason: str) -> Answer:
        rows = len(clip.frames)
        incident = Incident(self.role, clip.chunk, tuple(range(rows)), reason, kind)
        return Answer(torch.full((rows,), math.nan), (incident,))


class GuardedPicking(Guarded):
    """The same of a model that picks its frames."""

    model: Picking  # type: ignore[assignment]  # and a RewardModel

    def picks(self, frames: int, fps: int) -> Sequence[int]:
        return self.model.picks(frames, fps)


def guarded(model: RewardModel, role: str, deadline_s: float = 0.0) -> Guarded:
    """``model`` as one that always answers; a model that picks frames still does."""
    kind = GuardedPicking if isinstance(model, Picking) else Guarded
    return kind(model, role, deadline_s)


class Errand:
    """Something to do within a time, on a thread that is begun with the first and ends with this object."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stream: torch.cuda.Stream | None = None
        self._last: Future[Answer] | None = None

    def run(self, work: Callable[[], Answer], frames: Tensor, end: float) -> Answer | None:
        """What ``work`` returns or raises; None when it has not by ``end``, work of the device included.

        Late work is left alone until it ends, and nothing new begins before. ``frames`` are what it reads.
        """
        if self._last is not None and not _done(self._last, end) or time.monotonic() >= end:
            return None
        if self._thread is None:
            # A daemon: nobody waits at the end of the process for what hangs.
            self._thread = threading.Thread(target=_serve, args=(self._jobs,), daemon=True, name=self.name)  # fmt: skip
            weakref.finalize(self, self._jobs.put, None)
            self._thread.start()
        future: Future[Answer] = Future()
        elsewhere, grad = self._beside(frames), torch.is_grad_enabled()

        def job() -> None:
            try:
                with torch.set_grad_enabled(grad), elsewhere:
                    answer = work()
            except BaseException as error:  # the caller's to judge
                future.set_exception(error)
            else:
                future.set_result(answer)

        self._last = future
        self._jobs.put(job)
        return future.result() if _done(future, end) else None

    def _beside(self, frames: Tensor) -> contextlib.AbstractContextManager[None]:
        """A stream for the work, which must not hold up the caller's; left when the device has done it."""
        if not frames.is_cuda:
            return contextlib.nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(frames.device)
        frames.record_stream(self._stream)  # the caller may let go of them before the work is done
        return _on(self._stream, torch.cuda.current_stream(frames.device).record_event())


def _done(future: Future[Answer], end: float) -> bool:
    return bool(wait([future], max(0.0, end - time.monotonic())).done)


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream, after: torch.cuda.Event) -> Iterator[None]:
    stream.wait_event(after)
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        yield
        stream.record_event().synchronize()


def _serve(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # and with it the frames, while nothing is to do


def clip_rows(clip: Clip, rows: range) -> Clip:
    """Some neighbouring clips of a batch. A twin outside them is none."""
    twins = [clip.twins[row] for row in rows] if clip.twins else []
    columns = [_firsts(column) for column in zip(*twins, strict=True)]
    mine = tuple(zip(*columns, strict=True)) if columns else tuple(() for _ in twins)
    return replace(clip, frames=clip.frames[rows.start : rows.stop], twins=mine)


def _firsts(owners: Sequence[int]) -> list[int]:
    """For every row the first row with the same owner."""
    return [owners.index(owner) for owner in owners]


def one_score_each(scores: Tensor, rows: int, role: str) -> Tensor:
    """``scores`` [B], or RuntimeError for another shape."""
    if scores.shape != (rows,):
        raise RuntimeError(
            f"{role} reward: want one score per clip [{rows}], got {list(scores.shape)}"
        )
    return scores


def moved(incident: Incident, rows: int) -> Incident:
    """The incident of a part that begins at so many ``rows``."""
    return replace(incident, rows=tuple(row + rows for row in incident.rows))


def merged(incidents: Sequence[Incident]) -> tuple[Incident, ...]:
    """One incident for all rows with the same reason."""
    rows: dict[Incident, list[int]] = {}
    for incident in incidents:
        rows.setdefault(replace(incident, rows=()), []).extend(incident.rows)
    return tuple(replace(one, rows=tuple(its)) for one, its in rows.items())


def told(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"[:REASON_CHARACTERS].removesuffix(": ")
