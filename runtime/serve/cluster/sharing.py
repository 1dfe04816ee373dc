"""One worker for the desks of several slots: a replica finishes what another one left, beside its own videos."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runtime.serve.backend import Backend, Message, OnEvent, WorkerGone
from runtime.serve.cluster.slots import MOST_TRIES, Tries, sign

ENDS = ("done", "failed", "cancelled")


class SharedWorker:
    """Hands a worker's events to the desk whose job they are about, and to the first desk all of them."""

    def __init__(self, worker: Backend, lock: Path) -> None:
        self.gone: str | None = None  # why
        self._worker, self._lock = worker, lock
        self._ready: Message = {}
        self._shares: list[Share] = []
        self._owners: dict[str, Share] = {}

    def share(self, slot: Path) -> Share:
        """A backend for the desk of one slot. The first one is the replica's own."""
        return Share(self, slot)

    @property
    def alive(self) -> bool:
        return self._worker.alive

    async def join(self, share: Share) -> None:
        """Start the worker with the first share; a later one learns at once what it missed."""
        if self.gone:
            raise RuntimeError(self.gone)
        sign(share.slot, self._lock)
        self._shares.append(share)
        if len(self._shares) == 1:
            await self._worker.start(self._hear)
        elif self._ready:
            asyncio.get_running_loop().call_soon(share.tell, self._ready)

    def leave(self, share: Share) -> None:
        """Tell this share nothing more."""
        self._shares = [other for other in self._shares if other is not share]

    def send(self, share: Share, command: Message) -> None:
        """Pass a command on. Raises WorkerGone."""
        if command["do"] == "submit":
            self._owners[command["job"]] = share
        self._worker.send(command)

    async def stop(self, grace_s: float) -> None:
        await self._worker.stop(grace_s)

    def _hear(self, event: Message) -> None:
        kind = event.get("event")
        if kind == "ready":
            self._ready = event
        elif kind == "gone":
            self.gone = str(event.get("reason"))
        owner = self._owners.get(event.get("job", ""))
        if kind in ENDS:
            self._owners.pop(event.get("job", ""), None)
        for number, share in enumerate(list(self._shares)):
            if number == 0 or owner is share or "job" not in event:
                share.tell(event)


class Share:
    """A worker as the desk of one slot sees it."""

    def __init__(self, whole: SharedWorker, slot: Path) -> None:
        self.slot = slot
        self._whole = whole
        self._ending = True  # set to False while only this slot is let go

    async def start(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._tries = Tries(self.slot)
        await self._whole.join(self)

    def tell(self, event: Message) -> None:
        """An event for this desk."""
        if event.get("event") in ("settled", *ENDS):
            self._tries.forget(event.get("job", ""))
        self._on_event(event)

    def send(self, command: Message) -> None:
        """Pass a command on, unless it is to try once too often. Raises WorkerGone."""
        if self._whole.gone:
            raise WorkerGone(self._whole.gone)
        if command["do"] == "submit" and not self._tries.again(command["job"]):
            reason = f"its worker died {MOST_TRIES} times before a further chunk of it was made"
            told = {"event": "failed", "job": command["job"], "reason": reason, "resumable": False}
            asyncio.get_running_loop().call_soon(self.tell, told)
            return
        self._whole.send(self, command)

    def let_go(self) -> None:
        """Stop is for this slot alone: the worker goes on."""
        self._ending = False
        self._whole.leave(self)

    async def stop(self, grace_s: float) -> None:
        if self._ending:
            if not self._whole.gone:  # nobody is to blame
                self._tries.forget_all()
            await self._whole.stop(grace_s)

    @property
    def alive(self) -> bool:
        return self._whole.alive
