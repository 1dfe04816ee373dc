"""The thread that turns an engine for many: take wishes, admit, pick, one turn, deliver; again until closed.

Only this thread touches the engine. What goes wrong with one video ends that one: a turn that fails is tried again for each
of its videos alone, as long as its memory was not touched.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from runtime import resuming
from runtime.costs import Costs
from runtime.engine import Engine
from runtime.job import Job, Switch, grant, refuse, refuse_all
from runtime.lines import Round
from runtime.memory import Lease
from runtime.pacing import Pacing
from runtime.packing import Packed
from runtime.recipe import Recipe
from runtime.request import Busy, Limits
from runtime.riding import Ride, pick, start, switched
from runtime.scenes import scenes_of
from runtime.stats import Stats, Tally
from runtime.types import ChunkEvent, ChunkRecord, Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that was taken and has not begun."""

    job: Job
    recipe: Recipe
    watch: Watch | None

    @property
    def order(self) -> tuple[int, int]:
        """Higher priorities first, then first come first served."""
        return -self.job.request.priority, self.job.number


class Turning:
    """Everything of an ``AsyncEngine`` that its thread needs; nothing here knows the other one."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine, self.limits = engine, limits
        self.tally, self.costs = Tally(), Costs()
        self.waiting: list[Waiting] = []
        self.rides: list[Ride] = []
        self._news = threading.Condition()
        self._told = self._closing = False

    # From any thread.

    def enqueue(self, job: Job, recipe: Recipe, watch: Watch | None) -> None:
        """Queue a job. ``Busy`` when too many wait, RuntimeError when closed."""
        with self._news:
            if self._closing:
                raise RuntimeError("this engine is closed")
            if len(self.waiting) >= self.limits.queued and not self._has_room(recipe):
                raise Busy(len(self.waiting), self._soonest())
            self.waiting.append(Waiting(job, recipe, watch))
            self.waiting.sort(key=lambda one: one.order)
        self.wake()

    def wake(self) -> None:
        """Something is wanted."""
        with self._news:
            self._told = True
            self._news.notify_all()

    def close(self) -> None:
        """End everything at the next chunk boundary; does not wait for it."""
        with self._news:
            self._closing = True
        self.wake()

    def stats(self) -> Stats:
        with self._news:
            jobs, queued = [ride.job for ride in self.rides], len(self.waiting)
        # A job's lock is never asked for under ours: its reader wakes us under its own.
        paused = sum(job.state == "paused" for job in jobs)
        pool = self.engine.pool
        return self.tally.look(queued, len(jobs), paused, pool.blocks, pool.used)

    # In its own thread.

    def run(self) -> None:
        """Until closed."""
        device = self.engine.pool.kv.device
        place = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        end = "cancelled", "the engine was closed"
        with place:
            try:
                while not self._closing:
                    self._boundary()
                    if riders := self._ready():
                        self._turn(riders)
                    else:
                        self._sleep()
            except BaseException as error:
                end = "failed", f"the engine's thread ended: {type(error).__name__}: {error}"
                raise
            finally:  # whatever happens: nobody waits for what will never come
                self.close()
                everybody: list[Waiting | Ride] = [*self.rides, *self.waiting]
                for one in everybody:
                    self._end(one, *end)

    def _sleep(self) -> None:
        """Until something is wanted, or a deadline passes."""
        with self._news:
            jobs = [one.job for one in self.waiting] + [ride.job for ride in self.rides]
            times = [job.left_s for job in jobs]
            soonest = min(times, default=math.inf)
            timeout = None if soonest == math.inf else max(soonest, 0.0)
            self._news.wait_for(lambda: self._told, timeout)
            self._told = False

    def _boundary(self) -> None:
        """Everything that was wanted since the last turn."""
        everybody: list[Waiting | Ride] = [*self.waiting, *self.rides]
        for one in everybody:
            cancel, switches, snapshots = one.job.wishes()
            if cancel is not None:
                self._end(one, "cancelled", cancel)
                why = f"{one.job.name} is cancelled"
            elif one.job.left_s <= 0:
                why = one.job.late
                self._end(one, "failed", why)
            elif isinstance(one, Ride):
                for wish in switches:
                    self._switch(one, wish)
                for answer in snapshots:
                    self._pack(one, answer)
                continue
            else:
                why = f"{one.job.name} has not begun"
            refuse_all(switches, snapshots, why)
        while self.waiting and self._has_room(self.waiting[0].recipe):
            self._begin(self.waiting[0])

    def _has_room(self, recipe: Recipe) -> bool:
        taken = sum(ride.line.video.recipe.blocks for ride in self.rides)
        return taken + recipe.blocks <= self.engine.pool.blocks

    def _soonest(self) -> float:
        """Seconds until a running video may be done, from the pace so far."""
        pace = self.tally.chunks / self.tally.busy_s if self.tally.busy_s else math.inf
        rest = [ride.job.chunks - ride.job.made for ride in self.rides]
        return float(max(1, math.ceil(min(rest, default=0) * len(rest) / pace)))

    def _begin(self, one: Waiting) -> None:
        job, lease = one.job, Lease(self.engine.pool)
        ride = Ride(job, None, lease, start(self.rides))  # type: ignore[arg-type]
        watch = self._guarded(ride, one.watch)
        try:
            if job.request.resume is not None:
                line = resuming.unpack(job.request.resume, self.engine, lease, watch, job.number)
            else:
                scenes = scenes_of(job.request.prompts, one.recipe.chunks)
                line = self.engine.begin(one.recipe, scenes, lease, watch, job.number)
        except Exception as error:
            lease.close()
            self._end(one, "failed", reason(error))
            return
        ride.line = line
        if job.request.budget_fps is not None:
            self.engine.clock.exact = True
            ride.pacing = Pacing(self.engine, one.recipe, job.request.budget_fps, self.costs)
            job.budget = ride.pacing.budget
        with self._news:
            self.waiting.remove(one)
            self.rides.append(ride)
        job.begin(one.recipe.chunks, line.index)

    def _guarded(self, ride: Ride, watch: Watch | None) -> Watch:
        """A watcher whose errors are its own video's."""

        def guarded(record: ChunkRecord) -> None:
            ride.job.made = record.index + 1
            ride.kept, ride.frames = len(record.kept), record.frames.shape[1]
            ride.job.incidents += record.incidents
            self.tally.chunks += 1
            self.tally.frames += record.frames.shape[1]
            try:
                if watch is not None:
                    watch(record)
            except Exception as error:
                ride.error = error

        return guarded

    def _ready(self) -> list[Ride]:
        """The rides of the next turn, with room for their chunks and in their scenes."""
        able = []
        for ride in self.rides:
            paused = ride.job.state == "paused"
            if ride.pacing and paused:
                ride.pacing.paused()
            elif ride.pacing:
                ride.line = ride.pacing.chosen(ride.line)
            if not paused:
                able.append(ride)
        picked = pick(able, self.limits.batch_rows) if able else []
        return [ride for ride in picked if self._roomy(ride)]

    def _roomy(self, ride: Ride) -> bool:
        try:
            (ride.line,) = self.engine.ready([ride.line])
            return True
        except Exception as error:
            self._end(ride, "failed", reason(error))
            return False

    def _turn(self, riders: Sequence[Ride]) -> None:
        rows, began = [ride.rows for ride in riders], time.monotonic()
        held = [Counter(ride.lease.held) for ride in riders]
        try:
            after = self.engine.turn([ride.line for ride in riders])
        except Exception as error:
            self.engine.clock.take()
            log.warning("a turn of %d videos failed: %s", len(riders), reason(error))
            self._after_failure(riders, held, error)
            return
        finally:
            self.tally.busy_s += time.monotonic() - began
        self.tally.turns += 1
        self.tally.rows += sum(rows)
        self.tally.batch_rows = sum(rows)
        for ride, drawn in zip(riders, rows, strict=True):
            ride.charge(drawn)
            if ride.pacing:
                share = drawn / sum(rows)
                ride.pacing.made(drawn, ride.kept, ride.frames, after.stage_ms, share)
        self.tally.stage_ms.update(after.stage_ms)
        self._deliver(riders, after)

    def _after_failure(
        self, riders: Sequence[Ride], held: Sequence[Counter[int]], error: Exception
    ) -> None:
        """Each video alone, to see whose fault it was. One whose memory was touched meanwhile cannot go on."""
        for ride, before in zip(riders, held, strict=True):
            if len(riders) == 1 or ride.lease.held != before:
                self._end(ride, "failed", reason(error))
            else:
                self.tally.retried += 1
                self._turn([ride])

    def _deliver(self, riders: Sequence[Ride], after: Round) -> None:
        lines = {line.video.number: line for line in after.lines}
        errors = {video.number: error for video, error in after.fallen}
        for ride in riders:
            number = ride.job.number
            events = [event for owner, event in after.settled if owner == number]
            error = errors.get(number) or ride.error
            if error is not None:
                ride.job.add(events)
                self._end(ride, "failed", reason(error))
                continue
            self.tally.routes.update(event.route.value for event in events)
            ride.line = lines[number]
            if ride.line.done:
                self._finish(ride, events)
            else:
                ride.job.add(events)

    def _finish(self, ride: Ride, events: list[ChunkEvent]) -> None:
        try:
            last = self.engine.finish(ride.line)
        except Exception as error:
            ride.job.add(events)
            self._end(ride, "failed", reason(error))
            return
        ride.job.incidents += ride.line.video.recipe.scorer.incidents(ride.job.number)
        self.tally.routes.update(event.route.value for event in last)
        ride.job.add([*events, *last])
        self._end(ride, "done", "")

    def _switch(self, ride: Ride, wish: Switch) -> None:
        try:
            ride.line, chunk = switched(ride.line, wish)
        except ValueError as error:
            refuse(wish.answer, str(error))
            return
        grant(wish.answer, chunk)

    def _pack(self, ride: Ride, answer: Future[Packed]) -> None:
        try:
            grant(answer, resuming.pack(ride.line, self.engine.pool))
        except Exception as error:
            refuse(answer, reason(error))

    def _end(self, one: Waiting | Ride, state: str, why: str) -> None:
        with self._news:
            if isinstance(one, Ride):
                one.lease.close()
                self.rides.remove(one)
            else:
                self.waiting.remove(one)
            self.tally.ended[state] += 1
        one.job.end(state, why)


def reason(error: Exception) -> str:
    """An error in one line; its kind, where it is none that we raise for a caller to read."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | RuntimeError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
