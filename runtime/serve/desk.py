"""Takes orders, passes them to the worker, and applies what the worker says to the jobs. Lives in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from dataclasses import replace
from pathlib import Path

from runtime.serve import disk
from runtime.serve.backend import Backend, Message, WorkerGone
from runtime.serve.errors import ApiError, not_found, sanitised
from runtime.serve.jobs import OPEN, Job, Order, State, new_job
from runtime.serve.ledger import Ledger
from runtime.serve.live import EVENTS, Live
from runtime.serve.metrics import Metrics
from runtime.serve.options import ServeOptions
from runtime.serve.orders import Menu
from runtime.serve.store import Store

log = logging.getLogger("runtime.serve")
TOLD = ("began", "turn", "settled", "switched", "saved", "done", "failed", "cancelled")
CLEARING_S = 15.0  # a DELETE waits so long for a running job to let go
ANSWER_S = 60.0
TIDY_S = 30.0


class Desk:
    """All jobs of one server. ``start`` and ``stop`` frame it; in between every method may be called at any time."""

    def __init__(self, backend: Backend, options: ServeOptions, metrics: Metrics) -> None:
        self.options = options
        self.ready: Message = {}  # what the worker said when it was
        self._backend = backend
        self._metrics = metrics
        self._phase = "new"  # starting, ready, stopping, gone
        self._live: dict[str, Live] = {}  # the worker has them, or is going to
        self._waiting: list[Live] = []  # of an earlier server, until the worker is ready
        self._last_s = 5.0  # how long the latest job took
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open the folder and start the worker. Raises ValueError or RuntimeError that says what is wrong with them."""
        with contextlib.ExitStack() as undo:
            self._owned = disk.Owned(self.options.folder)
            undo.callback(self._owned.close)
            self._ledger = Ledger(Store(self.options.folder / "jobs.sqlite3"))
            undo.callback(self._ledger.close)
            self._phase = "starting"
            self._restore()
            await self._backend.start(self.hear)
            undo.pop_all()
        self._spawn(self._tidy_forever())

    async def stop(self, grace_s: float) -> None:
        """Take no more orders, let the worker save what it has, and end every stream; again is harmless."""
        self._phase = "stopping"
        await self._backend.stop(grace_s)
        self._abandon("the server was stopped")

    async def close(self) -> None:
        """Let go of the folder, after ``stop``."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ledger.close()
        self._owned.close()

    @property
    def state(self) -> str:
        """starting, ready, silent (no sign of life from the worker), stopping or gone."""
        silent = self._phase == "ready" and not self._backend.alive
        return "silent" if silent else self._phase

    @property
    def unfinished(self) -> int:
        """Videos that are being made or wait."""
        return len(self._live)

    @property
    def menu(self) -> Menu:
        """What can be ordered. Raises ApiError while nothing can."""
        if self.state != "ready":
            raise ApiError(503, f"no videos can be ordered now: the worker is {self.state}",
                           code=f"worker_{self.state}", retry_after_s=5)  # fmt: skip
        return Menu(self.options, self.size)

    @property
    def size(self) -> str:
        return f"{self.ready['width']}x{self.ready['height']}"

    async def submit(self, order: Order) -> Job:
        """Accept an order, or raise ApiError: nobody makes videos now, too many wait, or the disk is full."""
        if crowd := await asyncio.to_thread(disk.crowded, self.options.videos, self.options.bounds):
            raise ApiError(507, crowd, code="disk_full")
        assert self.menu, "is asked again: much may have happened meanwhile"
        if len(self._live) >= (most := self.options.bounds.jobs):
            wait_s = max(1, min(120, round(self._last_s)))
            raise ApiError(429, f"{most} videos are being made or wait, and that is all that may; try again in "
                           f"{wait_s} s", code="too_many_jobs", retry_after_s=wait_s)  # fmt: skip
        job = new_job(order, self.options.model, self.size, self.options.slot)
        folder = self.options.videos / job.id
        try:
            folder.mkdir(mode=0o700)
            self._ledger.add(job)
        except (OSError, RuntimeError) as error:
            disk.remove(folder)
            raise ApiError(507, sanitised(f"the job cannot be kept: {error}"), code="disk_full") from None  # fmt: skip
        live = self._live[job.id] = Live(job, folder)
        try:
            self._hand_over(live)
        except WorkerGone as error:
            self._end(live, State.FAILED, str(error))
            raise ApiError(503, "the worker is gone", code="worker_gone", retry_after_s=5) from None
        return job

    def find(self, name: str) -> Job:
        """A job by its id. Raises ApiError (404)."""
        live = self._live.get(name)
        job = live.job if live else self._ledger.get(name)
        if job is None or job.state is State.DELETED:
            raise not_found(name)
        return job

    def look(self, name: str) -> Live:
        """A job with its files, to follow. Raises ApiError (404)."""
        job = self.find(name)
        return self._live.get(name) or Live(job, self.options.videos / name)

    def page(self, limit: int, after: str | None, newest_first: bool) -> tuple[list[Job], bool]:
        """At most ``limit`` jobs behind ``after``, and whether there are more. Raises ApiError (404)."""
        try:
            jobs = self._ledger.page(limit + 1, after, newest_first)
        except KeyError:
            raise not_found(str(after)) from None
        shown = [self._live[job.id].job if job.id in self._live else job for job in jobs]
        return shown[:limit], len(jobs) > limit

    def cancel(self, name: str, why: str) -> None:
        """Stop a job within a chunk; one that ended is left as it is."""
        live = self._live.get(name)
        if live and live.why is None:
            live.why = why
            with contextlib.suppress(WorkerGone):  # "gone" is on its way
                self._backend.send({"do": "cancel", "job": name})

    async def delete(self, name: str) -> None:
        """Stop a job and take its files away. Raises ApiError (404)."""
        job, live = self.find(name), self._live.get(name)
        self._ledger.put(replace(job, state=State.DELETED, ended=job.ended or time.time()))
        if live is None:
            await self._clear(name)
            return
        live.change(state=State.DELETED)
        live.bell.ring()
        self.cancel(name, "deleted")
        with contextlib.suppress(asyncio.TimeoutError):  # the files go when the worker lets go
            await asyncio.wait_for(live.cleared.wait(), CLEARING_S)

    async def switch(self, live: Live, prompt: str, chunk: int | None) -> Message:
        """Tell a running job to show something else; the worker's "switched" or "refused"."""
        tag = secrets.token_hex(8)
        refusal = {"event": "refused", "job": live.job.id}
        if live.job.id not in self._live or not live.job.open:
            return refusal | {"reason": "the video is not being made any more"}
        answer = live.asked[tag] = asyncio.get_running_loop().create_future()
        command = {"do": "switch", "job": live.job.id, "prompt": prompt, "chunk": chunk, "tag": tag}
        try:
            self._backend.send(command)
            return await asyncio.wait_for(answer, ANSWER_S)
        except (WorkerGone, asyncio.TimeoutError):
            return refusal | {"reason": "the worker does not answer"}
        finally:
            live.asked.pop(tag, None)

    def hear(self, event: Message) -> None:
        """Apply one event of the worker. What it says wrongly is logged, and stops nobody."""
        try:
            self._metrics.seen(event)
            self._apply(event)
        except (KeyError, TypeError, ValueError):
            log.exception("the worker said something strange: %.200s", event)

    def _apply(self, event: Message) -> None:
        kind = event["event"]
        if kind == "ready":
            self.ready = event
            self._phase = "ready" if self._phase == "starting" else self._phase
            self._begin_waiting()
        elif kind == "gone":
            stopping = self._phase == "stopping"
            self._phase = self._phase if stopping else "gone"
            self._abandon("the server was stopped" if stopping else sanitised(event["reason"]))
        elif kind == "stats":
            self._ledger.flush()
        elif live := self._live.get(event.get("job", "")):
            self._apply_to(live, kind, event)

    def _apply_to(self, live: Live, kind: str, event: Message) -> None:
        if live.job.state is not State.DELETED:
            self._note(live, kind, event)
        if kind == "began":
            live.change(state=self._still(live, State.RUNNING), began=time.time(), chunks=event["chunks"],
                        settled=event.get("settled", 0), bytes=event.get("bytes", 0))  # fmt: skip
        elif kind == "settled":
            live.change(settled=event["index"] + 1, bytes=event["bytes"])
        elif kind == "saved":
            live.change(saved=event["chunk"])
        elif kind in ("switched", "refused"):
            live.answer(event.get("tag"), _shown(event))
        elif kind == "done":
            degraded = tuple(sanitised(why) for why in event.get("degraded", ()))
            live.change(bytes=event["bytes"], frames=event["frames"], degraded=degraded)
            return self._end(live, State.DONE)
        elif kind == "failed":
            again = event.get("resumable", False)
            return self._end(live, State.INTERRUPTED if again else State.FAILED, event["reason"])
        elif kind == "cancelled":
            return self._end(live, State.CANCELLED, live.why or "cancelled")
        if kind in ("began", "settled", "saved"):
            self._ledger.put(live.job)
        live.bell.ring()

    @staticmethod
    def _still(live: Live, state: State) -> State:
        return state if live.job.open else live.job.state

    def _note(self, live: Live, kind: str, event: Message) -> None:
        if kind not in TOLD:
            return
        try:
            live.journal.append(_shown(event))
        except OSError as error:
            log.warning("job %s: an event is lost: %s", live.job.id, error.strerror)

    def _end(self, live: Live, state: State, why: str | None = None) -> None:
        """The worker is through with a job."""
        self._live.pop(live.job.id, None)
        live.change(
            state=self._still(live, state), ended=time.time(), reason=why and sanitised(why)
        )
        for tag in list(live.asked):
            live.answer(tag, {"event": "refused", "job": live.job.id, "reason": "the video ended"})
        if live.job.began and live.job.ended:
            self._last_s = live.job.ended - live.job.began
        self._ledger.put(live.job)
        live.bell.ring()
        log.info("job %s: %s%s", live.job.id, live.job.state.value, f", {why}" if why else "")
        if live.job.state is State.DELETED:
            self._spawn(self._clear(live.job.id, live))

    def _abandon(self, why: str) -> None:
        """The worker is not there any more; what can go on later is told how."""
        for live in list(self._live.values()):
            job = live.job
            resumable = job.saved is not None or job.began is None
            hint = "nothing of it was saved"
            if resumable:
                hint = f"restart the server to go on from chunk {job.saved}" if job.saved else "restart the server to begin it"  # fmt: skip
            reason = f"{why}; {hint}"
            told = {"event": "failed", "job": job.id, "reason": reason, "resumable": resumable}
            self._note(live, "failed", told)
            self._end(live, State.INTERRUPTED if resumable else State.FAILED, reason)

    def _hand_over(self, live: Live, resume: bool = False) -> None:
        job, order = live.job, live.job.order
        left_s = order.deadline_s and order.deadline_s - (time.time() - job.created)
        if left_s is not None and left_s <= 0:
            return self._end(live, State.FAILED, f"was not done within {order.deadline_s:g} s")
        self._metrics.submitted(job.id)
        self._backend.send({
            "do": "submit", "job": job.id, "folder": str(live.folder.resolve()),
            "prompts": [list(scene) for scene in order.prompts],
            "settings": order.settings | {"seconds": order.seconds},
            "priority": order.priority, "deadline_s": left_s, "budget_fps": order.budget_fps,
            "resume": resume,
        })  # fmt: skip

    def _restore(self) -> None:
        """What an earlier server left unfinished: go on, begin, or say why not."""
        for job in self._ledger.in_states([State.DELETED]):
            self._spawn(self._clear(job.id))
        for job in self._ledger.in_states([*OPEN, State.INTERRUPTED]):
            folder = self.options.videos / job.id
            folder.mkdir(mode=0o700, exist_ok=True)
            if job.began is None:
                (folder / EVENTS).unlink(missing_ok=True)  # it begins now, and has not failed
            live = Live(job, folder)
            if told := disk.finished(folder):  # by a worker that outlived its server
                live.change(state=State.RUNNING, settled=job.chunks or job.settled)
                self._apply_to(live, "done", told)
                continue
            if why := self._lost(job, folder):
                self._end(live, State.FAILED, f"{why}; order it again")
                continue
            live.change(state=State.QUEUED, ended=None, reason=None, bytes=0)
            self._live[job.id] = live
            self._waiting.append(live)
            self._ledger.put(live.job)

    def _lost(self, job: Job, folder: Path) -> str:
        """Why an unfinished job of an earlier server cannot go on; "" when it can."""
        if job.model != self.options.model:
            return f"it was ordered from {job.model}, and this server has {self.options.model}"
        if job.began is None or disk.holds_snapshot(folder):
            return ""
        return f"the server ended after chunk {job.settled}, before a snapshot was saved"

    def _begin_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for live in waiting:
            if live.job.id in self._live:
                with contextlib.suppress(WorkerGone):
                    self._hand_over(live, resume=live.job.began is not None)

    async def _clear(self, name: str, live: Live | None = None) -> None:
        await asyncio.to_thread(disk.remove, self.options.videos / name)
        self._ledger.remove(name)
        if live:
            live.cleared.set()

    async def _tidy_forever(self) -> None:
        hours = self.options.keep_hours
        while hours:
            for name in self._ledger.ended_before(time.time() - hours * 3600):
                await self.delete(name)
            await asyncio.sleep(min(TIDY_S, hours * 3600))

    def _spawn(self, work) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _shown(event: Message) -> Message:
    """An event as a client may see it."""
    shown = {name: value for name, value in event.items() if name != "tag"}
    return shown | {"reason": sanitised(event["reason"])} if "reason" in event else shown
