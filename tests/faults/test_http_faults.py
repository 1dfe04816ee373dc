"""Whatever is sent to the server, and whatever happens to its worker, its disk and its clients: it says so and goes on."""

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
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from runtime.serve.disk import Owned
from runtime.serve.errors import sanitised
from runtime.serve.jobs import Order, State, new_job
from runtime.serve.store import Store
from tests.fake_worker import FakeWorker
from tests.serving import KEY, LONG_S, SHORT, options_in, running, until

ABSENT = "video_" + "0" * 32


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Takes little; its worker begins nothing."""
    options = options_in(
        tmp_path_factory.mktemp("faults"), body_bytes=4096, body_s=0.5, message_bytes=2048,
        prompt_characters=100, scenes=3, seconds=10, histories=4, expansions=4, candidates=8,
        window_frames=24, streams=3, sockets=2,
    )  # fmt: skip
    with running(options, FakeWorker(held=True)) as found:
        yield found


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server with a key."""
    with running(options_in(tmp_path_factory.mktemp("locked"), key=KEY)) as found:
        yield found


def error_of(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"} and error["message"]
    assert answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": "x" * 101}, "prompt", "at most 100"),
        ({"prompt": " \n"}, "prompt", "some words"),
        ({"prompt": "\ud800"}, "prompt", ""),
        ({"prompt": ["x"]}, "prompt", "string"),
        ({"seconds": 11}, "seconds", "(0, 10]"),
        ({"seconds": "-1"}, "seconds", ""),
        ({"seconds": True}, "seconds", ""),
        ({"search": {"K": 5}}, "search.histories", "at most 4"),
        ({"search": {"M": 5}}, "search.expansions", "at most 4"),
        ({"search": {"K": 4, "M": 4}}, "search.histories * search.expansions", "at most 8"),
        ({"search": {"policy": "halving"}, "settings": {"search.drafts": 40}}, "search.expansions", ""),
        ({"search": {"K": 2, "histories": 2}}, "search", "each once"),
        ({"search": {"K": "2"}}, "search.histories", "integer"),
        ({"search": {"window": 10}}, "memory.window_frames", "multiple"),
        ({"search": {"window": 27}}, "memory.window_frames", "at most 24"),
        ({"settings": {"memory.max_sink_frames": 300}}, "memory.max_sink_frames", "at most 24"),
        ({"settings": {"run.device": "cuda"}}, "settings.run.device", "no setting of a request"),
        ({"settings": {"run.weights": "/etc"}}, "settings.run.weights", "no setting of a request"),
        ({"settings": {"reward.image": "x"}}, "settings.reward.image", "no setting of a request"),
        ({"settings": {"noise.mod": "x"}}, "settings.noise.mod", "did you mean noise.mode?"),
        ({"settings": {"noise.mode": "x"}}, "noise.mode", "blend, slerp"),
        ({"scenes": [{"chunk": 1, "prompt": "a"}] * 2}, "scenes.1", "in order"),
        ({"scenes": [{"chunk": n, "prompt": "a"} for n in (1, 2, 3)]}, "scenes", "at most 3"),
        ({"scenes": [{"chunk": 0, "prompt": "a"}]}, "scenes.0.chunk", ""),
        ({"promt": "x"}, "promt", "did you mean prompt?"),
        ({"model": "/etc/passwd"}, "model", "this server has 'sprites'"),
        ({"size": "4096x4096"}, "size", "makes 32x32"),
        ({"input_reference": {"image_url": "http://127.0.0.1:9/"}}, "input_reference", "fetches nothing"),
        ({"image_url": "file:///etc/passwd"}, "image_url", "fetches nothing"),
        ({"priority": 9}, "priority", ""),
        ({"deadline_s": 0}, "deadline_s", ""),
        ({"budget_fps": -1}, "budget_fps", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_order_is_named_and_nothing_is_made(server, fields, param, words):
    before = len(server.worker.commands)
    content = json.dumps(SHORT | fields)
    headers = {"content-type": "application/json"}
    for path in ("/v1/videos", "/v1/videos/sync"):
        answer = server.client.post(path, content=content, headers=headers)
        error = error_of(answer, 400)
        assert error["param"] == param and words in error["message"]
    assert len(server.worker.commands) == before
    assert not list((server.folder / "videos").iterdir())


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"prompt": "a", "seconds": NaN}', "application/json", 400),
        (b'{"prompt": "a", "prompt": "b"}', "application/json", 400),
        (b"[" * 4000, "application/json", 400),
        (b'{"prompt": "a", "seconds": 1e999}', "application/json", 400),
        (b"9" * 4000, "application/json", 400),
        (b"prompt=a", "text/plain", 415),
        (b"", "", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=b", 400),
        (b"prompt=a&prompt=b", "application/x-www-form-urlencoded", 400),
        (b"prompt=a&search[K]=x", "application/x-www-form-urlencoded", 400),
        (b"prompt=a&search={", "application/x-www-form-urlencoded", 400),
        (b"prompt=a&search[K]=1&search=3", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"f%d=1" % n for n in range(600)), "application/x-www-form-urlencoded", 400),
        (b"x" * 4097, "application/json", 413),
    ],
)
def test_a_malformed_body_is_refused_in_words(server, content, kind, status):
    answer = server.client.post("/v1/videos", content=content, headers={"content-type": kind})
    error_of(answer, status)


