"""Two replicas and their front in a thread of this process, with workers that have no models."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from runtime.serve.cluster.front import build_front
from runtime.serve.cluster.house import House
from runtime.serve.options import Bounds, ServeOptions
from tests.fake_worker import FakeWorker
from tests.serving import LONG_S, SHORT, until

PASS_KEY = "what-the-front-shows-0123"


class Houses:
    """``Cluster`` over houses that are right here; one taken out of ``there`` reports no more."""

    def __init__(self, houses: list[House]) -> None:
        self.there = list(houses)

    async def reports(self):
        return [house.report() for house in self.there]

    async def pages(self, limit, behind, newest_first):
        return [house.page(limit, behind, newest_first) for house in self.there]

    async def created(self, name):
        return next((when for house in self.there if (when := house.created(name))), None)

    async def metrics(self):
        return {house.report()["name"]: house.metrics() for house in self.there}


@dataclass
class Cluster:
    """What a test holds of them."""

    url: str
    port: int
    client: httpx.Client
    workers: list[FakeWorker]
    houses: list[House]
    known: Houses
    loop: asyncio.AbstractEventLoop

    def run(self, work):
        """Run a coroutine where the replicas live."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LONG_S)

    def order(self, **fields: object) -> str:
        answer = self.client.post("/v1/videos", json=SHORT | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def look(self, name: str) -> dict:
        return self.client.get(f"/v1/videos/{name}").json()

    def wait(self, name: str, *states: str) -> dict:
        return until(lambda: (job := self.look(name)) and job.get("status") in states and job)

    def made(self, **fields: object) -> str:
        name = self.order(**fields)
        assert self.wait(name, "completed", "failed")["status"] == "completed"
        return name

    def holder(self, name: str) -> int:
        """Number of the replica that has a video."""

        async def look() -> int:
            return next(n for n, house in enumerate(self.houses) if house.created(name))

        return self.run(look())


@contextlib.contextmanager
def cluster(
    root: Path, *workers: FakeWorker, key: str | None = None, root_path: str = "", **bounds: object
) -> Iterator[Cluster]:
    """A replica for each worker behind a front on a free port, until the end of the block."""
    options = ServeOptions(
        port=0, folder=root, key=key, grace_s=5.0, bounds=Bounds(**{"free_bytes": 1} | bounds)
    )
    houses = [House(options, root, PASS_KEY, lambda fd, worker=worker: worker) for worker in workers]  # fmt: skip
    known, loop = Houses(houses), asyncio.new_event_loop()
    front = build_front(options, known, PASS_KEY, b"seal" * 8)
    config = uvicorn.Config(
        front, port=0, log_config=None, access_log=False, ws="websockets-sansio", lifespan="on",
        timeout_graceful_shutdown=2, root_path=root_path,
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def main() -> None:
        for house in houses:
            await house.start()
        await server.serve()
        for house in houses:
            await house.stop(1.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert server.started, "the front did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=LONG_S) as client:
            yield Cluster(url, port, client, list(workers), houses, known, loop)
    finally:
        server.should_exit = True
        thread.join(LONG_S)
        assert not thread.is_alive(), "the cluster did not end"
        loop.close()
