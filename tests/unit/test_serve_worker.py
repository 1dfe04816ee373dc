"""The worker: jobs in, files and events out, and nothing that a message could break."""

import asyncio
import json
import logging
import socket

import av
import pytest

from runtime.serve.job_files import SNAPSHOTS, JobFiles
from runtime.serve.wire import MAX_LINE_BYTES
from runtime.serve.worker import Worker
from runtime.serve.worker_options import parse
from runtime.trace import read_trace
from tests.fake_async_engine import FakeAsyncEngine
from tests.worker_at_hand import LONG, at_hand


def frames_of(path):
    with av.open(str(path)) as video:
        return sum(1 for _ in video.decode(video=0))


def runs(tmp_path, scenario, *arguments, **engine):
    async def run():
        async with at_hand(tmp_path, *arguments, engine=FakeAsyncEngine(**engine)) as hand:
            await scenario(hand)

    asyncio.run(run())


def test_a_job_becomes_a_video_a_trace_and_events_in_order(tmp_path):
    async def scenario(hand):
        folder = hand.submit("v1")
        done = await hand.end("v1")
        kinds = [e["event"] for e in hand.of("v1")]
        assert kinds[0] == "began" and kinds[-1] == "done"
        assert hand.of("v1")[0] == {"event": "began", "job": "v1", "chunks": 5, "chunk": 0}
        turns, settled = hand.of("v1", "turn"), hand.of("v1", "settled")
        assert [e["index"] for e in turns] == [e["index"] for e in settled] == [0, 1, 2, 3, 4]
        for index in range(5):  # nobody hears of a settled chunk whose candidates he does not know
            assert hand.events.index(turns[index]) < hand.events.index(settled[index])
        video = folder / "video.mp4"
        assert done["bytes"] == settled[-1]["bytes"] == video.stat().st_size
        assert done["frames"] == sum(e["frames"] for e in settled) == frames_of(video) == 57
        assert done["degraded"] == [] and not (folder / SNAPSHOTS).exists()
        trace = read_trace(folder / "trace.json")
        assert trace.outcome == "finished" and list(trace.path) == [e["seed"] for e in settled]
        assert len(trace.shown()) == 5

    runs(tmp_path, scenario)


def test_every_settled_event_says_how_much_of_the_file_plays(tmp_path):
    async def scenario(hand):
        folder = hand.submit("v1")
        await hand.end("v1")
        content, frames = (folder / "video.mp4").read_bytes(), 0
        for number, event in enumerate(hand.of("v1", "settled")):
            part = tmp_path / f"{number}.mp4"
            part.write_bytes(content[: event["bytes"]])
            frames += event["frames"]
            assert frames_of(part) == frames

    runs(tmp_path, scenario)


def test_a_turn_tells_every_candidate_with_its_picture(tmp_path):
    async def scenario(hand):
        hand.submit("v1")
        await hand.end("v1")
        turn = hand.of("v1", "turn")[1]
        assert (turn["histories"], turn["expansions"]) == (2, 2) and turn["stage_ms"]["denoise"] > 0
        assert sorted(c["rank"] for c in turn["candidates"] if c["rank"] is not None) == [0, 1]
        wanted = {"row", "parent", "expansion", "seed", "short", "long", "fused", "quality_gain",
                  "long_drop", "route", "rank", "thumbnail"}  # fmt: skip
        assert all(set(candidate) == wanted for candidate in turn["candidates"])
        assert turn["candidates"][0]["thumbnail"].startswith("data:image/jpeg;base64,/9j/")

    runs(tmp_path, scenario)


def test_ready_says_what_a_warm_up_made(tmp_path):
    async def scenario(hand):
        ready = hand.events[0]
        assert ready["event"] == "ready" and (ready["width"], ready["height"]) == (384, 384)
        assert ready["fps"] == 16 and ready["blocks"] == 16 and ready["device"] == "cpu"
        assert ready["warm_ms"] > 0 and ready["implementations"] == {"noise": "torch"}
        assert ready["weights"] == "discs"
        stats = await hand.told("stats", count=2)
        assert stats["blocks_used"] == 3 and stats["queued"] == 0

    runs(tmp_path, scenario)


def test_jobs_side_by_side_are_those_made_alone(tmp_path):
    async def scenario(hand):
        for seed in range(4):
            hand.submit(f"v{seed}", settings={"search.seed": seed})
        for seed in range(4):
            assert (await hand.end(f"v{seed}"))["event"] == "done"
        hand.submit("alone", settings={"search.seed": 2})
        await hand.end("alone")

    runs(tmp_path, scenario)
    videos = [(tmp_path / name / "video.mp4").read_bytes() for name in ("alone", "v2", "v1")]
    assert videos[0] == videos[1] != videos[2]


