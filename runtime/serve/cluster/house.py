"""A replica: one worker, the slot that takes its orders, and the slots that it finishes for others.

    house = House(options, root, key, lambda fd: WorkerLink(arguments, handed=[fd]))
    await house.start()              # returns when the worker is ready
    ...                              # house.port answers HTTP to whoever has the key
    await house.drain(60.0)          # no new orders come: let the videos be finished
    await house.stop(20.0)           # what is not finished is saved, for another replica

Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from runtime.serve import disk
from runtime.serve.app import build_app
from runtime.serve.backend import Backend
from runtime.serve.bodies import video_of
from runtime.serve.cluster.sharing import Share, SharedWorker
from runtime.serve.cluster.slots import WorkerLock, all_slots, free_slots, new_slot, slot_in
from runtime.serve.desk import Desk
from runtime.serve.errors import ApiError
from runtime.serve.options import ServeOptions

log = logging.getLogger("runtime.serve.cluster")
PREFIX = b"x-forwarded-prefix"
LOOK_S = 2.0  # between two looks for slots that nobody holds
GLANCE_S = 0.05
PAGE = 100
AWAY_RETRY_S = 3


@dataclass(frozen=True, slots=True)
class Held:
    """A slot in the hands of this replica."""

    app: FastAPI
    share: Share
    life: contextlib.AbstractAsyncContextManager[Any]

    @property
    def desk(self) -> Desk:
        desk: Desk = self.app.state.service.desk
        return desk


class Server(uvicorn.Server):
    """uvicorn without handlers for signals: whoever runs a replica has its own."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


