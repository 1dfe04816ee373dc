"""The server as an application: mounted elsewhere, its page, its door and what its names mean."""

import contextlib
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from runtime.serve import pages
from runtime.serve.__main__ import listening, main
from runtime.serve.app import build_app
from runtime.serve.arguments import parse
from runtime.serve.auth import COOKIE, Keyring
from runtime.serve.jobs import Job, Order, State, job_from, new_job
from runtime.serve.link import WorkerLink
from runtime.serve.options import Bounds, ServeOptions, loopback
from runtime.serve.orders import ALLOWED, FRIENDLY
from runtime.serve.worker_options import parse as parse_worker
from runtime.settings import setting_names
from tests.fake_worker import FakeWorker
from tests.serving import SHORT, options_in, until


def test_a_server_can_be_mounted_in_another_application(tmp_path):
    video = build_app(FakeWorker(), options_in(tmp_path))

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with video.router.lifespan_context(video):
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.mount("/video", video)
    with TestClient(outer, base_url="http://127.0.0.1") as client:
        name = client.post("/video/v1/videos", json=SHORT).json()["id"]
        until(lambda: client.get(f"/video/v1/videos/{name}").json()["status"] == "completed")
        assert client.get(f"/video/v1/videos/{name}/content").status_code == 200
        assert '<base href="/video/">' in client.get("/video/").text
        with client.websocket_connect(
            f"/video/v1/videos/{name}/live", headers={"host": "127.0.0.1"}
        ) as socket:
            told = [socket.receive_json()["event"] for _ in range(8)]
            assert (told[0], told[-1]) == ("began", "done")
            with pytest.raises(WebSocketDisconnect):
                socket.receive_json()


def test_two_servers_in_one_process_know_nothing_of_each_other(tmp_path):
    apps = [build_app(FakeWorker(), options_in(tmp_path / name)) for name in "ab"]
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(TestClient(app, base_url="http://127.0.0.1")) for app in apps)
        name = a.post("/v1/videos", json=SHORT).json()["id"]
        assert b.get(f"/v1/videos/{name}").status_code == 404
        assert b.get("/v1/videos").json()["data"] == []


