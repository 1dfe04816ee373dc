"""Replicas behind a front, without Ray: which replica a request reaches, and what becomes of videos whose replica ends."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytest.importorskip("fastapi")
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from runtime.serve.cluster import front, house
from tests.cluster_in_process import cluster
from tests.fake_worker import FakeWorker
from tests.serving import KEY, SHORT, until

NAME = "video_" + "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("both"), FakeWorker(), FakeWorker()) as running:
        yield running


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(house, "LOOK_S", 0.1)
    monkeypatch.setattr(front, "GLANCE_S", 0.2)


def test_orders_go_to_the_least_busy_replica_and_all_about_a_video_to_the_one_that_has_it(both):
    names = [both.order(seconds=2) for _ in range(4)]
    assert {both.holder(name) for name in names} == {0, 1}
    for name in names:
        assert both.wait(name, "completed")["frames"] == 33
        whole = both.client.get(f"/v1/videos/{name}/content")
        assert whole.headers["accept-ranges"] == "bytes" and len(whole.content) == both.look(name)["bytes"]  # fmt: skip
        part = both.client.get(f"/v1/videos/{name}/content", headers={"Range": "bytes=5-20"})
        assert (part.status_code, part.content) == (206, whole.content[5:21])
        assert both.client.get(f"/v1/videos/{name}/stream").content == whole.content
        assert both.client.head(f"/v1/videos/{name}/content").headers["content-length"] == str(len(whole.content))  # fmt: skip
        assert "event: done" in both.client.get(f"/v1/videos/{name}/events").text
        assert both.client.get(f"/v1/videos/{name}/trace").status_code == 200


def test_a_stream_arrives_while_the_video_is_made(tmp_path):
    worker = FakeWorker(chunk_s=0.1)
    with cluster(tmp_path, worker) as one:
        name = one.order(seconds=2)
        with one.client.stream("GET", f"/v1/videos/{name}/stream") as answer:
            worker.hold()
            pieces = answer.iter_raw()
            first = next(pieces)
            assert first[4:8] == b"ftyp"
            assert one.look(name)["status"] == "in_progress"
            worker.free()
            rest = b"".join(pieces)
        assert first + rest == one.client.get(f"/v1/videos/{name}/content").content


def test_a_socket_switches_the_prompt_of_a_video_on_either_replica(tmp_path):
    workers = [FakeWorker(held=True), FakeWorker(held=True)]
    with cluster(tmp_path, *workers) as both:
        names = [both.order(), both.order()]
        assert sorted(both.holder(name) for name in names) == [0, 1]
        for name in names:
            with connect(f"ws://127.0.0.1:{both.port}/v1/videos/{name}/live") as line:
                line.send(json.dumps({"prompt": "a blue disc"}))
                told = json.loads(line.recv(timeout=10))
                assert (told["event"], told["job"], told["prompt"]) == ("switched", name, "a blue disc")  # fmt: skip
                line.send(json.dumps({"colour": "blue"}))
                assert json.loads(line.recv(timeout=10))["event"] == "refused"
                workers[both.holder(name)].free()
                while told["event"] != "done":
                    told = json.loads(line.recv(timeout=10))
        for worker in workers:
            assert [command["do"] for command in worker.commands] == ["submit", "switch"]


def test_a_socket_of_no_video_is_refused_in_words(both):
    known = NAME.replace("01234567", both.houses[0].report()["name"], 1)
    for name in (NAME, known):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{both.port}/v1/videos/{name}/live")
        assert refused.value.response.status_code == 404
        assert b"video_not_found" in refused.value.response.body


def test_the_list_is_one_and_can_be_paged_through(tmp_path):
    with cluster(tmp_path, FakeWorker(), FakeWorker()) as both:
        names = [both.order() for _ in range(7)]
        assert {both.holder(name) for name in names} == {0, 1}
        for order, wanted in (("asc", names), ("desc", names[::-1])):
            seen, after, more = [], None, True
            while more:
                query = {"limit": 3, "order": order} | ({"after": after} if after else {})
                page = both.client.get("/v1/videos", params=query).json()
                assert len(page["data"]) <= 3 and page["object"] == "list"
                assert page["first_id"] == page["data"][0]["id"]
                seen += [video["id"] for video in page["data"]]
                after, more = page["last_id"], page["has_more"]
            assert seen == wanted
        assert both.client.get("/v1/videos", params={"after": NAME}).status_code == 404
        assert both.client.get("/v1/videos", params={"limit": 0}).status_code == 400


def test_a_full_replica_passes_an_order_on_and_full_ones_together_answer_429(tmp_path):
    workers = [FakeWorker(held=True), FakeWorker(held=True)]
    with cluster(tmp_path, *workers, jobs=2) as both:
        names = [both.order() for _ in range(4)]
        assert [both.holder(name) for name in names].count(0) == 2
        refused = both.client.post("/v1/videos", json=SHORT)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        first = next(name for name in names if both.holder(name) == 0)
        assert both.client.delete(f"/v1/videos/{first}").status_code == 200
        assert both.holder(both.order()) == 0  # the other one is full, and was told of as less busy


def test_videos_of_a_dead_worker_go_on_at_the_other_replica(tmp_path, quick):
    workers = [FakeWorker(chunk_s=0.05), FakeWorker(chunk_s=0.05)]
    with cluster(tmp_path, *workers) as both:
        names = [both.order(seconds=4), both.order(seconds=4)]
        lost = next(name for name in names if both.holder(name) == 0)
        other = next(name for name in names if name != lost)
        until(lambda: both.look(lost)["settled_chunks"] >= 1)
        workers[0].die()
        both.wait(lost, "completed")
        assert both.holder(lost) == 1
        assert both.wait(other, "completed")["frames"] == both.look(lost)["frames"]
        again = [command for command in workers[1].commands if command["job"] == lost]
        assert [command["resume"] for command in again] == [True]
        health = both.client.get("/health")
        assert health.status_code == 200
        assert sorted(one["state"] for one in health.json()["replicas"]) == ["gone", "ready"]
        assert both.holder(both.made()) == 1


def test_a_replica_that_is_stopped_hands_its_videos_on(tmp_path, quick):
    workers = [FakeWorker(chunk_s=0.05), FakeWorker(chunk_s=0.05)]
    with cluster(tmp_path, *workers) as both:
        done = both.made()
        leaving = both.holder(done)
        names = [both.order(seconds=4) for _ in range(3)]  # the finished one may still count
        running = next(name for name in names if both.holder(name) == leaving)
        until(lambda: both.look(running)["settled_chunks"] >= 1)
        both.known.there.remove(both.houses[leaving])
        assert both.look(running)["status"] == "in_progress"  # still answered where it is made
        both.run(both.houses[leaving].stop(1.0))
        assert both.wait(running, "completed")["id"] == running
        assert both.client.get(f"/v1/videos/{done}/content").status_code == 200
        assert both.holder(done) == 1 - leaving


def test_while_nobody_has_a_video_its_client_is_asked_to_wait(tmp_path, quick):
    with cluster(tmp_path, FakeWorker()) as one:
        one.workers[0].hold()
        name = one.order()
        one.workers[0].die()
        until(lambda: one.client.get("/health").status_code == 503)
        for _ in range(5):  # never that it failed
            answer = one.client.get(f"/v1/videos/{name}")
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        assert one.client.post("/v1/videos", json=SHORT).status_code == 503


def test_a_video_of_no_slot_is_not_found_and_the_reason_is_told(both):
    answer = both.client.get(f"/v1/videos/{NAME}")
    assert answer.status_code == 404
    assert "its replica is gone" in answer.json()["error"]["message"]


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"SSH-2.0\r\n\r\n"], ids=["nothing", "half", "noise"])  # fmt: skip
def test_a_replica_that_dies_with_a_request_is_a_503(tmp_path, said, quick):
    with cluster(tmp_path, FakeWorker()) as one, socket.create_server(("127.0.0.1", 0)) as ear:
        ear.settimeout(10)
        slot = "0000000a"
        fake = {
            "name": "x",
            "slots": [slot],
            "around": [],
            "state": "ready",
            "host": "127.0.0.1",
            "port": ear.getsockname()[1],
            "videos": -1,
        }

        async def there():
            return [fake]

        one.known.reports = there
        name = f"video_{slot}{'0' * 24}"
        for method, path in (("GET", f"/v1/videos/{name}"), ("POST", "/v1/videos")):
            until(lambda: "x" in one.client.get("/health").text)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(one.client.request, method, path, json=SHORT)
                heard, _ = ear.accept()
                with heard:
                    heard.recv(2**16)
                    heard.sendall(said)
                answer = asked.result()
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "replica_away"
            assert "retry-after" in answer.headers


def test_a_client_that_hangs_up_on_sync_stops_its_video(tmp_path):
    worker = FakeWorker(held=True)
    with cluster(tmp_path, worker) as one:
        body = json.dumps(SHORT).encode()
        head = b"POST /v1/videos/sync HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", one.port)) as client:
            client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            until(lambda: worker.commands)
        until(lambda: [command["do"] for command in worker.commands] == ["submit", "cancel"])


def test_the_front_keeps_the_key_and_replicas_answer_the_front_alone(tmp_path):
    with cluster(tmp_path, FakeWorker(), FakeWorker(), key=KEY) as both:
        name = both.made()
        stranger = httpx.Client(base_url=both.url)
        for path in ("/v1/videos", f"/v1/videos/{name}", "/metrics", "/", "/v1/models"):
            assert stranger.get(path).status_code == 401
            assert both.client.get(path).status_code == 200
        assert stranger.get("/health").status_code == 200
        there = f"http://127.0.0.1:{both.houses[0].port}/v1/videos"
        assert httpx.get(there).status_code == 401
        assert httpx.get(there, headers={"Authorization": f"Bearer {KEY}"}).status_code == 401
        assert stranger.post("/v1/session", headers={"Authorization": f"Bearer {KEY}"}).status_code == 204  # fmt: skip
        assert stranger.get(f"/v1/videos/{name}").status_code == 200  # by its cookie
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{both.port}/v1/videos/{name}/live")


def test_a_body_that_is_too_long_is_refused_before_a_replica_sees_it(both):
    answer = both.client.post("/v1/videos", content=b" " * (2**20 + 1))
    assert answer.status_code == 413


def test_a_form_and_a_wrong_order_reach_a_replica_as_they_are(both):
    made = both.client.post("/v1/videos", files={"prompt": (None, "a disc"), "seconds": (None, "1")})  # fmt: skip
    assert made.status_code == 200 and made.json()["prompt"] == "a disc"
    wrong = both.client.post("/v1/videos", json={"prompt": "a disc", "secnods": 1})
    assert wrong.status_code == 400 and "seconds" in wrong.json()["error"]["message"]


def test_the_page_and_its_videos_work_under_a_prefix(tmp_path):
    # Whoever takes the prefix off a path says so, as uvicorn does here and Ray with route_prefix.
    with cluster(tmp_path, FakeWorker(), root_path="/video") as one:
        assert b'<base href="/video/">' in one.client.get("/").content
        name = one.made()
        assert one.client.get(f"/v1/videos/{name}/content").status_code == 200
        with connect(f"ws://127.0.0.1:{one.port}/v1/videos/{name}/live") as line:
            assert json.loads(line.recv(timeout=10))["event"] == "began"


def test_a_slot_that_cannot_be_read_is_left_alone_and_the_next_one_taken(tmp_path, quick):
    with cluster(tmp_path, FakeWorker(), FakeWorker()) as both:
        broken, whole = (tmp_path / "slots" / slot for slot in ("00000001", "00000002"))
        for slot in (broken, whole):
            slot.mkdir()
        (broken / "jobs.sqlite3").write_bytes(b"no database")
        until(lambda: not whole.exists())  # it was taken over, and had no video
        assert broken.exists()
        assert both.client.get(f"/v1/videos/video_00000001{'0' * 24}").status_code == 404


def test_answers_name_the_request_once(both):
    answer = both.client.get("/v1/models", headers={"X-Request-Id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


def test_metrics_tell_the_replicas_apart(both):
    names = {one.report()["name"] for one in both.houses}
    text = both.client.get("/metrics").text
    for name in names:
        assert f'stream_t1_worker_up{{replica="{name}"}} 1.0' in text
    assert text.count("# TYPE stream_t1_worker_up gauge") == 1


def test_orders_that_come_at_once_are_spread(tmp_path):
    with cluster(tmp_path, FakeWorker(held=True), FakeWorker(held=True)) as both:
        with ThreadPoolExecutor(6) as pool:
            names = list(pool.map(lambda _: both.order(), range(6)))
        assert [both.holder(name) for name in names].count(0) == 3
