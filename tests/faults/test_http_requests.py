"""What is wrong with a request is named, and nothing is allocated for it."""

import json
import socket

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.fake_worker import FakeWorker
from tests.serving import ABSENT, SHORT, TIGHT, error_of, options_in, running

HEAD = b"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Takes little; its worker begins nothing."""
    options = options_in(tmp_path_factory.mktemp("server"), **TIGHT)
    with running(options, FakeWorker(held=True)) as found:
        yield found


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
    ["%2e%2e", "..%2f..%2fjobs.sqlite3", "video_", ABSENT.upper(), ABSENT + "0", "a" * 3000, "%00"],
)  # fmt: skip
def test_a_name_that_is_none_finds_nothing(server, name):
    for path in ("", "/content", "/stream", "/trace", "/events"):
        assert server.client.get(f"/v1/videos/{name}{path}").status_code in (404, 405)
    assert server.client.delete(f"/v1/videos/{name}").status_code in (404, 405)
    assert server.client.get(f"/page/{name}").status_code == 404
    assert server.client.get(f"/videos/{name}").status_code == 404


def test_a_path_that_climbs_reaches_nothing(server):
    """Raw, as clients tidy such paths up before they send them."""
    for path in (
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/v1/videos/../../etc/passwd",
        "//etc/passwd",
    ):
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        assert b" 404 " in talk(server.port, request.encode()).splitlines()[0]


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
