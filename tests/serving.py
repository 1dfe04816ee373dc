"""A real uvicorn around the server and a worker without models, in a thread of this process, for tests over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from runtime.serve.__main__ import listening
from runtime.serve.app import build_app
from runtime.serve.options import Bounds, ServeOptions
from runtime.serve.service import Service
from tests.fake_worker import FakeWorker

ABSENT = "video_" + "0" * 32  # the id of no video
LONG_S = 30.0  # a test that waits so long has failed
KEY = "a-key-of-the-tests-0123"
SHORT = {"prompt": "a red disc", "seconds": 1}  # two chunks


@dataclass
class Running:
    """A server that listens."""

    url: str
    port: int
    worker: FakeWorker
    service: Service
    client: httpx.Client
    folder: Path

    def order(self, **fields: object) -> str:
        """The id of a new job."""
        answer = self.client.post("/v1/videos", json=SHORT | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def look(self, name: str) -> dict:
        return self.client.get(f"/v1/videos/{name}").json()

    def wait(self, name: str, *states: str) -> dict:
        """The job once its status is one of ``states``."""
        return until(lambda: (job := self.look(name)) and job.get("status") in states and job)

    def made(self, **fields: object) -> str:
        """The id of a finished video."""
        name = self.order(**fields)
        assert self.wait(name, "completed", "failed")["status"] == "completed"
        return name


def until(found: Callable[[], object], patience_s: float = LONG_S):
    """What ``found`` returns once it is true."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if got := found():
            return got
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def options_in(folder: Path, key: str | None = None, **bounds: object) -> ServeOptions:
    fields = {"free_bytes": 1} | bounds
    return ServeOptions(port=0, folder=folder, key=key, grace_s=5.0, bounds=Bounds(**fields))


@contextlib.contextmanager
def running(options: ServeOptions, worker: FakeWorker | None = None) -> Iterator[Running]:
    """The server on a free port until the end of the block."""
    worker = worker or FakeWorker()
    app = build_app(worker, options)
    with listening(options) as ear:
        port = ear.getsockname()[1]
        config = uvicorn.Config(
            app, log_config=None, access_log=False, http="h11", ws="websockets-sansio",
            ws_max_size=options.bounds.message_bytes, timeout_graceful_shutdown=2, lifespan="on",
            h11_max_incomplete_event_size=options.bounds.header_bytes,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=(server.serve([ear]),), daemon=True)
        thread.start()
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        url = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {options.key}"} if options.key else {}
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=LONG_S) as client:
                yield Running(url, port, worker, app.state.service, client, options.folder)
        finally:
            server.should_exit = True
            thread.join(LONG_S)
            assert not thread.is_alive(), "the server did not end"


def error_of(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["message"]
    assert answer.headers["x-request-id"]
    return error


TIGHT = {
    "body_bytes": 4096, "body_s": 0.5, "message_bytes": 2048, "prompt_characters": 100, "scenes": 3,
    "seconds": 10, "histories": 4, "expansions": 4, "candidates": 8, "window_frames": 24,
    "streams": 3, "sockets": 2,
}  # fmt: skip