def test_a_worker_that_cannot_build_its_engine_says_why_with_its_last_words():
    def build(settings, limits):
        raise RuntimeError("the weights are not there")

    async def scenario():
        ours, theirs = socket.socketpair()
        with ours:
            worker = Worker(parse(["--link-fd", str(theirs.detach())]), build)
            with pytest.raises(RuntimeError, match="not there"):
                await worker.run()
            return ours.recv(1000)

    fatal = {"event": "fatal", "reason": "the weights are not there"}
    assert json.loads(asyncio.run(scenario())) == fatal


def test_a_worker_whose_engine_died_tells_its_jobs_and_ends(tmp_path):
    async def scenario():
        engine = FakeAsyncEngine(holds=(3,))
        with pytest.raises(RuntimeError, match="the engine's thread ended"):
            async with at_hand(tmp_path, engine=engine) as hand:
                hand.submit("v1", seconds=60)
                await hand.told("settled", "v1")
                engine.jobs[0].cancel("the engine's thread ended: MemoryError")
                engine.alive = False
                await hand.told("fatal")
        assert [e["event"] for e in hand.events[-2:]] == ["cancelled", "fatal"]

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", [False, True])
def test_no_line_of_the_log_tells_a_prompt(tmp_path, caplog, broken, monkeypatch):
    caplog.set_level(logging.DEBUG)
    if broken:
        monkeypatch.setattr(JobFiles, "settle", lambda *_: 1 / 0)

    async def scenario(hand):
        hand.submit("v1", prompts=[[0, "xyzzy"], [2, "plugh"]])
        end = await hand.end("v1")
        hand.send(do="switch", job="v1", prompt="frotz", chunk=None, tag=1)
        await hand.told("refused")
        assert end["event"] == ("failed" if broken else "done")

    runs(tmp_path, scenario)
    assert "submitted" in caplog.text and ("ZeroDivisionError" in caplog.text) is broken
    assert not any(word in caplog.text for word in ("xyzzy", "plugh", "frotz"))


# Cancelling, switching, refusing


def test_a_cancelled_job_ends_within_a_chunk_and_what_it_has_plays(tmp_path):
    async def scenario(hand):
        folder = hand.submit("v1", seconds=60)
        await hand.told("settled", "v1", 2)
        hand.send(do="cancel", job="v1")
        assert (await hand.end("v1"))["event"] == "cancelled"
        last = hand.of("v1", "settled")[-1]
        assert last["index"] < 5 and (folder / "video.mp4").stat().st_size == last["bytes"]
        assert read_trace(folder / "trace.json").outcome == "interrupted"
        assert not (folder / SNAPSHOTS).exists()

    runs(tmp_path, scenario, holds=(5,))


def test_a_queued_job_can_be_cancelled_and_leaves_no_file(tmp_path):
    async def scenario(hand):
        hand.submit("long", seconds=60)
        await hand.told("turn", "long")
        folder = hand.submit("waits")
        hand.send(do="cancel", job="waits")
        hand.send(do="cancel", job="long")
        assert (await hand.end("waits"))["event"] == "cancelled"
        assert not list(folder.iterdir()) and not hand.of("waits", "began")

    runs(tmp_path, scenario, holds=(3,), running=1)


def test_a_switch_is_answered_under_its_tag(tmp_path):
    async def scenario(hand):
        hand.submit("v1", seconds=60)
        await hand.told("settled", "v1")
        hand.send(do="switch", job="v1", prompt="a star", chunk=None, tag={"any": 1})
        switched = await hand.told("switched", "v1")
        assert (switched["prompt"], switched["tag"]) == ("a star", {"any": 1})
        assert switched["chunk"] >= 1
        hand.send(do="switch", job="v1", prompt="a star", chunk=0, tag="late")
        refused = await hand.told("refused", "v1")
        assert refused["tag"] == "late" and "want a later one" in refused["reason"]
        hand.send(do="cancel", job="v1")
        await hand.end("v1")
        hand.send(do="switch", job="v1", prompt="a star", chunk=None, tag="after")
        assert "no such job here" in (await hand.told("refused", "v1", 2))["reason"]

    runs(tmp_path, scenario, holds=(5,))


