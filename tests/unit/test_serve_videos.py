"""Video jobs over HTTP: what OpenAI's client calls, what is ours, and what a restart remembers."""

import json
import threading

import av
import httpx
import openai
import pytest
from websockets.sync.client import connect

from tests.fake_worker import FakeWorker
from tests.serving import LONG_S, SHORT, options_in, running, until

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(options_in(tmp_path_factory.mktemp("server"))) as found:
        yield found


@pytest.fixture
def held(tmp_path):
    """A server whose worker begins no chunk until it is let."""
    with running(options_in(tmp_path), FakeWorker(held=True)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def frames_of(content: bytes, path) -> int:
    path.write_bytes(content)
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def lines(answer) -> list[dict]:
    """The events of a whole answer of Server-Sent Events."""
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_the_official_client_makes_polls_and_downloads_a_video(client, tmp_path):
    video = client.videos.create_and_poll(
        prompt="a red disc", model="sprites", seconds="1", size="32x32", poll_interval_ms=20,
        extra_body={"search": {"histories": 3, "beta": 0.5}, "settings": {"noise.mode": "slerp"},
                    "scenes": [{"chunk": 1, "prompt": "a blue disc"}]},
    )  # fmt: skip
    assert (video.status, video.progress, video.seconds) == ("completed", 100, "1")
    assert video.model_extra["settings"] == {
        "search.histories": 3,
        "noise.beta": 0.5,
        "noise.mode": "slerp",
    }
    assert video.model_extra["scenes"] == [{"chunk": 1, "prompt": "a blue disc"}]
    content = client.videos.download_content(video.id).read()
    assert frames_of(content, tmp_path / "v.mp4") == 21 == video.model_extra["frames"]


def test_the_official_client_pages_through_jobs_in_both_orders(client):
    made = [client.videos.create(prompt=f"disc {n}", seconds="1").id for n in range(5)]
    newest = [video.id for video in client.videos.list(limit=2)]
    assert newest[:5] == made[::-1]
    oldest = [video.id for video in client.videos.list(limit=2, order="asc")]
    assert oldest == newest[::-1]
    page = client.videos.list(limit=2, after=made[2])
    assert [video.id for video in page.data] == [made[1], made[0]]


def test_the_official_client_deletes_and_then_finds_nothing(client, server):
    video = client.videos.create(prompt="a disc", seconds="1")
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no video"):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.NotFoundError):
        client.videos.delete(video.id)
    assert not (server.folder / "videos" / video.id).exists()


def test_the_official_client_is_told_what_is_wrong_with_a_call(client):
    with pytest.raises(openai.BadRequestError, match="this server has 'sprites'") as caught:
        client.videos.create(prompt="a disc", model="sora-2")
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="from words alone"):
        client.videos.create(prompt="a disc", input_reference=b"PNG")
    with pytest.raises(openai.BadRequestError, match="makes 32x32"):
        client.videos.create(prompt="a disc", size="1280x720")


def test_two_streams_of_a_growing_video_get_the_same_bytes_and_the_first_piece_plays(tmp_path):
    worker = FakeWorker(chunk_s=0.05)
    with running(options_in(tmp_path / "data"), worker) as server:
        name = server.order(seconds=3)
        got: list[bytes] = []

        def read():
            got.append(httpx.get(f"{server.url}/v1/videos/{name}/stream", timeout=LONG_S).content)

        other = threading.Thread(target=read)
        other.start()
        with server.client.stream("GET", f"/v1/videos/{name}/stream") as answer:
            pieces = answer.iter_raw()
            first = next(pieces)
            assert server.look(name)["status"] == "in_progress", "it did not wait for the whole"
            assert frames_of(first, tmp_path / "first.mp4") >= 9
            whole = first + b"".join(pieces)
        other.join(LONG_S)
        assert got == [whole]
        assert server.client.get(f"/v1/videos/{name}/content").content == whole


