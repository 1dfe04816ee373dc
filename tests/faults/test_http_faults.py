"""Whatever happens to the worker, the disk and the clients: the server says so and goes on."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import httpx
import pytest

from runtime.serve.__main__ import serve
from runtime.serve.disk import Owned
from runtime.serve.errors import sanitised
from runtime.serve.jobs import Order, State, new_job
from runtime.serve.ledger import Ledger
from runtime.serve.store import Store
from tests.fake_worker import FakeWorker
from tests.serving import LONG_S, SHORT, TIGHT, error_of, options_in, running, until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Takes little; its worker begins nothing."""
    options = options_in(tmp_path_factory.mktemp("server"), **TIGHT)
    with running(options, FakeWorker(held=True)) as found:
        yield found


HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_one_job_too_many_is_told_when_to_come_again_and_jobs_keep_their_order(tmp_path):
    with running(options_in(tmp_path, jobs=3), FakeWorker(held=True)) as server:
        names = [server.order() for _ in range(3)]
        for path in ("/v1/videos", "/v1/videos/sync"):
            answer = server.client.post(path, json=SHORT)
            assert error_of(answer, 429)["type"] == "rate_limit_error"
            assert int(answer.headers["retry-after"]) >= 1
        assert [one["job"] for one in server.worker.commands] == names
        server.client.delete(f"/v1/videos/{names[1]}")
        names.append(server.order())
        assert server.client.post("/v1/videos", json=SHORT).status_code == 429
        server.worker.free()
        for name in (names[0], *names[2:]):
            server.wait(name, "completed")


def cancelled(server, name: str) -> bool:
    return {"do": "cancel", "job": name} in server.worker.commands