def talk(port: int, request: bytes, wait_s: float = 5.0) -> bytes:
    """What the server answers to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as line:
        line.sendall(request)
        line.shutdown(socket.SHUT_WR) if request.endswith(b"END") else None
        answer = b""
        while piece := line.recv(65536):
            answer += piece
            if b"\r\n\r\n" in answer and b"}" in answer:
                break
        return answer


HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_body_of_any_claimed_length_is_counted_while_it_is_read(server):
    claimed = talk(server.port, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert b" 413 " in claimed.splitlines()[0]
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    chunked = talk(server.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 5)
    assert b" 413 " in chunked.splitlines()[0]


def test_a_body_that_does_not_come_is_not_waited_for(server):
    assert b" 408 " in talk(server.port, HEAD + b"Content-Length: 10\r\n\r\n{").splitlines()[0]


def test_headers_have_a_size(server):
    request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"x" * 200_000 + b"\r\n\r\n"
    try:
        answer = talk(server.port, request)
    except ConnectionError:
        answer = b""
    assert answer == b"" or b" 400 " in answer.splitlines()[0] or b" 431 " in answer.splitlines()[0]
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "..%2f..%2fjobs.sqlite3", "video_", ABSENT.upper(), ABSENT + "0", "a" * 3000, "%00"],
)  # fmt: skip
def test_a_name_that_is_none_finds_nothing(server, name):
    for path in ("", "/content", "/stream", "/trace", "/events"):
        assert server.client.get(f"/v1/videos/{name}{path}").status_code in (404, 405)
    assert server.client.delete(f"/v1/videos/{name}").status_code in (404, 405)
    assert server.client.get(f"/page/{name}").status_code == 404
    assert server.client.get(f"/videos/{name}").status_code == 404


def test_an_absent_video_is_told_the_same_everywhere(server):
    for path in ("", "/content", "/stream", "/trace", "/events"):
        error = error_of(server.client.get(f"/v1/videos/{ABSENT}{path}"), 404)
        assert error["code"] == "video_not_found"
    error_of(server.client.get("/v1/videos", params={"after": ABSENT}), 404)
    error_of(server.client.get("/v1/videos", params={"after": "../x"}), 400)
    error_of(server.client.get("/v1/videos", params={"limit": 0}), 400)
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{server.port}/v1/videos/{ABSENT}/live")
    assert caught.value.response.status_code == 404


def test_another_host_name_and_another_sites_page_are_refused(server):
    rebound = server.client.get("/v1/videos", headers={"Host": "evil.example"})
    assert error_of(rebound, 400)["code"] == "wrong_host"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        foreign = server.client.post("/v1/videos", json=SHORT, headers={"Origin": origin})
        assert error_of(foreign, 403)["code"] == "wrong_origin"
        with pytest.raises(InvalidStatus) as caught:
            connect(f"ws://127.0.0.1:{server.port}/v1/videos/{ABSENT}/live", origin=origin)
        assert caught.value.response.status_code == 403
    ours = {"Origin": server.url}
    assert server.client.post("/v1/videos", json={}, headers=ours).status_code == 400
    assert "access-control-allow-origin" not in server.client.get("/health", headers=ours).headers


def test_without_the_right_key_every_route_is_closed_but_health(locked):
    paths = httpx.get(f"{locked.url}/openapi.json", headers=locked.client.headers).json()["paths"]
    routes = [(method, path) for path, calls in paths.items() for method in calls]
    routes += [("get", path) for path in ("/", "/openapi.json", "/page/page.js", f"/videos/{ABSENT}", "/x")]  # fmt: skip
    wrong = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"},
             {"Authorization": f"Bearer {KEY[:-1]}"}, {"Cookie": "stream_t1_session=99999999999.00"},
             {"Authorization": "Bearer \u00e9".encode("latin1")}]  # fmt: skip
    assert len(routes) > 12
    with httpx.Client(base_url=locked.url, timeout=LONG_S) as stranger:
        for method, path in routes:
            if path == "/health":
                continue
            for headers in wrong:
                answer = stranger.request(method, path.format(name=ABSENT), headers=headers)
                assert answer.status_code == 401, (method, path, headers)
                assert KEY not in answer.text and answer.headers["www-authenticate"] == "Bearer"
        assert stranger.get("/health").status_code == 200
    for protocols in (None, ["stream-t1", "key.d3Jvbmc"], ["key.!!"]):
        with pytest.raises(InvalidStatus) as caught:
            connect(f"ws://127.0.0.1:{locked.port}/v1/videos/{ABSENT}/live", subprotocols=protocols)
        assert caught.value.response.status_code == 401


def test_the_key_opens_routes_sockets_and_a_browser(locked):
    import base64

    name = locked.made()
    address = f"ws://127.0.0.1:{locked.port}/v1/videos/{name}/live"
    offered = ["stream-t1", "key." + base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")]
    with connect(address, subprotocols=offered) as line:
        assert line.subprotocol == "stream-t1" and json.loads(line.recv(LONG_S))
    with httpx.Client(base_url=locked.url, timeout=LONG_S) as browser:
        page = browser.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 401 and "<form" in page.text
        assert browser.post("/v1/session", data={"key": "wrong"}).status_code == 401
        entered = browser.post("/v1/session", data={"key": KEY})
        assert entered.status_code == 303 and entered.headers["location"] == "/"
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and KEY not in cookie
        assert browser.get(f"/v1/videos/{name}/content").status_code == 200
        mark = f"stream_t1_session={browser.cookies['stream_t1_session']}"
        with connect(address, additional_headers={"Cookie": mark}) as line:
            assert json.loads(line.recv(LONG_S))


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


def test_streams_and_sockets_are_counted_and_given_back(server):
    name = server.order()
    lines = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    for line in lines:
        line.sendall(f"GET /v1/videos/{name}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    until(lambda: server.service.streams.used == 3)
    error_of(server.client.get(f"/v1/videos/{name}/events"), 429)
    for line in lines:
        line.close()
    until(lambda: server.service.streams.used == 0)
    address = f"ws://127.0.0.1:{server.port}/v1/videos/{name}/live"
    with connect(address), connect(address):
        with pytest.raises(InvalidStatus) as caught:
            connect(address)
        assert caught.value.response.status_code == 429
    until(lambda: server.service.sockets.used == 0)
    assert server.client.delete(f"/v1/videos/{name}").status_code == 200


def test_a_socket_refuses_long_hasty_and_strange_messages(server):
    name = server.order()
    address = f"ws://127.0.0.1:{server.port}/v1/videos/{name}/live"
    with connect(address) as line:
        line.send("x" * 5000)
        with pytest.raises(ConnectionClosed) as caught:
            line.recv(LONG_S)
        assert caught.value.rcvd.code == 1009
    with connect(address) as line:
        for text in (
            "[]",
            "\x00",
            '{"prompt": 3}',
            '{"prompt": ""}',
            b"\xff",
            '{"prompt": "%s"}' % ("x" * 101),
        ):
            line.send(text)
            told = json.loads(line.recv(LONG_S))
            assert told["event"] == "refused" and told["reason"]
        with pytest.raises(ConnectionClosed) as caught:
            for _ in range(30):
                line.send("{}")
            for _ in line:
                pass
        assert (caught.value.rcvd or caught.value.sent).code == 1008
    assert not [one for one in server.worker.commands if one["do"] == "switch"]
    server.client.delete(f"/v1/videos/{name}")


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
