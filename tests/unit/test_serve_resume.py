"""A video that was interrupted goes on from its newest good snapshot and ends with the bytes of one that never was."""

import asyncio
import json
import shutil
import subprocess
import sys

import pytest

from runtime import snapshot
from runtime.serve.inbox import Inbox
from runtime.serve.job_files import SNAPSHOTS, light
from runtime.serve.video_job import ALL_PICTURES_BYTES, reason_of, turn_event
from runtime.settings import Settings
from runtime.trace import read_trace
from tests.fake_async_engine import FakeAsyncEngine
from tests.fake_engine import FakeEngine
from tests.worker_at_hand import LONG, at_hand

CHUNKS = 20
SECONDS = (12 * CHUNKS - 3) / 16


def whole_of(folder):
    """What two runs must have the same: the video's bytes and the trace without its times."""
    trace = json.loads((folder / "trace.json").read_text())
    for chunk in trace["chunks"]:
        chunk["stage_ms"] = None
    return (folder / "video.mp4").read_bytes(), trace


def run(tmp_path, scenario, *arguments, **engine):
    async def inside():
        async with at_hand(tmp_path, *arguments, engine=FakeAsyncEngine(**engine)) as hand:
            return await scenario(hand)

    return asyncio.run(inside())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a job that was never interrupted."""
    tmp_path = tmp_path_factory.mktemp("whole")

    async def scenario(hand):
        hand.submit("v1", SECONDS)
        assert (await hand.end("v1"))["event"] == "done"

    run(tmp_path, scenario)
    return whole_of(tmp_path / "v1")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """The folder of a job whose worker was told to stop in the middle, and what it said."""
    tmp_path = tmp_path_factory.mktemp("halfway")

    async def scenario(hand):
        hand.submit("v1", SECONDS)
        await hand.told("saved", "v1", 2)
        hand.send(do="stop", grace_s=20)
        await asyncio.wait_for(hand.running, LONG)
        return hand.of("v1")

    events = run(tmp_path, scenario, "--snapshot-chunks", "6", holds=(6, 12))
    return tmp_path / "v1", events


@pytest.fixture
def folder(halfway, tmp_path):
    shutil.copytree(halfway[0], tmp_path / "v1")
    return tmp_path / "v1"


def resumed(folder, **more):
    """What a second worker says of the job."""

    async def scenario(hand):
        hand.submit("v1", **{"seconds": SECONDS, "resume": True} | more)
        await hand.end("v1")
        return hand.of("v1")

    return run(folder.parent, scenario)


def test_a_stop_saves_and_says_nothing_of_an_end(halfway):
    folder, events = halfway
    assert {e["event"] for e in events} == {"began", "turn", "settled", "saved"}
    assert events[-1]["event"] in ("settled", "saved")
    assert [e["chunk"] for e in events if e["event"] == "saved"] == [6, 12, 12]
    names = [path.name for path in snapshot.snapshots(folder / SNAPSHOTS)]
    assert names == ["000012", "000006"]
    assert read_trace(folder / "trace.json").outcome == "interrupted"


def test_it_goes_on_from_its_newest_snapshot_to_the_same_bytes(folder, whole):
    events, newest = resumed(folder), 12
    assert events[0]["event"] == "began" and events[0]["chunk"] == newest
    assert 0 < events[0]["bytes"] < len(whole[0]) and 0 < events[0]["settled"] <= newest
    assert [e["index"] for e in events if e["event"] == "turn"] == list(range(newest, CHUNKS))
    settled = [e["index"] for e in events if e["event"] == "settled"]
    assert settled == list(range(events[0]["settled"], CHUNKS))
    assert events[-1]["event"] == "done" and events[-1]["bytes"] == len(whole[0])
    assert whole_of(folder) == whole
    assert not (folder / SNAPSHOTS).exists()


def test_what_lies_behind_the_snapshot_does_not_matter(folder, whole):
    for name in ("video.mp4", "trace.json"):
        with (folder / name).open("ab") as file:
            file.write(b"half a chunk that a killed worker left")
    assert resumed(folder)[-1]["event"] == "done"
    assert whole_of(folder) == whole


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_a_damaged_snapshot_is_passed_over_for_the_one_before(folder, whole):
    newest, before = snapshot.snapshots(folder / SNAPSHOTS)
    spoil(newest / snapshot.TENSOR_FILE)
    events = resumed(folder)
    assert events[0]["chunk"] == int(before.name) and events[-1]["event"] == "done"
    assert whole_of(folder) == whole


def test_without_a_good_snapshot_the_job_fails_and_says_why_of_each(folder):
    newest, before = snapshot.snapshots(folder / SNAPSHOTS)
    spoil(newest / snapshot.TREE_FILE)
    (before / snapshot.TENSOR_FILE).unlink()
    video = (folder / "video.mp4").read_bytes()
    (failed,) = resumed(folder)
    assert failed["event"] == "failed" and not failed["resumable"]
    assert f"{newest.name}/snapshot.json: was cut short or changed" in failed["reason"]
    assert f"{before.name}/state.safetensors: there is no such file" in failed["reason"]
    assert str(folder) not in failed["reason"], "folders are nobody's business"
    assert (folder / "video.mp4").read_bytes() == video, "what was made still plays"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"settings": {"search.seed": 43}}, "settings.search.seed 42, now 43"),
        ({"prompts": [[0, "another"]]}, "prompts"),
    ],
    ids=["seed", "prompt"],
)
def test_a_snapshot_of_another_video_is_refused_by_name(folder, more, reason):
    (failed,) = resumed(folder, **more)
    assert failed["event"] == "failed"
    assert "made with other settings or weights" in failed["reason"] and reason in failed["reason"]


def test_a_snapshot_is_refused_when_its_video_has_become_shorter(folder):
    (folder / "video.mp4").write_bytes(b"")
    (failed,) = resumed(folder)
    assert "video.mp4: want at least" in failed["reason"]


def test_without_any_snapshot_a_job_begins_anew(folder, whole):
    shutil.rmtree(folder / SNAPSHOTS)
    events = resumed(folder)
    assert events[0]["chunk"] == 0 and events[-1]["event"] == "done"
    assert whole_of(folder) == whole


def test_a_job_that_was_stopped_in_the_queue_is_taken_up_from_the_start(tmp_path, whole):
    async def scenario(hand):
        hand.submit("long", 60)
        hand.submit("v1", SECONDS)
        await hand.told("turn", "long")
        hand.send(do="stop", grace_s=20)
        await asyncio.wait_for(hand.running, LONG)
        assert not hand.of("v1")

    run(tmp_path, scenario, holds=(3,), running=1)
    assert resumed(tmp_path / "v1")[-1]["event"] == "done"
    assert whole_of(tmp_path / "v1") == whole


@pytest.mark.parametrize(("every", "least", "most"), [(0, 0, 0), (7, 1, CHUNKS // 7)])
def test_snapshots_are_as_frequent_as_asked(tmp_path, every, least, most):
    async def scenario(hand):
        hand.submit("v1", SECONDS)
        await hand.end("v1")
        assert least <= len(hand.of("v1", "saved")) <= most

    run(tmp_path, scenario, "--snapshot-chunks", str(every), chunk_s=0.03)


# Small parts


def test_a_note_holds_nothing_of_the_device():
    records = []
    list(FakeEngine(Settings(), size=200).stream("x", watch=records.append))
    note = light(records[3])
    assert note.frames.shape == (4, 1, 3, 96, 96) and not note.survivors
    for candidate in note.candidates:
        assert candidate.noise.numel() == candidate.latents.numel() == 0
        assert candidate.branch.parent.unsettled == ()
    assert [c.scores for c in note.candidates] == [c.scores for c in records[3].candidates]


def test_a_crowded_turn_keeps_the_pictures_of_those_who_survive():
    records = []
    list(FakeEngine(Settings()).stream("x", watch=records.append))
    record = light(records[0])
    huge = "x" * (ALL_PICTURES_BYTES // 2)
    turn = {
        "stage_ms": {},
        "candidates": [
            {"rank": rank, "parent": 0, "thumbnail": huge} for rank in (None, 0, None, 1)
        ],
    }
    told = turn_event("v1", turn, record)["candidates"]
    assert [candidate["thumbnail"] is None for candidate in told] == [True, False, True, False]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("cannot write /d/v1/video.mp4:\n No space"),
            "cannot write video.mp4: No space",
        ),
        (ValueError(""), "ValueError"),
        (KeyError("secret"), "an internal error (KeyError); the worker's log has more"),
        (RuntimeError("x" * 5000), "x" * 500),
    ],
    ids=["path", "empty", "ours", "long"],
)
def test_a_reason_is_a_line_without_folders(error, told):
    assert reason_of(error, "/d/v1") == told


def test_an_inbox_is_bounded_by_bytes_and_keeps_order():
    async def scenario():
        inbox = Inbox(limit=100)
        await inbox.put("huge", 500)  # alone it may be any size
        late = asyncio.create_task(inbox.put("late", 60))
        await asyncio.sleep(0)
        assert not late.done()
        assert await inbox.get() == "huge"
        await late
        await inbox.put("fits", 40)
        more = asyncio.create_task(inbox.put("more", 1))
        await asyncio.sleep(0)
        assert not more.done()
        assert [await inbox.get() for _ in range(3)] == ["late", "fits", "more"]
        await more

    asyncio.run(scenario())


def test_torch_is_not_needed_to_talk_to_a_worker():
    rooms = "link", "metrics", "logs", "wire"
    code = f"import sys, {', '.join(f'runtime.serve.{room}' for room in rooms)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
