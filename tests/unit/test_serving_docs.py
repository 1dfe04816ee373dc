"""docs/serving.md says what the code does: its examples run, its tables are complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
pytest.importorskip("httpx", reason="the tests' HTTP client is not installed")

import httpx

from runtime.bench.load_table import table
from runtime.serve.app import build_app
from runtime.serve.arguments import parse
from runtime.serve.bodies import Search
from runtime.serve.jobs import CODES, STATUS
from runtime.serve.link import WorkerLink
from runtime.serve.metrics import Metrics
from runtime.serve.options import Bounds, ServeOptions
from tests.fake_worker import FakeWorker
from tests.http_thread import serving_app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
LIBRARY, CLIENT, EMBEDDING = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
LOAD = ROOT / "bench" / "results" / "load_cpu.json"


def code_lines(example: str) -> int:
    return sum(bool(line.strip()) and not line.startswith("#") for line in example.splitlines())


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_library_example_makes_two_videos(capsys):
    exec(compile(LIBRARY, "docs/serving.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # two videos of two chunks
    assert code_lines(LIBRARY) <= 10


def test_the_client_example_downloads_a_finished_video(tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="OpenAI's client is not installed")
    monkeypatch.chdir(tmp_path)
    app = build_app(FakeWorker(), ServeOptions(folder=tmp_path / "data"))
    with serving_app(app) as url:
        exec(compile(CLIENT.replace("http://127.0.0.1:8000/", url), "docs/serving.md", "exec"), {})
    assert (tmp_path / "red.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_embedding_example_serves_page_and_api_below_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runtime.serve.link.WorkerLink", lambda arguments: FakeWorker())
    names: dict = {}
    exec(compile(EMBEDDING, "docs/serving.md", "exec"), names)
    with serving_app(names["app"]) as url:
        assert httpx.get(f"{url}video/health").json() == {"state": "ready"}
        assert '<base href="/video/">' in httpx.get(f"{url}video/").text
        assert httpx.get(f"{url}video/page/page.js").status_code == 200
        ordered = httpx.post(f"{url}video/v1/videos", json={"prompt": "a red disc", "seconds": 1})
        assert ordered.json()["status"] == "queued"
    assert code_lines(EMBEDDING) <= 20


def test_every_route_is_in_the_table():
    told = section("API")
    app = build_app(WorkerLink([]), ServeOptions())
    paths = set(app.openapi()["paths"]) | {"/", "/videos/{name}", "/page/{name}"}
    assert paths  # of FastAPI's own description
    missing = [path for path in sorted(paths) if f"{path}`" not in told]
    assert not missing
    for method, path in re.findall(r"`(GET|POST|DELETE) (/v1[^`?]*)`", told):
        assert method.lower() in app.openapi()["paths"][path], path


def test_every_state_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)` \|.*?\| (?:`(\w+)` )?\|$", section("API"), flags=re.MULTILINE)
    assert {status for status, _ in rows} == set(STATUS.values())
    assert {code for _, code in rows if code} == set(CODES.values())


def test_every_search_field_is_named():
    told = section("API")
    assert not [name for name in Search.model_fields if f"`{name}`" not in told]


def test_every_limit_is_in_the_table_with_its_default():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", section("Limits"), flags=re.MULTILINE)
    told = {
        name.strip(" `"): float(value)
        for names, values in rows
        for name, value in zip(names.split(","), values.split(","), strict=True)
    }
    bounds = Bounds()
    assert told == {name: getattr(bounds, name) for name in Bounds.__slots__}


def test_every_metric_is_in_the_table_and_no_other():
    told = set(re.findall(r"`([a-z_]+)(?:\{\w+\})?`", section("Metrics").split("The log")[0]))
    told -= {"stream_t1_"}
    exported = set()
    for family in Metrics().registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        exported.add(family.name.removeprefix("stream_t1_") + suffix)
    assert told == exported


def test_the_manifest_calls_the_server_as_it_wants_to_be_called(monkeypatch):
    yaml = pytest.importorskip("yaml")
    monkeypatch.setenv("STREAM_T1_API_KEY", "a-key-of-the-manifest")
    (manifest,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    pod = yaml.safe_load(manifest)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = parse(container["args"]).options
    assert options.key == "a-key-of-the-manifest"
    assert options.grace_s < pod["terminationGracePeriodSeconds"]
    assert container["ports"] == [{"containerPort": options.port}]
    assert str(options.folder) == container["volumeMounts"][0]["mountPath"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": options.port}


def test_the_load_table_is_the_recorded_result():
    if LOAD.exists():
        assert table(json.loads(LOAD.read_text(encoding="utf-8"))) in TEXT
    else:
        assert "Not measured yet" in section("What two cores hold")


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", TEXT))))
def test_every_local_link_leads_somewhere(link):
    assert (ROOT / "docs" / link).exists()


def test_every_test_that_is_named_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]
