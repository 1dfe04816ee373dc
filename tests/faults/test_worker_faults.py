"""A worker process that is killed, stopped, orphaned or out of disk: what was finished plays, and the rest goes on."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest

from runtime import snapshot
from runtime.serve.job_files import SNAPSHOTS
from runtime.serve.link import WorkerLink
from runtime.trace import read_trace
from tests.worker_at_hand import LONG, AtHand

MODULE = "tests.fake_worker_process"
GONE_SECONDS = 5.0  # promised


class Linked(AtHand):
    """A worker in a process of its own."""

    def __init__(self, folder, link):
        super().__init__(folder, None)
        self.link = link

    def send(self, **command):
        self.link.send(command)


@contextlib.asynccontextmanager
async def linked(folder, monkeypatch, *arguments, **hooks):
    monkeypatch.setenv("STREAM_T1_FAKE", json.dumps(hooks))
    link = WorkerLink([*arguments, "--threads", "1"], module=MODULE)
    hand = Linked(folder, link)
    await link.start(hand.note)
    try:
        yield hand
    finally:
        await link.stop(0)


def run(scenario):
    return asyncio.run(scenario())


def frames_of(path):
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def plays_what_was_told(hand, job):
    settled = hand.of(job, "settled")
    frames = sum(event["frames"] for event in settled)
    assert settled and frames_of(hand.folder / job / "video.mp4") >= frames
    assert (hand.folder / job / "video.mp4").stat().st_size >= settled[-1]["bytes"]


async def appears(path):
    for _ in range(int(LONG / 0.01)):
        if path.exists():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} never appeared")


def over(pid):
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_sigkill_while_a_snapshot_is_written_leaves_the_one_before_and_it_goes_on_from_there(
    tmp_path, monkeypatch
):
    async def killed():
        slow = {"slow_snapshot_s": 60, "first": 1, "holds": [2, 8]}
        async with linked(tmp_path, monkeypatch, "--snapshot-chunks", "2", **slow) as hand:
            await hand.told("ready")
            folder = hand.submit("v1", 9)
            await hand.told("saved", "v1")
            await appears(folder / "writing")
            await hand.told("settled", "v1", 5)  # a slow disk for snapshots does not stop the video
            os.kill(hand.link.pid, signal.SIGKILL)
            gone = await asyncio.wait_for(hand.told("gone"), GONE_SECONDS)
            assert gone["reason"] == "the worker was killed by signal 9 (SIGKILL)"
            assert not hand.link.alive
            plays_what_was_told(hand, "v1")
            return hand.of("v1", "saved")[-1]["chunk"]

    saved = run(killed)
    folder = tmp_path / "v1"
    assert [path.name for path in snapshot.snapshots(folder / SNAPSHOTS)] == [f"{saved:06d}"]
    assert list((folder / SNAPSHOTS).glob(".*.tmp")), "it was killed in the middle"

    async def again():
        async with linked(tmp_path, monkeypatch) as hand:
            hand.submit("v1", 9, resume=True)
            hand.submit("whole", 9)
            assert (await hand.end("v1"))["event"] == (await hand.end("whole"))["event"] == "done"
            assert hand.of("v1")[0]["chunk"] == saved

    run(again)
    videos = [(tmp_path / job / "video.mp4").read_bytes() for job in ("v1", "whole")]
    assert videos[0] == videos[1]
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["done.json", "trace.json", "video.mp4", "writing"]


def test_sigterm_saves_what_is_being_made_and_ctrl_c_is_not_the_workers_affair(
    tmp_path, monkeypatch
):
    async def scenario():
        async with linked(tmp_path, monkeypatch, "--snapshot-chunks", "0", chunk_s=0.1) as hand:
            for job in ("a", "b"):
                hand.submit(job, 60)
            await hand.told("settled", "b", 3)
            os.kill(hand.link.pid, signal.SIGINT)
            await hand.told("settled", "b", 4)
            made = len(hand.of("a", "turn")), len(hand.of("b", "turn"))
            os.kill(hand.link.pid, signal.SIGTERM)
            gone = await hand.told("gone")
            assert gone["reason"] == "the worker ended by itself with exit code 0"
            for job, least in zip("ab", made, strict=True):
                (saved,) = hand.of(job, "saved")
                (found,) = snapshot.snapshots(tmp_path / job / SNAPSHOTS)
                assert int(found.name) == saved["chunk"] >= least
                plays_what_was_told(hand, job)
                assert read_trace(tmp_path / job / "trace.json").outcome == "interrupted"
                assert {e["event"] for e in hand.of(job)} == {"began", "turn", "settled", "saved"}

    run(scenario)


def test_a_second_sigterm_ends_it_at_once(tmp_path, monkeypatch):
    async def scenario():
        async with linked(tmp_path, monkeypatch, "--grace", "3000", chunk_s=1000) as hand:
            hand.submit("v1")
            await hand.told("began", "v1")
            os.kill(hand.link.pid, signal.SIGTERM)
            beats = sum(event["event"] == "stats" for event in hand.events)
            await hand.told("stats", count=beats + 2)  # it waits for its chunk, and lives
            os.kill(hand.link.pid, signal.SIGTERM)
            assert (await hand.told("gone"))["reason"].endswith("exit code 143")

    run(scenario)


def test_a_grace_that_is_over_ends_a_worker_whatever_it_waits_for(tmp_path, monkeypatch):
    async def scenario():
        async with linked(tmp_path, monkeypatch, "--grace", "0.2", chunk_s=1000) as hand:
            hand.submit("v1")
            await hand.told("began", "v1")
            os.kill(hand.link.pid, signal.SIGTERM)
            assert (await hand.told("gone"))["reason"].endswith("exit code 1")

    run(scenario)


SERVER = f"""
import asyncio, os, signal, sys
from runtime.serve.link import WorkerLink

