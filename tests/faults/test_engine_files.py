"""What happens to a run when an engine's files are damaged, missing or for another GPU: one build, then torch."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from runtime import trt
from runtime.trt import EngineError, EnginePlace, cache
from runtime.trt.build import build_plan
from tests.fake_tensorrt import FakeTensorRT, Validity, built, rows
from tests.small_graph import expected, write_graph


@pytest.fixture
def library(monkeypatch):
    made = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", made)
    return made


@pytest.fixture
def shop(tmp_path, library, monkeypatch):
    """Everything that ``open_engine`` takes, and a list of what was built."""
    onnx, spec = write_graph(tmp_path)
    builds = []

    def pretend(path, graph, place, timings=b""):
        builds.append(path)
        return built(path.read_bytes(), graph)

    monkeypatch.setattr(trt, "build_plan", pretend)
    monkeypatch.setattr(trt, "_check_device", lambda place: None)
    trt.EVENTS.clear()
    place = EnginePlace("tensorrt-rtx", "fp32", tmp_path / "engines", torch.device("cpu"))
    return (onnx, spec, place), builds


def entry_of(shop):
    (_, spec, place), _ = shop
    return cache.entries(spec, place)[0]


def works(engine):
    inputs = rows(2, 4)
    return torch.allclose(engine(inputs)["y"], expected(**inputs), atol=1e-5)


def test_an_engine_is_built_once_and_found_afterwards(shop):
    graph, builds = shop
    assert works(trt.open_engine(*graph)) and works(trt.open_engine(*graph))
    assert len(builds) == 1 and trt.EVENTS == {"built": 1, "found": 1}


def truncate(entry):
    entry.engine.write_bytes(entry.engine.read_bytes()[:-5])


def flip(entry):
    content = bytearray(entry.engine.read_bytes())
    content[-20] ^= 64
    entry.engine.write_bytes(content)


def garble(entry):
    entry.manifest.write_text("{")


@pytest.mark.parametrize("spoil", [truncate, flip, garble], ids=lambda f: f.__name__)
def test_a_damaged_engine_is_set_aside_and_built_once_more_with_one_warning(shop, spoil, caplog):
    graph, builds = shop
    trt.open_engine(*graph)
    spoil(entry_of(shop))
    assert works(trt.open_engine(*graph))
    assert len(builds) == 2 and trt.EVENTS["damaged"] == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set aside and built once more" in caplog.text
    assert entry_of(shop).engine.with_suffix(".damaged").exists()
    assert works(trt.open_engine(*graph)) and len(builds) == 2


def test_an_engine_that_the_library_cannot_read_is_built_once_more_and_no_oftener(shop, library):
    graph, builds = shop
    trt.open_engine(*graph)
    library.refuse = Validity.VERSION_MISMATCH
    with pytest.raises(EngineError, match="VERSION_MISMATCH"):
        trt.open_engine(*graph)
    assert len(builds) == 2 and trt.EVENTS["refused"] == 1
    library.refuse = None
    assert works(trt.open_engine(*graph)) and len(builds) == 2


def test_an_engine_for_another_gpu_is_neither_deleted_nor_built_again(shop, library):
    graph, builds = shop
    trt.open_engine(*graph)
    library.refuse = Validity.UNSUPPORTED_CC
    with pytest.raises(EngineError, match="does not run on"):
        trt.open_engine(*graph)
    assert len(builds) == 1 and entry_of(shop).engine.exists()


def test_an_engine_without_a_manifest_is_one_whose_builder_died(shop):
    graph, builds = shop
    trt.open_engine(*graph)
    entry_of(shop).manifest.unlink()
    assert works(trt.open_engine(*graph)) and len(builds) == 2
    assert trt.EVENTS["damaged"] == 0


def test_those_who_wait_for_a_build_use_what_it_built(shop, monkeypatch):
    graph, builds = shop
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.01)
    began, fine = threading.Barrier(4), []

    def run():
        began.wait()
        fine.append(works(trt.open_engine(*graph)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fine == [True] * 4 and len(builds) == 1


def test_those_who_meet_the_same_damage_build_once_between_them(shop, monkeypatch):
    graph, builds = shop
    monkeypatch.setattr(cache, "POLL_SECONDS", 0.01)
    trt.open_engine(*graph)
    flip(entry_of(shop))
    began, fine, load = threading.Barrier(3), [], trt._load

    def meet(*args):
        try:
            return load(*args)
        except trt.EngineDamaged:
            began.wait()  # all of them have read the damaged one before any builds
            raise

    monkeypatch.setattr(trt, "_load", meet)
    threads = [
        threading.Thread(target=lambda: fine.append(works(trt.open_engine(*graph))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fine == [True] * 3 and len(builds) == 2 and trt.EVENTS["damaged"] == 1


def test_a_portable_engine_serves_until_one_is_built_for_the_gpu(shop, monkeypatch):
    graph, builds = shop
    _, spec, place = graph
    trt.open_engine(*graph)
    monkeypatch.setattr(EnginePlace, "targets", lambda place: ("NVIDIA X, sm_89", "portable"))
    assert works(trt.open_engine(*graph)) and len(builds) == 1
    own, portable = cache.entries(spec, place)
    assert own.stamp is None
    portable.engine.write_bytes(b"?")
    assert works(trt.open_engine(*graph)) and len(builds) == 2
    assert own.engine.exists() and not portable.engine.exists()


def test_a_folder_that_cannot_be_written_is_an_error_that_torch_survives(shop, tmp_path):
    (onnx, spec, place), _ = shop
    place.folder.write_text("not a folder")
    with pytest.raises(EngineError, match="engines are kept there"):
        trt.open_engine(onnx, spec, place)
    assert trt.EVENTS["refused"] == 1


def test_a_graph_that_was_replaced_is_not_built(shop):
    (onnx, spec, place), _ = shop
    onnx.write_bytes(onnx.read_bytes() + b" ")
    with pytest.raises(EngineError, match="small.onnx: want sha256 .* export the reward again"):
        build_plan(onnx, spec, place)


def test_a_cpu_runs_no_engine_and_a_missing_library_names_its_extra(shop, monkeypatch):
    (onnx, spec, place), _ = shop
    monkeypatch.undo()
    with pytest.raises(EngineError, match="engines run on a GPU, got device cpu"):
        trt.open_engine(onnx, spec, place)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=r"pip install 'stream-t1-runtime\[tensorrt-rtx\]'"):
        trt.build_engine(onnx, spec, place)
