"""Everything at once: the door, the true worker with the embedded model, and OpenAI's client."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import httpx
import openai
import pytest

from runtime.trace import read_trace
from tests.serving import until

PATIENCE_S = 120.0
LONG = {"prompt": "a red circle moving right on a navy background", "seconds": 8, "search": {"K": 2, "M": 2}}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


class Whole:
    """``python -m runtime.serve``, ready."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "runtime.serve", "--port", "0", "--data", str(folder),
                   "--threads", "1", "--snapshot-chunks", "2"]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.log = folder.with_suffix(".log")
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)  # fmt: skip
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert " on http://127.0.0.1:" in line, self.log.read_text()
        self.url = line.split()[3]
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        until(lambda: self.client.get("/health").status_code == 200, PATIENCE_S)

    def look(self, name: str) -> dict:
        return self.client.get(f"/v1/videos/{name}").json()

    def end(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()


def test_a_prompt_becomes_a_video_a_trace_and_numbers(tmp_path):
    whole = Whole(tmp_path / "data")
    try:
        with openai.OpenAI(base_url=f"{whole.url}/v1", api_key="none", max_retries=0) as client:
            video = client.videos.create_and_poll(
                prompt="a red circle moving right on a navy background", seconds="1",
                extra_body={"search": {"K": 1, "M": 2}}, poll_interval_ms=50,
            )  # fmt: skip
            assert video.status == "completed", video
            content = client.videos.download_content(video.id).read()
        path = tmp_path / "v.mp4"
        path.write_bytes(content)
        with av.open(str(path)) as found:
            assert sum(1 for _ in found.decode(video=0)) == 21 == video.model_extra["frames"]
        trace = tmp_path / "trace.json"
        trace.write_bytes(whole.client.get(f"/v1/videos/{video.id}/trace").content)
        story = read_trace(trace)
        assert (len(story.shown()), story.outcome) == (2, "finished")
        assert all(len(chunk.candidates) <= 2 for chunk in story.chunks)
        assert "stream_t1_frames_total 21.0" in whole.client.get("/metrics").text
    finally:
        code = whole.end()
    assert code == 0 and "Traceback" not in whole.log.read_text()


@pytest.mark.slow
def test_a_video_that_was_stopped_in_the_middle_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    whole = Whole(tmp_path / "data")
    try:
        name = whole.client.post("/v1/videos", json=LONG).json()["id"]
        until(lambda: whole.look(name)["settled_chunks"] >= 2, PATIENCE_S)
    finally:
        assert whole.end() == 0
    whole = Whole(tmp_path / "data")
    try:
        resumed = whole.client.get(f"/v1/videos/{name}/stream").content
        assert whole.look(name)["status"] == "completed"
        assert resumed == whole.client.post("/v1/videos/sync", json=LONG).content
    finally:
        assert whole.end() == 0
