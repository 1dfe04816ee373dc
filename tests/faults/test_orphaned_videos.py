"""A server is killed, its worker goes on for the grace time and finishes a video that nobody hears of."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")

from runtime.serve.job_files import JobFiles
from tests.fake_worker import FakeWorker
from tests.serving import SHORT, options_in, running, until


@pytest.fixture(scope="module")
def orphan(tmp_path_factory):
    """A data folder whose only job was being made when its server ended, the name of the job, and the whole video."""
    root = tmp_path_factory.mktemp("orphan")
    worker = FakeWorker()
    with running(options_in(root), worker) as server:
        whole = server.client.get(f"/v1/videos/{server.made(seconds=2)}/content").content
        worker._chunk_s = 0.2
        name = server.order(seconds=2)
        until(lambda: server.look(name)["settled_chunks"] == 1)
    return root, name, whole


def word_left(root, name, whole, **told):
    folder = root / "videos" / name
    shutil.rmtree(folder / "snapshot")
    (folder / "video.mp4").write_bytes(whole)
    files = SimpleNamespace(_folder=folder, forget_snapshots=lambda: None)
    known = {"event": "done", "job": name, "frames": 33, "bytes": len(whole), "degraded": []}
    JobFiles.finish(files, known | told)  # type: ignore[arg-type]


def test_a_video_that_was_finished_unheard_is_done_for_the_next_server(orphan, tmp_path):
    root, name, whole = orphan
    shutil.copytree(root, tmp_path / "data")
    word_left(tmp_path / "data", name, whole, degraded=["a reward raised"])
    worker = FakeWorker()
    with running(options_in(tmp_path / "data"), worker) as server:
        job = server.look(name)
        assert (job["status"], job["progress"], job["frames"]) == ("completed", 100, 33)
        assert job["settled_chunks"] == job["chunks"] == 3 and job["degraded"] == [
            "a reward raised"
        ]
        assert server.client.get(f"/v1/videos/{name}/content").content == whole
        assert "event: done" in server.client.get(f"/v1/videos/{name}/events").text
        assert worker.commands == []
        server.client.post("/v1/videos", json=SHORT)


@pytest.mark.parametrize("told", [{"bytes": 10**9}, {"frames": 0}, {"bytes": None}], ids=str)
def test_word_that_does_not_fit_the_video_is_not_believed(orphan, tmp_path, told):
    root, name, whole = orphan
    shutil.copytree(root, tmp_path / "data")
    word_left(tmp_path / "data", name, whole, **told)
    with running(options_in(tmp_path / "data")) as server:
        job = server.look(name)
        assert (
            job["status"] == "failed" and "before a snapshot was saved" in job["error"]["message"]
        )


def test_snapshots_go_only_after_the_word_is_left(tmp_path):
    seen = []
    done = tmp_path / "done.json"
    files = SimpleNamespace(
        _folder=tmp_path, forget_snapshots=lambda: seen.append(json.loads(done.read_text()))
    )
    JobFiles.finish(files, {"frames": 9})  # type: ignore[arg-type]
    assert seen == [{"frames": 9}]
    files._folder = tmp_path / "not-there"
    JobFiles.finish(files, {"frames": 9})  # type: ignore[arg-type]
    assert len(seen) == 1
