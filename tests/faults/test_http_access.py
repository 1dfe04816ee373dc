"""Who may come in and how many at once: hosts, origins, keys, streams and sockets."""

import json
import socket

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.fake_worker import FakeWorker
from tests.serving import ABSENT, KEY, LONG_S, SHORT, TIGHT, error_of, options_in, running, until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Takes little; its worker begins nothing."""
    options = options_in(tmp_path_factory.mktemp("server"), **TIGHT)
    with running(options, FakeWorker(held=True)) as found:
        yield found


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server with a key."""
    with running(options_in(tmp_path_factory.mktemp("locked"), key=KEY)) as found:
        yield found


def test_another_host_name_and_another_sites_page_are_refused(server):
    rebound = server.client.get("/v1/videos", headers={"Host": "evil.example"})
    assert error_of(rebound, 400)["code"] == "wrong_host"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[", ""):
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
