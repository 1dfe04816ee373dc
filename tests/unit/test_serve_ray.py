"""What the front of many replicas decides: who is there, whose a request is, what becomes of slots. Without Ray."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fastapi")

from runtime.serve.cluster import front
from runtime.serve.cluster.asking import Answer
from runtime.serve.cluster.directory import AWAY_S, Directory
from runtime.serve.cluster.merging import one_exposition, one_health, one_page
from runtime.serve.cluster.options import cluster_of, wanted_replicas
from runtime.serve.cluster.sharing import SharedWorker
from runtime.serve.cluster.slots import (  # fmt: skip
    MOST_TRIES,
    Tries,
    WorkerLock,
    free_slots,
    sign,
    slot_in,
)
from tests.fake_worker import FakeWorker

NAME = "video_" + "0123456789abcdef" * 2


def report(name="a", slots=("0000000a",), **fields):
    known = {"name": name, "slots": list(slots), "around": [], "host": "h", "port": 1, "state": "ready", "videos": 0}  # fmt: skip
    return known | fields


def test_samples_with_and_without_labels_get_one_more():
    texts = {
        "a": "# HELP x X {y} z\n# TYPE x gauge\nx 1.0\n",
        "b": '# HELP x X {y} z\n# TYPE x gauge\nx{s="a b"} 2.0\n',
    }
    lines = ["# HELP x X {y} z", "# TYPE x gauge", 'x{replica="a"} 1.0', 'x{replica="b",s="a b"} 2.0', ""]  # fmt: skip
    assert one_exposition(texts) == "\n".join(lines)


def test_a_page_takes_the_newest_of_all_and_knows_of_more():
    rows = [[{"created": when, "video": {"id": f"v{when}"}} for when in times] for times in ((5, 1), (4, 3))]  # fmt: skip
    page = one_page(rows, 3, newest_first=True)
    assert [video["id"] for video in page["data"]] == ["v5", "v4", "v3"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("v5", "v3", True)
    assert one_page([], 3, True) == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}  # fmt: skip


def test_health_is_that_of_the_best_replica():
    directory = Directory()
    assert one_health(directory.everybody())["state"] == "gone"
    directory.update([report("a", state="gone", slots=()), report("b", state="starting")], 0.0)
    assert one_health(directory.everybody())["state"] == "starting"
    assert directory.for_orders() == []


def test_the_directory_finds_who_holds_a_slot_until_it_does_not_answer():
    directory = Directory()
    directory.update([report("a", ["0000000a", "0000000c"]), report("b", ["0000000b"])], 0.0)
    assert directory.holder("0000000c").name == "a"
    directory.update([report("b", ["0000000b"])], 1.0)
    leaving = directory.holder("0000000c")
    assert leaving.name == "a" and [one.name for one in directory.for_orders()] == ["b"]
    directory.lost(leaving)
    assert directory.holder("0000000c") is None
    assert directory.away("0000000c", AWAY_S) and not directory.away("0000000c", AWAY_S + 1.5)
    directory.update([report("b", ["0000000b", "0000000c"])], 2.0)
    assert directory.holder("0000000c").name == "b"


def test_an_order_counts_from_the_moment_it_is_sent_until_the_replica_counts_it():
    directory = Directory()
    directory.update([report("a"), report("b", videos=2)], 0.0)

    def next_one():
        return directory.promise(directory.for_orders()[0])

    assert [next_one()[0] for _ in range(2)] == ["a", "a"]
    directory.update(
        [report("a", videos=1), report("b", videos=2)], 0.5
    )  # the second one is on its way
    assert directory.for_orders()[0].name == "b"
    directory.update([report("a", videos=2), report("b", videos=2)], 1.0)
    promised = {next_one()[0] for _ in range(2)}
    assert promised == {"a", "b"}


def test_an_order_that_was_refused_does_not_count():
    directory = Directory()
    directory.update([report("a"), report("b", videos=1)], 0.0)
    for _ in range(3):
        first = directory.for_orders()[0]
        assert first.name == "a"
        directory.refused(directory.promise(first))


def test_a_slot_whose_folder_is_seen_is_away_and_not_lost():
    directory = Directory()
    directory.update([report("a", around=["0000000a", "0000000d"])], 0.0)
    assert directory.away("0000000d", 1e9) and not directory.away("0000000e", 0.0)


def test_a_slot_is_read_off_an_address():
    slot = NAME[6:14]
    for path in (f"/v1/videos/{NAME}", f"/v1/videos/{NAME}/content", f"/videos/{NAME}"):
        assert slot_in(path) == slot
    for path in ("/v1/videos", f"/v1/videos/{NAME}0", f"/v1/videos/x{NAME}", "/v1/videos/video_0123"):  # fmt: skip
        assert slot_in(path) is None


def test_a_slot_is_free_only_when_its_holder_and_its_worker_are_gone(tmp_path):
    lock = WorkerLock(tmp_path)
    slot = tmp_path / "slots" / "0000000a"
    slot.mkdir()
    held = os.open(slot / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    sign(slot, lock.path)
    assert list(free_slots(tmp_path)) == []
    os.close(held)
    assert list(free_slots(tmp_path)) == []  # the worker still writes
    of_the_worker = os.dup(lock.fd)
    lock.close()
    assert list(free_slots(tmp_path)) == []
    os.close(of_the_worker)
    assert list(free_slots(tmp_path)) == [slot]


@pytest.mark.parametrize("resume", [False, True], ids=["first-chunk", "later-chunk"])
def test_a_video_that_brings_every_worker_down_is_given_up(tmp_path, resume):
    async def deaths(times):
        told = []
        for _ in range(times):
            worker = FakeWorker(held=True)
            share = SharedWorker(worker, tmp_path / "lock").share(tmp_path)
            await share.start(told.append)
            share.send(submit(tmp_path, resume))
            worker._die("killed")
        await asyncio.sleep(0)
        return [event for event in told if event["event"] == "failed"]

    snapshot_of(tmp_path)
    assert asyncio.run(deaths(MOST_TRIES)) == []
    (failed,) = asyncio.run(deaths(1))
    assert "its worker died 3 times" in failed["reason"] and not failed["resumable"]


def test_a_video_is_not_to_blame_for_replicas_that_are_stopped(tmp_path):
    async def stops():
        told = []
        for _ in range(MOST_TRIES + 1):
            share = SharedWorker(FakeWorker(held=True), tmp_path / "lock").share(tmp_path)
            await share.start(told.append)
            share.send(submit(tmp_path, False))
            await share.stop(0)
        return {event["event"] for event in told}

    assert asyncio.run(stops()) == {"ready"}


def submit(folder, resume):
    return {"do": "submit", "job": "v", "resume": resume, "prompts": [[0, "x"]],
            "folder": str(folder), "settings": {"seconds": 1}}  # fmt: skip


def snapshot_of(folder):
    (folder / "snapshot").mkdir()
    (folder / "snapshot" / "chunk.json").write_text("1")


def test_a_video_that_got_further_is_tried_again(tmp_path):
    tries = Tries(tmp_path)
    assert [tries.again("v") for _ in range(MOST_TRIES)] == [True] * MOST_TRIES
    assert not Tries(tmp_path).again("v")
    tries.forget("v")
    assert Tries(tmp_path).again("v")


def test_arguments_of_a_cluster_are_those_of_a_server_and_a_few_of_its_own():
    cluster, call = cluster_of({"preset": "sprites", "replicas": "2", "most_replicas": 5, "data": "/d",
                                "limit": "jobs=3,streams=9", "videos_each": 2})  # fmt: skip
    assert (cluster.replicas, cluster.most_replicas, cluster.videos_each) == (2, 5, 2.0)
    assert (call.options.bounds.jobs, call.options.bounds.streams) == (3, 9)
    assert str(call.options.folder) == "/d" and "--preset" in call.worker


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"replica": 2}, "replica: no such argument; did you mean replicas"),
        ({"replicas": "two"}, "replicas: want a number, got 'two'"),
        ({"replicas": 0}, "replicas: want at least 1, got 0"),
        ({"replicas": 3, "most_replicas": 2}, "most_replicas: want at least replicas"),
        ({"preset": "spirtes"}, "sprites"),
        ({"port": 1}, "port: no such argument"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        cluster_of(arguments)


def test_replicas_are_wanted_by_videos_that_are_not_finished():
    assert wanted_replicas(9, 4.0) == 2.25
    assert wanted_replicas(0, 4.0) == 0


def test_the_example_of_the_docs_is_one_that_is_understood():
    text = (Path(__file__).resolve().parents[2] / "docs" / "ray-serve.yaml").read_text()
    (application,) = yaml.safe_load(text)["applications"]
    arguments = application["args"] | {"api_key_file": __file__}
    with pytest.raises(
        ValueError, match="api-key-file: want one key"
    ):  # all before it is understood
        cluster_of(arguments)
    del arguments["api_key_file"]
    options, call = cluster_of(arguments)
    assert (options.replicas, options.most_replicas) == (2, 8)
    assert call.options.allowed_hosts == ("videos.example.org",)


def test_a_redirection_of_a_replica_does_not_name_it():
    sent = []

    async def send(message):
        sent.append(message)

    async def pieces():
        yield b"there"

    headers = [(b"Location", b"http://10.0.0.7:4711/v1/videos?limit=3"), (b"Server", b"x")]
    asyncio.run(front._relay(Answer(307, headers, pieces()), send))
    assert sent[0]["headers"] == [(b"location", b"/v1/videos?limit=3")]
    assert [message.get("more_body") for message in sent[1:]] == [True, False]