def test_who_hangs_up_on_sync_or_a_cancelling_stream_ends_the_job(server):
    body = json.dumps(SHORT).encode()
    line = socket.create_connection(("127.0.0.1", server.port))
    head = HEAD.replace(b"/v1/videos ", b"/v1/videos/sync ")
    line.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    name = until(lambda: server.worker.commands and server.worker.commands[-1]["do"] == "submit"
                 and server.worker.commands[-1]["job"])  # fmt: skip
    line.close()
    assert server.wait(name, "failed")["error"] == {"code": "cancelled", "message": "the client went away"}  # fmt: skip
    for query, ends in (("", False), ("?cancel_on_disconnect=true", True)):
        name = server.order()
        line = socket.create_connection(("127.0.0.1", server.port))
        line.sendall(f"GET /v1/videos/{name}/stream{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())  # fmt: skip
        until(lambda: server.service.streams.used == 1)
        line.close()
        until(lambda: server.service.streams.used == 0)
        until(lambda name=name, ends=ends: server.look(name)["status"] == "failed" or not ends)
        assert cancelled(server, name) == ends
        server.client.delete(f"/v1/videos/{name}")


def test_a_reader_that_takes_nothing_is_let_go_and_holds_up_nobody(tmp_path):
    """The video is longer than what a socket's buffers hold."""
    with running(options_in(tmp_path, stalled_s=0.3), FakeWorker()) as server:
        name = server.made()
        with open(tmp_path / "videos" / name / "video.mp4", "ab") as file:
            file.write(b"\0" * 30_000_000)
        store = tmp_path / "jobs.sqlite3"
        with sqlite3.connect(store) as base:
            base.execute("UPDATE jobs SET job = json_set(job, '$.bytes', 30000000)")
        line = socket.create_connection(("127.0.0.1", server.port))
        line.sendall(f"GET /v1/videos/{name}/content HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        until(lambda: server.service.streams.used == 1)
        assert len(server.client.get(f"/v1/videos/{name}/content").content) == 30_000_000
        until(lambda: server.service.streams.used == 0)
        line.close()


def test_a_delete_stops_the_job_ends_its_readers_and_leaves_no_file(server):
    name = server.order()
    line = socket.create_connection(("127.0.0.1", server.port))
    line.sendall(f"GET /v1/videos/{name}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    until(lambda: server.service.streams.used == 1)
    assert server.client.delete(f"/v1/videos/{name}").json()["deleted"]
    assert cancelled(server, name)
    until(lambda: server.service.streams.used == 0)
    line.close()
    assert not (server.folder / "videos" / name).exists()


def test_a_failed_job_tells_its_reason_without_folders(tmp_path):
    with running(options_in(tmp_path)) as server:
        name = server.order(prompt="fail")
        error = server.wait(name, "failed")["error"]
        assert error["message"] == "cannot write video.mp4: No space left on device"
        stream = server.client.get(f"/v1/videos/{name}/stream")
        assert "No space left" in error_of(stream, 409)["message"]
        answer = server.client.post("/v1/videos/sync", json=SHORT | {"prompt": "fail"})
        assert "No space left" in error_of(answer, 500)["message"]
        assert str(tmp_path) not in stream.text + answer.text
        assert str(tmp_path) not in server.client.get(f"/v1/videos/{name}/events").text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /var/lib/x/w.bin", "cannot read w.bin"),
        ("either/or, 3/4", "either/or, 3/4"),
        ("a\nb", "a b"),
        ("'/a/b/c.mp4': gone", "'c.mp4': gone"),
    ],
)
def test_reasons_lose_their_folders(text, shown):
    assert sanitised(text) == shown


def test_a_killed_worker_fails_its_jobs_and_leaves_finished_videos_readable(tmp_path):
    worker = FakeWorker(held=True)
    with running(options_in(tmp_path), worker) as server:
        worker.free()
        done = server.made()
        worker.hold()
        name = server.order()
        worker.die()
        until(lambda: server.client.get("/health").status_code == 503)
        job = server.look(name)
        assert job["status"] == "failed"
        assert "killed by signal 9" in job["error"]["message"]
        assert "restart the server" in job["error"]["message"]
        assert server.client.post("/v1/videos", json=SHORT).status_code == 503
        assert server.client.get(f"/v1/videos/{done}/content").status_code == 200
        assert server.client.delete(f"/v1/videos/{name}").json()["deleted"]
        assert not (tmp_path / "videos" / name).exists()


def test_too_little_room_is_told_before_anything_is_made(tmp_path):
    with running(options_in(tmp_path, disk_bytes=1000)) as server:
        server.made()
        error = error_of(server.client.post("/v1/videos", json=SHORT), 507)
        assert error["code"] == "disk_full" and "delete some" in error["message"]
        assert len(list((tmp_path / "videos").iterdir())) == 1
    with running(options_in(tmp_path, free_bytes=2**60)) as server:
        error_of(server.client.post("/v1/videos", json=SHORT), 507)


def test_a_damaged_list_of_jobs_is_named_and_left_alone(tmp_path):
    path = tmp_path / "jobs.sqlite3"
    for content in (b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000):
        path.write_bytes(content)
        with pytest.raises(RuntimeError, match="cannot be read: .*; move the file away"):
            Store(path)
        assert path.read_bytes() == content
        path.unlink()
    Store(path).close()
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(RuntimeError, match="version 99"):
        Store(path)
    path.unlink()
    store = Store(path)
    store.add(new_job(Order(prompts=((0, "x"),), seconds=1), "m", "1x1"))
    store.close()
    with sqlite3.connect(path) as base:
        base.execute("""UPDATE jobs SET job = '{"id": 3}'""")
    with pytest.raises(RuntimeError, match="not a job"):
        Store(path)


def test_a_half_written_event_is_dropped_and_deleted_jobs_stay_deleted(tmp_path):
    with running(options_in(tmp_path)) as server:
        name = server.made()
    events = tmp_path / "videos" / name / "events.jsonl"
    whole = events.read_bytes()
    events.write_bytes(whole + b'{"event": "tur')
    store = Store(tmp_path / "jobs.sqlite3")
    gone = new_job(Order(prompts=((0, "x"),), seconds=1), "m", "1x1")
    store.add(gone)
    store.put(replace(gone, state=State.DELETED))
    store.close()
    (tmp_path / "videos" / gone.id).mkdir()
    with running(options_in(tmp_path)) as server:
        told = server.client.get(f"/v1/videos/{name}/events").text
        assert told.count("data: ") == len(whole.splitlines()) and "tur\n" not in told
        assert server.client.get(f"/v1/videos/{gone.id}").status_code == 404
        until(lambda: not (tmp_path / "videos" / gone.id).exists())


class Door:
    """The server as a process of its own, with a worker that makes a chunk in 50 ms."""

    def __init__(self, folder) -> None:
        command = [sys.executable, "-m", "tests.fake_worker", "--port", "0", "--data", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("serving sprites on http://127.0.0.1:"), self.process.stderr.read()
        self.client = httpx.Client(base_url=line.split()[3], timeout=LONG_S)

    def look(self, name: str) -> dict:
        return self.client.get(f"/v1/videos/{name}").json()


def test_a_server_that_is_killed_or_stopped_begins_where_it_ended(tmp_path):
    """SIGKILL, then SIGTERM, then SIGTERM while it is busy: three processes, one job that goes on."""
    folder = tmp_path / "data"
    first = Door(folder)
    try:
        name = first.client.post("/v1/videos", json={"prompt": "x", "seconds": 100}).json()["id"]
        until(lambda: first.look(name)["settled_chunks"] >= 2)
    finally:
        first.process.kill()
        first.process.communicate(timeout=LONG_S)
    second = Door(folder)
    try:
        with pytest.raises(ValueError, match="another server works in"):
            Owned(folder)
        until(lambda: second.look(name)["settled_chunks"] >= 4)
        events = second.client.get(f"/v1/videos/{name}/events", headers={"Last-Event-ID": "x"})
        assert events.status_code == 400
        with second.client.stream("GET", f"/v1/videos/{name}/stream") as stream:
            pieces = stream.iter_raw()
            next(pieces)
            began = time.monotonic()
            second.process.send_signal(signal.SIGTERM)
            rest = list(pieces)
        _, log = second.process.communicate(timeout=LONG_S)
        assert second.process.returncode == 0 and time.monotonic() - began < LONG_S
        assert rest is not None and "Traceback" not in log
    finally:
        second.process.kill()
    store = Store(folder / "jobs.sqlite3")
    job = store.get(name)
    store.close()
    assert job and job.state is State.INTERRUPTED and "go on from chunk" in job.reason
    assert os.path.getsize(folder / "videos" / name / "video.mp4") >= job.bytes > 0


class Patient(FakeWorker):
    """Needs long to save; without grace it is gone at once."""

    async def stop(self, grace_s: float) -> None:
        if not self._dead and grace_s:
            await asyncio.sleep(LONG_S)
        await super().stop(grace_s)


def test_while_it_stops_nothing_is_taken_on_and_a_second_signal_ends_it_at_once(tmp_path, capsys):
    worker = Patient(held=True)

    async def story() -> int:
        serving = asyncio.create_task(serve(options_in(tmp_path), worker))
        while not (line := capsys.readouterr().out):
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=line.split()[3], timeout=LONG_S) as client:
            name = (await client.post("/v1/videos", json=SHORT)).json()["id"]
            os.kill(os.getpid(), signal.SIGTERM)
            while (await client.get("/health")).json() != {"state": "stopping"}:
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/videos", json=SHORT)
            assert error_of(refused, 503)["code"] == "worker_stopping"
            assert (await client.get(f"/v1/videos/{name}")).json()["status"] == "queued"
            os.kill(os.getpid(), signal.SIGTERM)
            return await asyncio.wait_for(serving, LONG_S / 2)

    assert asyncio.run(story()) == 128 + signal.SIGTERM
    assert worker.stops[0] == 0.0, "the first stop was still waiting"
    store = Store(tmp_path / "jobs.sqlite3")
    (job,) = store.in_states([State.INTERRUPTED])
    store.close()
    assert job.reason == "the server was stopped; restart the server to begin it"


class FullDisk(Store):
    """Refuses to write while ``full``."""

    full = False

    def put(self, job) -> None:
        if self.full:
            raise RuntimeError("disk is full")
        super().put(job)


def test_what_a_full_disk_does_not_take_is_remembered_and_written_later(tmp_path):
    store = FullDisk(tmp_path / "jobs.sqlite3")
    ledger = Ledger(store)
    job = new_job(Order(prompts=((0, "x"),), seconds=1), "m", "1x1")
    ledger.add(job)
    store.full = True
    done = replace(job, state=State.DONE)
    ledger.put(done)
    assert ledger.get(job.id) == done and ledger.page(1, None, True) == [done]
    assert store.get(job.id) == job
    store.full = False
    ledger.flush()
    assert store.get(job.id) == done
    ledger.put(replace(done, state=State.DELETED))
    assert ledger.get(job.id) is None and ledger.page(1, None, True) == []
    ledger.close()


def test_a_job_that_cannot_be_written_down_is_not_taken_on(tmp_path):
    with running(options_in(tmp_path)) as server:
        server.made()
        with sqlite3.connect(tmp_path / "jobs.sqlite3") as base:
            base.execute("DROP TABLE jobs")
        error = error_of(server.client.post("/v1/videos", json=SHORT), 507)
        assert "cannot be kept" in error["message"] and str(tmp_path) not in error["message"]
        assert len([one for one in server.worker.commands if one["do"] == "submit"]) == 1
        assert len(list((tmp_path / "videos").iterdir())) == 1
