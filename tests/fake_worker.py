"""A worker without models for tests of the HTTP server: real small fragmented MP4 files of drawn discs, real events.

``python -m tests.fake_worker --port 0 --data DIR`` is the server's own door in front of it.

Legend: K histories, M expansions of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

from runtime.serve.backend import Message, OnEvent, WorkerGone

SIZE, FPS = 32, 16
PICTURE = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs="


class FakeWorker:
    """A backend in this process. ``begin`` and ``free`` say when chunks are made; ``die`` ends it.

    Without ``paint`` its videos are bytes that nobody can watch, and torch is not imported.
    """

    def __init__(
        self, *, ready: bool = True, held: bool = False, chunk_s: float = 0.0, paint: bool = True
    ) -> None:
        self.commands: list[Message] = []
        self.stops: list[float] = []
        self.alive = True
        self._starts_ready, self._chunk_s = ready, chunk_s
        self._free = asyncio.Event()
        self._held = held
        self._paint = paint
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._prompts: dict[str, str] = {}
        self._dead = False

    async def start(self, on_event: OnEvent) -> None:
        self.tell = on_event
        self.loop = asyncio.get_running_loop()
        if not self._held:
            self._free.set()
        if self._starts_ready:
            self.begin()

    def begin(self) -> None:
        """The model is loaded."""
        self.tell({"event": "ready", "fps": FPS, "width": SIZE, "height": SIZE, "warm_ms": 1.0,
                   "device": "cpu", "implementations": {"noise": "torch"}, "blocks": 64})  # fmt: skip

    def free(self) -> None:
        """Chunks are made from now on."""
        self.loop.call_soon_threadsafe(self._free.set)

    def hold(self) -> None:
        """No chunk begins from now on."""
        self.loop.call_soon_threadsafe(self._free.clear)

    def die(self, why: str = "the worker was killed by signal 9 (SIGKILL)") -> None:
        """As if somebody had killed it."""
        self.loop.call_soon_threadsafe(self._die, why)

    def _die(self, why: str) -> None:
        self._dead, self.alive = True, False
        for task in self._jobs.values():
            task.cancel()
        self.tell({"event": "gone", "reason": why})

    def send(self, command: Message) -> None:
        if self._dead:
            raise WorkerGone("the worker does not run")
        command = json.loads(json.dumps(command))
        self.commands.append(command)
        job, do = command["job"], command["do"]
        if do == "submit":
            self._prompts[job] = command["prompts"][0][1]
            self._jobs[job] = self.loop.create_task(self._make(command))
        elif do == "cancel" and job in self._jobs:
            self._jobs.pop(job).cancel()
            self.loop.call_soon(self.tell, {"event": "cancelled", "job": job})
        elif do == "switch":
            self.loop.call_soon(self._switch, command)

    async def stop(self, grace_s: float) -> None:
        self.stops.append(grace_s)
        for task in self._jobs.values():  # as the real one: saved, and left without a word
            task.cancel()
        self._dead, self._jobs = True, {}

    def _switch(self, command: Message) -> None:
        job, tag, chunk = command["job"], command["tag"], command["chunk"]
        if chunk is not None and chunk > 1000:
            return self.tell(
                {"event": "refused", "job": job, "tag": tag, "reason": "no such chunk"}
            )
        self._prompts[job] = command["prompt"]
        told = {"chunk": chunk or 1, "prompt": command["prompt"], "tag": tag}
        self.tell({"event": "switched", "job": job, **told})

    async def _make(self, command: Message) -> None:
        job, folder, settings = command["job"], Path(command["folder"]), command["settings"]
        chunks = max(1, round((settings["seconds"] * FPS + 3) / 12))
        snapshot = folder / "snapshot" / "chunk.json"
        first = json.loads(snapshot.read_text()) if command["resume"] else 0
        seed = settings.get("search.seed", 42)
        if "fail" in self._prompts[job]:
            await self._free.wait()
            return self._fail(job, f"cannot write {folder}/video.mp4: No space left on device")
        frames = 0
        (folder / "video.mp4").unlink(missing_ok=True)
        with (painted if self._paint else Bytes)(folder / "video.mp4") as video:
            for index in range(chunks):
                count = 12 if index else 9
                frames += count
                if index < first:
                    video.draw(seed, index, count)
                    continue
                await self._free.wait()
                await asyncio.sleep(self._chunk_s)
                if index == first:
                    self.tell({"event": "began", "job": job, "chunks": chunks, "chunk": first})
                video.draw(seed, index, count)
                self._tell_chunk(command, index, count, video.size_bytes)
                snapshot.parent.mkdir(exist_ok=True)
                snapshot.write_text(json.dumps(index + 1))
                self.tell({"event": "saved", "job": job, "chunk": index + 1})
            size = video.size_bytes
        degraded = ["a reward raised"] if "degrade" in self._prompts[job] else []
        self._jobs.pop(job, None)
        self.tell({"event": "done", "job": job, "frames": frames, "bytes": size,
                   "seconds": frames / FPS, "degraded": degraded})  # fmt: skip

    def _tell_chunk(self, command: Message, index: int, frames: int, size: int) -> None:
        job, settings = command["job"], command["settings"]
        K, M = settings.get("search.histories", 2), settings.get("search.expansions", 2)
        scores = {"short": 0.5, "long": None, "fused": 0.5, "quality_gain": 0.0, "long_drop": 0.0}
        drawn = [
            {"row": row, "parent": row // M if index else None, "expansion": row % M, "seed": row,
             **scores, "route": "ema", "rank": row if row < K else None, "thumbnail": PICTURE}
            for row in range(K * M)
        ]  # fmt: skip
        trace = Path(command["folder"]) / "trace.json"
        trace.with_suffix(".new").write_text(json.dumps({"chunks": [index]}))
        os.replace(trace.with_suffix(".new"), trace)
        self.tell({"event": "turn", "job": job, "index": index, "candidates": drawn,
                   "stage_ms": {"denoise": 1.0}, "histories": K, "expansions": M})  # fmt: skip
        self.tell({"event": "settled", "job": job, "index": index, "frames": frames, "bytes": size,
                   "seed": 0, "route": "ema", "short": 0.5, "long": 0.5, "fused": 0.5})  # fmt: skip

    def _fail(self, job: str, reason: str) -> None:
        self._jobs.pop(job, None)
        self.tell({"event": "failed", "job": job, "reason": reason, "resumable": False})


class Bytes:
    """A file that grows by a few bytes a chunk."""

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self._path = path

    def draw(self, seed: int, chunk: int, count: int) -> None:
        with open(self._path, "ab") as file:
            self.size_bytes += file.write(b"%04d" % chunk * count)

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def painted(path: Path):
    """A video file that grows by a disc's way through a chunk."""
    from runtime.video import VideoWriter
    from tests.fake_engine import disc

    class Painted(VideoWriter):
        def draw(self, seed: int, chunk: int, count: int) -> None:
            self.add(disc(seed, chunk, count, SIZE))

    return Painted(path, FPS, scale=1)


if __name__ == "__main__":
    from runtime.serve.__main__ import main

    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(build=lambda call: FakeWorker(chunk_s=0.05, paint=False)))
