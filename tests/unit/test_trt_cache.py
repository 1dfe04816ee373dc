"""Where engines lie: their keys, their manifests, and who builds when several want the same one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from runtime.exported import Port
from runtime.trt import EngineDamaged, EngineError, EngineOptions, EnginePlace, cache
from tests.fake_tensorrt import FakeTensorRT
from tests.small_graph import BROAD, write_graph

FACTS = {"graph": "small", "version": "0.1", "target": "portable"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRT())
    return EnginePlace("tensorrt-rtx", "fp32", tmp_path / "engines", torch.device("cpu"))


@pytest.fixture
def entry(tmp_path):
    made = cache.Entry(tmp_path, FACTS)
    made.write(b"an engine" * 100, [("INFO", "it went well")], {"seconds": 1.5})
    return made


def key(spec, place):
    return cache.entries(spec, place)[0].key


def test_the_key_changes_with_everything_that_goes_into_an_engine(tmp_path, place, monkeypatch):
    spec = write_graph(tmp_path)[1]
    ports = {**spec.inputs, "at": Port("int64", (3,))}
    others = [
        (dataclasses.replace(spec, sha256="0" * 64), place),
        (dataclasses.replace(spec, data={"small.data": "1" * 64}), place),
        (dataclasses.replace(spec, inputs=ports), place),
        (dataclasses.replace(spec, profiles=spec.profiles[:1]), place),
        (spec, dataclasses.replace(place, precision="fp16")),
        (spec, dataclasses.replace(place, options=EngineOptions(tf32=True))),
        (spec, dataclasses.replace(place, options=EngineOptions(level=4))),
    ]
    found = {key(spec, place), *(key(*other) for other in others)}
    monkeypatch.setattr(FakeTensorRT, "__version__", "0.2")
    found.add(key(spec, place))
    monkeypatch.setattr(EnginePlace, "targets", lambda place: ("NVIDIA X, sm_89", "portable"))
    found.add(key(spec, place))
    assert len(found) == len(others) + 3


def test_the_key_does_not_depend_on_where_or_how_it_is_run(tmp_path, place):
    spec = write_graph(tmp_path, ranges=[BROAD])[1]
    moved = dataclasses.replace(place, folder=tmp_path / "elsewhere", record=lambda *_: ())
    assert key(spec, place) == key(spec, moved)


def test_an_engine_comes_back_as_it_was_written(entry):
    with entry.read() as plan:
        assert bytes(plan) == b"an engine" * 100
    table = json.loads(entry.manifest.read_text())
    assert table["facts"] == FACTS and table["build"] == {"seconds": 1.5, "log": entry.log.name}
    assert entry.log.read_text() == "info: it went well\n"
    assert not list(entry.folder.glob("*.part"))


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: shorten(e.engine), "want 900 bytes, got 899"),
        (lambda e: flip(e.engine), "want sha256"),
        (lambda e: e.engine.write_bytes(b""), "want 900 bytes, got 0"),
        (lambda e: e.engine.unlink(), "cannot be read"),
        (lambda e: e.manifest.unlink(), "cannot be read"),
        (lambda e: e.manifest.write_text(e.manifest.read_text().rstrip()[:-1]), "damaged"),
        (lambda e: e.manifest.write_text("[]"), "damaged"),
        (lambda e: e.manifest.write_text("{" * 100_000), "damaged"),
        (lambda e: e.manifest.write_text(" " * (cache.MANIFEST_BYTES + 1)), "at most"),
        (
            lambda e: e.manifest.write_text(
                e.manifest.read_text().replace('"bytes": 900', '"bytes": -1')
            ),
            "damaged",
        ),
        (
            lambda e: e.manifest.write_text(e.manifest.read_text().replace("portable", "sm_90")),
            "another engine's",
        ),
    ],
    ids=[
        "truncated", "bit flipped", "emptied", "deleted", "no manifest", "manifest truncated", "manifest a list",
        "manifest nested", "manifest huge", "size negative", "facts replaced",
    ],
)  # fmt: skip
def test_an_engine_that_is_not_what_was_written_is_refused(entry, spoil, message):
    spoil(entry)
    with pytest.raises(EngineDamaged, match=message), entry.read():
        pass


def test_a_damaged_engine_is_set_aside_for_whoever_wants_to_look(entry):
    entry.jit.write_bytes(b"kernels")
    entry.set_aside()
    assert entry.stamp is None and not entry.jit.exists()
    assert entry.engine.with_suffix(".damaged").read_bytes() == b"an engine" * 100
    entry.set_aside()  # nothing there: nothing to do


def test_a_crash_while_writing_leaves_no_engine(tmp_path, monkeypatch):
    made = cache.Entry(tmp_path, FACTS)

    def crash(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cache.os, "fsync", crash)
    with pytest.raises(EngineError, match="Input/output error"):
        made.write(b"an engine", [], {})
    assert made.stamp is None and not list(tmp_path.iterdir())


def test_one_builder_at_a_time_and_the_lock_says_who_is_waited_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.01)
    caplog.set_level("INFO")
    inside, most = [0], [0]

    def work():
        with cache.locked(tmp_path, "engine of x"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.03)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert "engine of x: another process builds" in caplog.text


def test_a_builder_that_is_killed_lets_go_of_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.01)
    hold = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "lock")], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(EngineError, match="held for .* by another process; is it stuck"):  # noqa: SIM117
            with cache.locked(tmp_path, "x"):
                pass
    finally:
        other.kill()
        other.wait()
    with cache.locked(tmp_path, "x"):
        pass


def test_what_was_compiled_or_timed_is_dropped_when_it_is_damaged(tmp_path):
    path = tmp_path / "timings"
    assert cache.read_sealed(path) == b""
    cache.write_sealed(path, b"timings")
    assert cache.read_sealed(path) == b"timings"
    flip(path)
    assert cache.read_sealed(path) == b""


def test_a_disk_without_room_is_told_before_the_build(tmp_path, monkeypatch):
    onnx, spec = write_graph(tmp_path)
    cache.check_room(onnx, spec, tmp_path)
    monkeypatch.setattr(cache, "SPARE_BYTES", 1 << 60)
    with pytest.raises(EngineError, match=r"MiB free to build small, got"):
        cache.check_room(onnx, spec, tmp_path)


def test_pruning_keeps_what_is_wanted_and_what_is_nobody_s(entry):
    stale = cache.Entry(entry.folder, {**FACTS, "version": "0.0"})
    stale.write(b"old", [], {})
    stale.set_aside()
    stale.write(b"old", [], {})
    (entry.folder / "notes.txt").write_text("mine")
    gone = cache.prune(entry.folder, [entry.key])
    assert gone == sorted(f"{stale.key}{suffix}" for suffix in (".damaged", ".engine", ".json", ".log"))  # fmt: skip
    with entry.read():
        pass
    assert (entry.folder / "notes.txt").exists()