async def serve(folder):
    saved = asyncio.Event()
    link = WorkerLink(["--threads", "1", "--snapshot-chunks", "2"], module="{MODULE}")
    await link.start(lambda event: saved.set() if event["event"] == "saved" else None)
    settings = {{"seconds": 600}}
    link.send({{"do": "submit", "job": "v1", "folder": folder, "prompts": [[0, "x"]], "settings": settings}})
    await saved.wait()
    print(link.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(serve(sys.argv[1]))
"""


def test_a_worker_whose_server_was_killed_saves_ends_and_leaves_no_orphan(tmp_path, monkeypatch):
    monkeypatch.setenv("STREAM_T1_FAKE", json.dumps({"chunk_s": 0.05}))
    server = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert server.returncode == -signal.SIGKILL, server.stderr
    pid = int(server.stdout)

    async def ends():
        while not over(pid):
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(ends(), LONG))
    newest, _ = snapshot.snapshots(tmp_path / SNAPSHOTS)
    assert int(newest.name) > 2, "saved once more at the end"
    assert frames_of(tmp_path / "video.mp4") > 0
    assert not list((tmp_path / SNAPSHOTS).glob(".*"))


def test_a_full_disk_fails_its_job_with_the_reason_and_no_other(tmp_path, monkeypatch):
    """Pretended for the video of one job, the trace of another and the snapshots of a third; real for a fourth."""
    full = [["video.mp4", "video", 20_000], ["trace.json", "trace", 30_000]]

    async def scenario():
        hooks = {"full": full, "full_snapshots": "saves", "file_bytes": 150_000, "chunk_s": 0.02}
        async with linked(tmp_path, monkeypatch, "--snapshot-chunks", "2", **hooks) as hand:
            for job in ("video", "trace", "saves", "fine"):
                hand.submit(job, 15)
            hand.submit("long", 40)
            ends = {job: await hand.end(job) for job in ("video", "trace", "saves", "fine")}
            said = {job: event.get("reason") for job, event in ends.items()}
            no_space = "No space left on device"
            assert said["video"] == f"cannot write video.mp4: {no_space}"
            assert said["trace"] == f"cannot write trace.json: {no_space}"
            assert said["saves"].startswith("cannot write the snapshot snapshot/0000")
            assert said["saves"].endswith(no_space)
            assert ends["fine"]["event"] == "done" and len(hand.of("fine", "settled")) == 20
            for job in ("video", "trace", "saves"):
                assert ends[job]["event"] == "failed"
                plays_what_was_told(hand, job)
                told = read_trace(tmp_path / job / "trace.json")  # valid, whatever happened
                assert told.outcome in ("failed", "unfinished")
            assert ends["video"]["resumable"] and not ends["saves"]["resumable"]
            assert not list(tmp_path.rglob("*.tmp"))
            assert (await hand.end("long"))["reason"] == "cannot write video.mp4: File too large"
            plays_what_was_told(hand, "long")
            assert (tmp_path / "long" / "video.mp4").stat().st_size <= 150_000
            hand.submit("later")
            assert (await hand.end("later"))["event"] == "done" and hand.link.alive

    run(scenario)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--link-fd", "0", "--preset", "sprite"], "preset: want one of"),
        (["--link-fd", "0", "--set", "seconds"], "--set: want NAME=VALUE"),
        (["--link-fd", "0", "--set", "search.beams=1"], "search.beams: no such setting"),
        (["--link-fd", "0", "--snapshot-chunks", "-1"], "--snapshot-chunks: want at least 0"),
        (["--link-fd", "0", "--limit", "queued=-1"], "limits.queued: want 0 to"),
        (["--link-fd", "0", "--limit", "queue=1"], "did you mean 'queued'?"),
        (["--link-fd", "0", "--limit", "videos=x"], "--limit: videos: want a number, got 'x'"),
        (["--preset", "sprites"], "--link-fd"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_a_wrong_call_is_a_sentence_and_code_two(arguments, said, capsys):
    from runtime.serve.worker import main

    assert main(arguments) == 2
    assert said in capsys.readouterr().err