class House:
    """One replica. ``options`` are those of a single server; ``key`` is what the front shows."""

    def __init__(
        self, options: ServeOptions, root: Path, key: str, build: Callable[[int], Backend]
    ) -> None:
        self._options = replace(options, key=key, allowed_hosts=(), allowed_origins=())
        self._root = root
        self._lock = WorkerLock(root)
        self._worker = SharedWorker(build(self._lock.fd), self._lock.path)
        self._held: dict[str, Held] = {}
        self._around: list[str] = []  # slots that are there, broken ones left out
        self._own = ""  # the slot that takes orders
        self._broken: set[str] = set()  # slots whose list of jobs cannot be read
        self._minding: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._left = False

    async def start(self) -> None:
        """Take a slot, load the model, listen. Raises RuntimeError when the worker cannot be started."""
        for slot in [*free_slots(self._root), *(new_slot(self._root) for _ in range(3))]:
            if await self._take(slot):
                self._own = slot.name
                break
        else:
            raise RuntimeError(f"no slot in {self._root} can be taken")
        while self.desk.state == "starting":
            await asyncio.sleep(GLANCE_S)
        if self.desk.state != "ready":
            why = self._worker.gone
            await self.stop(0.0)
            raise RuntimeError(f"the worker did not get ready: {why}")
        self._listen()
        self._minding = asyncio.create_task(self._mind())

    def _listen(self) -> None:
        bounds = self._options.bounds
        family = socket.AF_INET6 if ":" in self._options.host else socket.AF_INET
        ear = socket.create_server((self._options.host, 0), family=family, backlog=512)
        self.port = ear.getsockname()[1]
        config = uvicorn.Config(
            self, lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, http="h11", h11_max_incomplete_event_size=4 * bounds.header_bytes,
            ws="websockets-sansio", ws_max_size=bounds.message_bytes,
            limit_concurrency=bounds.connections, timeout_graceful_shutdown=3,
        )  # fmt: skip
        self._server = Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[ear]))

    @property
    def desk(self) -> Desk:
        """The one that takes orders."""
        return self._held[self._own].desk

    @property
    def state(self) -> str:
        return "gone" if self._left or not self._held else self.desk.state

    @property
    def unfinished(self) -> int:
        """Videos that are being made or wait, those of other slots included."""
        return sum(held.desk.unfinished for held in self._held.values())

    def report(self) -> dict[str, Any]:
        """What the front has to know, as JSON."""
        return {"name": self._own, "slots": list(self._held), "around": self._around,
                "host": self._options.host, "port": self.port, "state": self.state, "videos": self.unfinished}  # fmt: skip

    def created(self, name: str) -> float | None:
        """When a video was ordered; None when it is not here."""
        for held in self._held.values():
            with contextlib.suppress(ApiError):
                return held.desk.find(name).created
        return None

    def page(
        self, limit: int, behind: tuple[float, str] | None, newest_first: bool
    ) -> list[dict[str, Any]]:
        """At most ``limit`` videos behind a moment and an id, as JSON with the moment of each.

        Walks the list from its end: the price of a page far behind grows with what is before it.
        """
        found = []
        for held in self._held.values():
            found += self._page_of(held.desk, limit, behind, newest_first)
        found.sort(key=lambda one: (one["created"], one["video"]["id"]), reverse=newest_first)
        return found[:limit]

    def _page_of(
        self, desk: Desk, limit: int, behind: tuple[float, str] | None, newest_first: bool
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: str | None = None
        more = True
        while more and len(found) < limit:
            jobs, more = desk.page(PAGE, after, newest_first)
            for job in jobs:
                here = (job.created, job.id)
                if behind is None or (here < behind if newest_first else here > behind):
                    video = video_of(job, self._options.keep_hours).model_dump(mode="json")
                    found.append({"created": job.created, "video": video})
            after = jobs[-1].id if jobs else None
        return found[:limit]

    def metrics(self) -> str:
        """Prometheus' text of this replica's worker."""
        held = self._held.get(self._own)
        return held.app.state.service.metrics.render().decode() if held else ""

    async def drain(self, patience_s: float) -> bool:
        """Wait until every video is finished, at most ``patience_s``; whether they are."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        while self.unfinished and loop.time() < until and self.state != "gone":
            await asyncio.sleep(GLANCE_S)
        return not self.unfinished

    async def stop(self, grace_s: float) -> None:
        """Save what is being made, end the worker and let go of every slot; again is harmless."""
        self._left = True
        await self._worker.stop(grace_s)
        await self._leave()
        if self._minding and self._serving:
            self._minding.cancel()
            self._server.should_exit = True
            await asyncio.gather(self._minding, self._serving, return_exceptions=True)

    async def _leave(self) -> None:
        held, self._held = self._held, {}
        for one in held.values():
            await one.life.__aexit__(None, None, None)
        if held:
            self._lock.close()

    async def _take(self, slot: Path) -> bool:
        """Hold a slot and go on with what is in it; whether it could be had."""
        share = self._worker.share(slot)
        app = build_app(share, replace(self._options, folder=slot, slot=slot.name))
        life = app.router.lifespan_context(app)
        try:
            await life.__aenter__()
        except ValueError:  # somebody was quicker
            return False
        except (RuntimeError, OSError) as error:
            log.error("slot %s is left alone: %s", slot.name, error)
            self._broken.add(slot.name)
            return False
        self._held[slot.name] = Held(app, share, life)
        log.info("slot %s is held: %d videos to go on with", slot.name, app.state.service.desk.unfinished)  # fmt: skip
        return True

    async def _mind(self) -> None:
        """Look after slots without a replica, one at a time so that others get some; let go when the worker is gone."""
        until = 0.0
        while not self._worker.gone:
            await asyncio.sleep(GLANCE_S)
            if time.monotonic() < until or self.desk.state != "ready":
                continue
            until = time.monotonic() + LOOK_S * random.uniform(0.5, 1.5)
            try:
                there, free = await asyncio.to_thread(_look_around, self._root)
            except OSError as error:  # a shared disk has its moments
                log.warning("the slots cannot be seen: %s", error.strerror)
                continue
            for slot in [slot for slot in free if slot.name not in self._broken][:1]:
                await self._take(slot)
            self._around = [slot.name for slot in there if slot.name not in self._broken]
            await self._tidy()
        if not self._left:
            log.error("the worker is gone, every slot is let go: %s", self._worker.gone)
            self._left = True
            await self._leave()

    async def _tidy(self) -> None:
        """Take a slot away that was taken over and has no video any more."""
        for name, held in list(self._held.items()):
            if name != self._own and not held.desk.unfinished and not held.desk.page(1, None, True)[0]:  # fmt: skip
                del self._held[name]
                held.share.let_go()
                await held.life.__aexit__(None, None, None)
                await asyncio.to_thread(disk.remove, self._root / "slots" / name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: to the application of the slot that the address names, else to the own one."""
        held = self._held.get(slot_in(scope["path"]) or self._own) or self._held.get(self._own)
        # What the desk would say of its videos now, that they were interrupted, is about to be wrong.
        if held is None or self._left or self._worker.gone:
            text = "this replica ends; another one goes on with its videos in a moment"
            error = ApiError(503, text, code="replica_away", retry_after_s=AWAY_RETRY_S)
            return await error.response()(scope, receive, send)
        prefix = dict(scope["headers"]).get(PREFIX, b"").decode("ascii", "replace")
        if prefix:
            scope = {**scope, "root_path": prefix, "path": prefix + scope["path"]}
        await held.app(scope, receive, send)


def _look_around(root: Path) -> tuple[list[Path], list[Path]]:
    """All slots, and those that are free."""
    return all_slots(root), list(free_slots(root))