def test_the_page_is_served_whole_and_may_load_nothing_from_elsewhere(tmp_path):
    app = build_app(FakeWorker(), options_in(tmp_path))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        files = pages.page_files()
        assert {"index.html", "page.js", "page.css"} <= set(files)
        for name, content in files.items():
            answer = client.get(f"/page/{name}")
            assert answer.content == content
            policy = answer.headers["content-security-policy"]
            assert (
                "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            )
        index = client.get("/")
        assert index.content == files["index.html"]
        assert client.get("/videos/video_" + "0" * 32).content == index.content
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", index.text)
        assert client.get("/page/nothing.js").status_code == 404
        assert client.get("/docs").status_code == 404, "its scripts come from elsewhere"


def test_every_request_has_a_name_in_its_answer_and_its_log_line(tmp_path, caplog):
    app = build_app(FakeWorker(), options_in(tmp_path))
    with caplog.at_level("INFO", "runtime.serve"), TestClient(app, base_url="http://127.0.0.1") as client:  # fmt: skip
        mine = client.get("/health?secret=1", headers={"X-Request-Id": "mine-1"})
        assert mine.headers["x-request-id"] == "mine-1"
        strange = client.get("/health", headers={"X-Request-Id": "a b\tc"})
        assert re.fullmatch("[0-9a-f]{16}", strange.headers["x-request-id"])
    facts = [record.facts for record in caplog.records if hasattr(record, "facts")]
    assert (facts[0]["method"], facts[0]["path"], facts[0]["status"]) == ("GET", "/health", 200)
    assert "secret" not in caplog.text


def test_an_error_of_ours_tells_the_log_and_not_the_client(tmp_path, caplog, monkeypatch):
    app = build_app(FakeWorker(), options_in(tmp_path))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        monkeypatch.setattr(app.state.service.metrics, "render", lambda: 1 / 0)
        answer = client.get("/metrics")
    assert answer.status_code == 500 and "division" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "ZeroDivisionError" in caplog.text


def test_the_settings_of_a_request_exist_and_none_is_the_engines_own():
    assert set(setting_names()) >= ALLOWED
    assert set(FRIENDLY.values()) <= ALLOWED
    engines = ("fidelity", "reward.image", "reward.video", "reward.weights", "reward.graphs")
    assert not [name for name in ALLOWED if name.startswith(("run.", *engines))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prot", "1"], "--prot: no such option; did you mean --port?"),
        (["--preset", "sprite"], "did you mean 'sprites'?"),
        (["--set", "search.histores=2"], "did you mean search.histories?"),
        (["--set", "x"], "want NAME=VALUE"),
        (["--limit", "job=3"], "did you mean jobs?"),
        (["--limit", "jobs=x"], "want a number"),
        (["--limit", "jobs=0"], "want more than 0"),
        (["--limit", "seconds=nan"], "want more than 0"),
        (["--port", "70000"], "0 to 65535"),
        (["--grace", "0"], "grace_s"),
        (["--host", "0.0.0.0"], "there is no key"),
        (["--api-key-file", "/nonexistent"], "cannot read"),
        (["--threads", "-1"], "at least 0"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert words in told and told.startswith("error: ") and told.count("\n") == 1


def test_the_key_comes_from_a_file_or_the_environment_and_is_never_shown(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_text("a-secret-from-a-file\n")
    call = parse(["--host", "0.0.0.0", "--api-key-file", str(path)])
    assert call.options.key == "a-secret-from-a-file" and call.options.hosts == ()
    assert "secret" not in repr(call) and "secret" not in " ".join(call.worker)
    monkeypatch.setenv("STREAM_T1_API_KEY", "a-secret-from-outside")
    assert parse([]).options.key == "a-secret-from-outside"
    monkeypatch.setenv("STREAM_T1_API_KEY", "short")
    with pytest.raises(ValueError, match="at least 8") as caught:
        parse([])
    assert "short" not in str(caught.value)
    path.write_text("two words")
    with pytest.raises(ValueError, match="want one key"):
        parse(["--api-key-file", str(path)])


def test_the_worker_gets_the_settings_and_nothing_of_the_servers_own():
    call = parse(["--preset", "sprites", "--set", "search.histories=3", "--limit", "seconds=7", "--threads", "2"])  # fmt: skip
    assert call.options.settings.search.histories == 3
    assert call.options.bounds.seconds == 7.0
    options = parse_worker([*call.worker, "--link-fd", "3"])
    assert options.settings == call.options.settings
    assert (options.threads, options.grace_s, options.snapshot_chunks) == (2, 20.0, 4)
    assert (options.limits.seconds, options.limits.queued, options.limits.videos) == (7.0, 64, 4)
    assert isinstance(WorkerLink(call.worker), WorkerLink)


def test_a_taken_port_is_named():
    with listening(ServeOptions(port=0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1 port {port}"),
            listening(ServeOptions(port=port)),
        ):
            pass


def test_the_http_process_imports_no_torch():
    code = (
        "import sys, runtime.serve.__main__; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_job_is_read_back_as_it_was_written():
    job = new_job(
        Order(prompts=((0, "ä"), (3, "b")), seconds=2.0, settings={"search.seed": 2**62}),
        "m",
        "1x1",
    )
    assert job_from(job.to_json()) == job
    for text in ("{}", "[]", "3", '{"order": {}}', job.to_json().replace("queued", "lost")):
        with pytest.raises(ValueError):
            job_from(text)


def test_progress_is_a_hundred_only_when_it_is_done():
    job = Job(id="x", order=Order(prompts=((0, "x"),), seconds=1), model="m", size="1x1", created=0.0,
              chunks=3, settled=3, state=State.RUNNING)  # fmt: skip
    assert job.progress == 99


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.3.2.1", True), ("0.0.0.0", False), ("10.0.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_only_this_machines_addresses_are_loopback(host, alone):
    assert loopback(host) == alone
    assert bool(ServeOptions(host=host).hosts) == alone
    assert Bounds() == Bounds()


def asking(**headers: str) -> HTTPConnection:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw})


def test_a_cookie_is_good_for_its_time_its_server_and_unchanged(monkeypatch):
    ring = Keyring("a-key-of-the-tests")
    cookie = f"{COOKIE}={ring.cookie()}"
    assert ring.admits(asking(cookie=cookie)) and not ring.admits(asking())
    until, _, mark = cookie.partition("=")[2].partition(".")
    for forged in (
        f"{int(until) + 1}.{mark}",
        f"{until}.",
        f"{until}.{mark[:-1]}",
        f".{mark}",
        "x",
    ):
        assert not ring.admits(asking(cookie=f"{COOKIE}={forged}"))
    assert not Keyring("a-key-of-the-tests").admits(asking(cookie=cookie)), "another process"
    monkeypatch.setattr("time.time", lambda: float(until))
    assert not ring.admits(asking(cookie=cookie))
    assert Keyring(None).admits(asking())


def test_unfinished_jobs_of_another_model_are_failed_and_not_begun(tmp_path):
    app = build_app(FakeWorker(held=True), options_in(tmp_path))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        name = client.post("/v1/videos", json=SHORT).json()["id"]
    worker = FakeWorker()
    app = build_app(worker, replace(options_in(tmp_path), model="another"))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        job = client.get(f"/v1/videos/{name}").json()
    assert "ordered from sprites, and this server has another" in job["error"]["message"]
    assert not worker.commands
