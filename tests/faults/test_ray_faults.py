"""Two replicas under a real Ray on this machine: the contract through its proxy, and what becomes of videos in a fall.

Minutes, so by hand: ``pytest -m slow tests/faults/test_ray_faults.py``. Everything Ray writes lies in a folder that goes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LONG_S = 120.0
CHUNK_S = 0.3
SHORT = {"prompt": "a red disc", "seconds": 2}
LONG = {"prompt": "a red disc", "seconds": 12}
ENDLESS = {"prompt": "a red disc", "seconds": 120}
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # or it leaves a token in the home folder
    "STREAM_T1_FAKE": json.dumps({"chunk_s": CHUNK_S}),
    "OMP_NUM_THREADS": "1",
}


def until(found, limit_s: float = LONG_S):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if got := found():
            return got
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def mine() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture(scope="module")
def ray_here():
    """A Ray of two logical CPUs, and where its proxy listens; nothing of it is left afterwards."""
    patch = pytest.MonkeyPatch()
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)
    patch.setenv("PYTHONPATH", str(ROOT))  # the actors and their workers import the tests
    before, folder = mine(), tempfile.mkdtemp(prefix="ray")  # short: sockets lie in it
    home = Path.home() / ".ray"
    had_home = home.exists()
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as ear:
        port = ear.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, object_store_memory=80 * 2**20,
             log_to_driver=False)  # fmt: skip
    started = mine() - before
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        started |= mine() - before
        serve.shutdown()
        ray.shutdown()
        patch.undo()
        left = [process for process in map(_process, started) if process]
        _, left = psutil.wait_procs(left, 20)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == []
    assert home.exists() == had_home


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)


class Cluster:
    """A client of one application."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client = httpx.Client(base_url=url, timeout=30.0)
        self.url, self.folder = url, folder

    def order(self, body: dict) -> str:
        answer = self.client.post("/v1/videos", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def look(self, name: str) -> dict:
        """The job; {} while its replica is replaced, and never an answer that says that it is lost."""
        answer = self.client.get(f"/v1/videos/{name}")
        assert answer.status_code in (200, 503), answer.text
        return answer.json() if answer.status_code == 200 else {}

    def wait(self, name: str) -> dict:
        job = until(lambda: (job := self.look(name)).get("status") in ("completed", "failed") and job)  # fmt: skip
        assert job["status"] == "completed", job
        return job

    def fetch(self, name: str) -> httpx.Response | None:
        answer = self.client.get(f"/v1/videos/{name}/content")
        return answer if answer.status_code == 200 else None

    def replicas(self) -> list[dict]:
        return self.client.get("/health").json()["replicas"]

    def all_ready(self, number: int) -> bool:
        return [one["state"] for one in self.replicas()] == ["ready"] * number

    def idle(self) -> bool:
        return not any(one["videos"] for one in self.replicas())

    def replica_of(self, name: str) -> psutil.Process:
        """The process that holds the lock of a video's slot."""
        lock = str(self.folder / "slots" / name[6:14] / "lock")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(file.path == lock for file in process.open_files()):
                    return process
        raise AssertionError(f"nobody holds {lock}")


def application(url: str, folder: Path, **arguments: object) -> Cluster:
    from ray import serve

    from runtime.serve.ray_app import app

    common = {"cpus": 0.5, "data": str(folder), "worker": "tests.fake_worker_process", "drain_s": 1,
              "grace": 5, "snapshot_chunks": 1, "threads": 1, "check_s": 0.5}  # fmt: skip
    serve.run(app(common | arguments), name="videos", route_prefix="/")
    return Cluster(url, folder)


@pytest.fixture(scope="module")
def two(ray_here, tmp_path_factory):
    from ray import serve

    folder = tmp_path_factory.mktemp("shared")
    cluster = application(ray_here, folder, replicas=2, limit="jobs=3,free_bytes=1")
    until(lambda: cluster.all_ready(2))
    yield cluster
    serve.delete("videos")


def test_a_video_is_ordered_watched_and_fetched_through_rays_proxy(two):
    health = two.client.get("/health")
    assert health.status_code == 200 and health.headers.get_list("x-request-id") != []
    names = [two.order(SHORT) for _ in range(2)]
    assert names[0][6:14] != names[1][6:14]  # one on each replica
    with two.client.stream("GET", f"/v1/videos/{names[0]}/stream") as answer:
        pieces = answer.iter_raw()
        first = next(pieces)
        assert first[4:8] == b"ftyp" and two.look(names[0])["status"] == "in_progress"
        streamed = first + b"".join(pieces)
    for name in names:
        assert two.wait(name)["frames"] == 33
        whole = two.client.get(f"/v1/videos/{name}/content").content
        part = two.client.get(f"/v1/videos/{name}/content", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
        assert "event: done" in two.client.get(f"/v1/videos/{name}/events").text
    assert streamed == two.client.get(f"/v1/videos/{names[0]}/content").content
    listed = [video["id"] for video in two.client.get("/v1/videos").json()["data"]]
    assert listed[:2] == names[::-1]
    form = {"prompt": (None, "a disc"), "seconds": (None, "1")}
    assert two.client.post("/v1/videos", files=form).status_code == 200
    sync = two.client.post("/v1/videos/sync", json={"prompt": "a disc", "seconds": 1})
    assert sync.status_code == 200 and sync.content[4:8] == b"ftyp"
    assert two.client.delete(f"/v1/videos/{names[0]}").json()["deleted"]
    assert two.client.get(f"/v1/videos/{names[0]}").status_code == 404
    metrics = two.client.get("/metrics").text
    assert metrics.count("stream_t1_worker_up{replica=") == 2
    assert two.client.get("/openapi.json").json()["info"]["title"] == "Stream-T1"


def test_a_socket_goes_through_rays_proxy_both_ways(two):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    name = two.order(LONG)
    address = two.url.replace("http", "ws")
    with connect(f"{address}/v1/videos/{name}/live", max_size=2**22) as line:
        while json.loads(line.recv(timeout=30))["event"] != "settled":
            pass
        line.send(json.dumps({"prompt": "a blue disc"}))
        while (told := json.loads(line.recv(timeout=30)))["event"] != "switched":
            assert told["event"] != "done"
        assert told["prompt"] == "a blue disc"
    two.client.delete(f"/v1/videos/{name}")
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{address}/v1/videos/{name}/live")
    assert refused.value.response.status_code in (403, 404)


def test_full_replicas_answer_429_and_say_when_to_come_back(two):
    until(two.idle)
    names = [two.order(LONG) for _ in range(6)]
    assert len({name[6:14] for name in names}) == 2
    refused = two.client.post("/v1/videos", json=SHORT)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "too_many_jobs"
    for name in names:
        two.client.delete(f"/v1/videos/{name}")
    two.wait(two.order(SHORT))


@pytest.mark.parametrize("victim", ["replica", "worker"])
def test_videos_of_a_killed_process_go_on_and_the_others_do_not_notice(two, victim):
    until(two.idle)
    names = [two.order(LONG), two.order(LONG)]
    assert names[0][6:14] != names[1][6:14]
    until(lambda: all(two.look(name).get("settled_chunks", 0) >= 2 for name in names))
    process = two.replica_of(names[0])
    if victim == "worker":
        (process,) = [child for child in process.children() if "--link-fd" in child.cmdline()]
    os.kill(process.pid, signal.SIGKILL)
    seen = []
    until(lambda: seen.append(two.look(names[1])) or seen[-1].get("status") == "completed")
    assert all(seen)  # the other one never stopped answering
    assert two.wait(names[0])["frames"] == seen[-1]["frames"]
    began = [json.loads(line[5:]) for line in two.client.get(f"/v1/videos/{names[0]}/events").text.splitlines()
             if line.startswith("data:") and '"began"' in line]  # fmt: skip
    assert len(began) == 2 and began[1]["chunk"] >= 1  # it went on, not from the start
    until(lambda: two.all_ready(2))
    two.wait(two.order(SHORT))


def test_replicas_come_with_work_and_go_without_it_and_their_videos_stay(ray_here, tmp_path):
    from ray import serve

    serve.delete("videos")
    cluster = application(
        ray_here, tmp_path, replicas=1, most_replicas=2, videos_each=1, up_s=0.5, down_s=2
    )
    first = cluster.order(SHORT)
    cluster.wait(first)
    work = [cluster.order(ENDLESS) for _ in range(3)]
    until(lambda: cluster.all_ready(2))
    second = cluster.order(SHORT)
    cluster.wait(second)
    assert first[6:14] != second[6:14]  # the new one took it
    for name in work:
        cluster.client.delete(f"/v1/videos/{name}")
    until(lambda: cluster.all_ready(1))
    for name in (first, second):  # the one that stayed has the videos of the one that went
        answer = until(lambda name=name: cluster.fetch(name))
        assert answer.content[4:8] == b"ftyp"
    serve.delete("videos")