GOOD = {"do": "submit", "job": "v1", "folder": "/", "prompts": [[0, "x"]], "settings": {}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"folder": "relative"}, "folder: want an absolute path"),
        ({"folder": "/there/is/none"}, "folder: there is none"),
        ({"folder": "/\0"}, "folder: want an absolute path"),
        ({"folder": 7}, "folder: want a text, got 7"),
        ({"prompts": []}, "prompts: want 1 to 1000 pairs"),
        ({"prompts": [[0]]}, "prompts: want pairs"),
        ({"prompts": [[True, "x"]]}, "prompts: want a whole number, got True"),
        ({"prompts": [[0, "  "]]}, "prompt: want some words"),
        ({"prompts": [[0, "x" * 4097]]}, "prompt: want at most 4096 characters"),
        ({"settings": []}, "settings: want an object"),
        ({"settings": {"search.beam": 2}}, "search.beam: no such setting"),
        ({"settings": {"seconds": 1e9}}, "seconds: want a length"),
        ({"settings": {"search.seed": 666}}, "search.seed: not this one"),  # the engine's own
        ({"priority": 9}, "priority: want -8 to 8"),
        ({"priority": 1.0}, "priority: want a whole number"),
        ({"deadline_s": 0}, "deadline_s: want a number in"),
        ({"budget_fps": "fast"}, "budget_fps: want a number in"),
        ({"resume": 1}, "resume: want true or false"),
    ],
    ids=str,
)
def test_a_wrong_submission_is_a_failed_job_with_the_reason(change, reason, hand_and_loop):
    hand, loop = hand_and_loop
    hand.events.clear()
    hand.send(**GOOD | change)
    failed = loop.run_until_complete(hand.told("failed", "v1"))
    assert reason in failed["reason"] and failed["resumable"] is False


@pytest.fixture(scope="module")
def hand_and_loop(tmp_path_factory):
    """One worker for tests that only say wrong things to it; it makes a video at the end."""
    loop = asyncio.new_event_loop()
    context = at_hand(tmp_path_factory.mktemp("wrong"))
    hand = loop.run_until_complete(context.__aenter__())
    yield hand, loop
    hand.submit("fine")
    assert loop.run_until_complete(hand.end("fine"))["event"] == "done"
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\x00\xff\xfe", "want UTF-8"),
        (b"", "not valid JSON"),
        (b"[]", "want an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b"x" * (MAX_LINE_BYTES + 10), "is too long"),
        (b'{"do": "dance"}', "do: want one of submit, cancel, switch, stop, got 'dance'"),
        (b'{"do": ["submit"]}', "do: want one of"),
        (b'{"do": "submit", "job": "../../etc"}', "folder: want a text"),
        (
            b'{"do": "submit", "job": "../v", "folder": "/", "prompts": [[0, "x"]]}',
            "job: want 1 to",
        ),
        (b'{"do": "cancel", "job": "nobody"}', "no such job here"),
        (b'{"do": "cancel", "job": null}', "job: want 1 to 80 of"),
        (b'{"do": "switch", "job": "v", "prompt": ""}', "prompt: want a text"),
        (b'{"do": "switch", "job": "v", "prompt": "x", "chunk": -1}', "chunk: want at least 0"),
        (b'{"do": "switch", "job": "v", "prompt": "\\ud800"}', "want UTF-8"),
        (b'{"do": "stop", "grace_s": 1e99}', "grace_s: want 0 to 3600"),
        (b'{"do": "stop", "grace_s": true}', "grace_s: want 0 to 3600"),
    ],
    ids=range(17),
)
def test_a_wrong_line_is_refused_and_the_next_one_heard(line, reason, hand_and_loop):
    hand, loop = hand_and_loop
    hand.events.clear()
    hand.send_raw(line + b"\n")
    hand.send(do="cancel", job="nobody-else", tag="next")
    refused = loop.run_until_complete(hand.told("refused"))
    assert reason in refused["reason"]
    loop.run_until_complete(hand.told("refused", "nobody-else"))


def test_a_job_that_is_here_already_is_refused_and_not_failed(tmp_path):
    async def scenario(hand):
        hand.submit("v1")
        hand.submit("v1")
        assert "here already" in (await hand.told("refused", "v1"))["reason"]
        assert (await hand.end("v1"))["event"] == "done"

    runs(tmp_path, scenario, chunk_s=0.02)


def test_a_thousand_jobs_at_once_are_taken_in_order_up_to_the_queue_and_refused_beyond(tmp_path):
    async def scenario(hand):
        for number in range(1000):
            hand.submit(f"v{number}", seconds=0.1)

        async def ended():
            ends = {}
            while len(ends) < 1000:
                await asyncio.sleep(0.02)
                ends = {e["job"]: e for e in hand.events if e["event"] in ("done", "failed")}
            return [ends[f"v{number}"] for number in range(1000)]

        ends = await asyncio.wait_for(ended(), LONG)
        refused = [e for e in ends if e["event"] == "failed"]
        assert refused and all("10 requests wait already" in e["reason"] for e in refused)
        assert all(e["retry_after_s"] == 2.0 for e in refused)
        assert all(e["event"] == "done" for e in ends[:10]), "first come, first served"

    runs(tmp_path, scenario, chunk_s=0.05, queued=10, running=2)