def test_sync_answers_with_the_video_itself(server, tmp_path):
    answer = server.client.post("/v1/videos/sync", data={"prompt": "x", "seconds": "1", "search[K]": "3"})  # fmt: skip
    assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
    assert frames_of(answer.content, tmp_path / "v.mp4") == 21
    job = server.look(answer.headers["x-video-id"])
    assert job["settings"] == {"search.histories": 3}


def test_events_replay_what_happened_and_a_reader_goes_on_where_it_was(server):
    name = server.made()
    answer = server.client.get(f"/v1/videos/{name}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [event["event"] for event in lines(answer)]
    chunk = ["turn", "settled", "saved"]
    assert kinds == ["began", *chunk, *chunk, "done"]
    ids = [line[4:] for line in answer.text.splitlines() if line.startswith("id: ")]
    rest = server.client.get(f"/v1/videos/{name}/events", headers={"Last-Event-ID": ids[3]})
    assert lines(rest) == lines(answer)[4:]
    over = server.client.get(f"/v1/videos/{name}/events", headers={"Last-Event-ID": ids[-1]})
    assert over.status_code == 204, "an EventSource would ask forever"


def test_a_socket_tells_events_and_switches_the_prompt(held):
    name = held.order()
    with connect(f"ws://127.0.0.1:{held.port}/v1/videos/{name}/live") as socket:
        socket.send(json.dumps({"prompt": "a blue disc", "chunk": None}))
        told = json.loads(socket.recv(LONG_S))
        assert (told["event"], told["prompt"], told["chunk"]) == ("switched", "a blue disc", 1)
        assert "tag" not in told
        socket.send(json.dumps({"prompt": "later", "chunk": 5000}))
        assert json.loads(socket.recv(LONG_S)) == {"event": "refused", "job": name, "reason": "no such chunk"}  # fmt: skip
        socket.send(json.dumps({"promt": "x"}))
        assert "no such field; did you mean prompt?" in json.loads(socket.recv(LONG_S))["reason"]
        held.worker.free()
        kinds = [json.loads(message)["event"] for message in socket]
    assert kinds[0] == "began" and kinds[-1] == "done"
    sent = [one for one in held.worker.commands if one["do"] == "switch"]
    assert [one["prompt"] for one in sent] == ["a blue disc", "later"]


def test_a_late_socket_hears_everything_from_the_start(server):
    name = server.made()
    with connect(f"ws://127.0.0.1:{server.port}/v1/videos/{name}/live") as socket:
        kinds = [json.loads(message)["event"] for message in socket]
    assert kinds[0] == "began" and kinds[-1] == "done" and kinds.count("settled") == 2


def test_the_trace_is_valid_json_while_it_grows(held):
    name = held.order()
    assert held.client.get(f"/v1/videos/{name}/trace").status_code == 409
    held.worker.free()
    held.wait(name, "completed")
    assert held.client.get(f"/v1/videos/{name}/trace").json() == {"chunks": [1]}


def test_content_of_an_unfinished_video_points_at_the_stream(held):
    name = held.order()
    answer = held.client.get(f"/v1/videos/{name}/content")
    assert answer.status_code == 409
    assert f"/v1/videos/{name}/stream" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        ("bytes=0-0", 206, (0, 1)),
        ("bytes=10-", 206, (10, None)),
        ("bytes=-7", 206, (-7, None)),
        ("bytes=5-99999999", 206, (5, None)),
        ("bytes=-99999999", 200, (0, None)),
        ("bytes=0-1,4-5", 200, (0, None)),
        ("bytes=9-3", 200, (0, None)),
        ("pages=1-2", 200, (0, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_one_range_of_a_video_can_be_asked_for(server, asked, status, span):
    name = finished(server)
    path = f"/v1/videos/{name}/content"
    whole = server.client.get(path).content
    answer = server.client.get(path, headers={"Range": asked})
    head = server.client.head(path, headers={"Range": asked})
    assert answer.status_code == head.status_code == status
    assert head.headers.get("content-range") == answer.headers.get("content-range")
    if span is None:
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"
        return
    assert answer.content == whole[span[0] : span[1]] and head.content == b""
    assert int(head.headers["content-length"]) == len(answer.content)


def finished(server) -> str:
    """Some finished video."""
    jobs = server.client.get("/v1/videos").json()["data"]
    return next((job["id"] for job in jobs if job["status"] == "completed"), None) or server.made()


def test_a_known_video_is_not_sent_again(server):
    path = f"/v1/videos/{finished(server)}/content"
    tag = server.client.get(path).headers["etag"]
    assert server.client.get(path, headers={"If-None-Match": tag}).status_code == 304
    stale = {"Range": "bytes=0-3", "If-Range": '"another"'}
    assert server.client.get(path, headers=stale).status_code == 200
    fresh = {"Range": "bytes=0-3", "If-Range": tag}
    assert server.client.get(path, headers=fresh).status_code == 206


def test_health_is_green_only_once_a_chunk_was_made(tmp_path):
    worker = FakeWorker(ready=False)
    with running(options_in(tmp_path), worker) as server:
        early = server.client.get("/health")
        assert (early.status_code, early.json()) == (503, {"state": "starting"})
        refused = server.client.post("/v1/videos", json=SHORT)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        worker.loop.call_soon_threadsafe(worker.begin)
        until(lambda: server.client.get("/health").status_code == 200)
        worker.alive = False
        assert server.client.get("/health").json() == {"state": "silent"}
        assert server.client.post("/v1/videos", json=SHORT).status_code == 503


def test_metrics_and_models_describe_the_server(server):
    name = server.made()
    answer = server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'stream_t1_jobs_ended_total{outcome="done"}' in answer.text
    (model,) = server.client.get("/v1/models").json()["data"]
    assert (model["id"], model["size"], model["fps"]) == ("sprites", "32x32", 16)
    assert server.look(name)["model"] == model["id"]


def test_a_job_that_a_reward_harmed_says_so(server):
    assert server.look(server.made(prompt="degrade"))["degraded"] == ["a reward raised"]


def test_jobs_and_videos_survive_a_restart_and_unfinished_ones_go_on(tmp_path):
    """One job is done, one has snapshots, one was begun without any, one never began."""
    worker = FakeWorker()
    with running(options_in(tmp_path), worker) as server:
        done = server.made()
        content = server.client.get(f"/v1/videos/{done}/content").content
        worker.hold()
        halfway = server.order(seconds=3, search={"seed": 7})
        bare = server.order(seconds=3)
        never = server.order()
        tell = worker.tell
        begin = {"event": "began", "job": halfway, "chunks": 4, "chunk": 0}
        for event in (begin, {"event": "saved", "job": halfway, "chunk": 2}, begin | {"job": bare}):
            worker.loop.call_soon_threadsafe(tell, event)
        until(lambda: server.look(bare)["status"] == "in_progress")
        snapshot = tmp_path / "videos" / halfway / "snapshot"
        snapshot.mkdir()
        (snapshot / "chunk.json").write_text("2")
    worker = FakeWorker()
    with running(options_in(tmp_path), worker) as server:
        assert server.client.get(f"/v1/videos/{done}/content").content == content
        again = {one["job"]: one for one in worker.commands if one["do"] == "submit"}
        assert set(again) == {halfway, never}
        assert again[halfway]["resume"] and not again[never]["resume"]
        assert again[halfway]["settings"] == {"search.seed": 7, "seconds": 3.0}
        failed = server.look(bare)
        assert (
            failed["status"] == "failed" and "nothing of it was saved" in failed["error"]["message"]
        )
        assert server.wait(halfway, "completed")["frames"] == 45
        assert server.wait(never, "completed")["frames"] == 21


def test_finished_videos_go_after_their_time(tmp_path):
    import dataclasses

    options = dataclasses.replace(options_in(tmp_path), keep_hours=0.2 / 3600)
    with running(options) as server:
        name = server.order()
        until(lambda: server.client.get(f"/v1/videos/{name}").status_code == 404)
        until(lambda: not (tmp_path / "videos" / name).exists())
