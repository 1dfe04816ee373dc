"""How an engine is run: addresses, shapes, profiles, contexts, streams and memory, against a library that only pretends."""

from __future__ import annotations

import contextlib
import dataclasses
import sys

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from runtime.graph import GraphRunner
from runtime.trt import EngineDamaged, EngineError, EngineOptions, EnginePlace
from runtime.trt import run as trt_run
from runtime.trt.run import Engine
from tests.fake_tensorrt import FakeTensorRT, Validity, plan_of, rows
from tests.small_graph import BROAD, NARROW, expected, write_graph


@pytest.fixture
def library(monkeypatch):
    made = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", made)
    return made


@pytest.fixture
def engine_of(tmp_path, library):
    """Opens an engine of the small graph; keyword arguments change its place."""

    def make(dtype: str = "float32", ranges=(BROAD, NARROW), **changes):
        onnx, spec = write_graph(tmp_path, dtype, ranges)
        place = EnginePlace("tensorrt-rtx", "fp32", tmp_path, torch.device("cpu"))
        place = dataclasses.replace(place, **changes)
        return Engine(plan_of(onnx.read_bytes(), spec), spec, place, tmp_path / "kernels.jit")

    return make


def names(library, *kinds):
    return [call for call in library.calls if call[0] in kinds]


def test_an_engine_computes_what_the_graph_says(engine_of):
    engine = engine_of()
    for n, s in ((1, 2), (3, 7), (6, 16)):
        inputs = rows(n, s)
        got = engine(inputs)["y"]
        assert torch.allclose(got, expected(**inputs), atol=1e-5)


def test_tensors_are_read_where_they_lie_and_outputs_stay_where_they_lay(engine_of, library):
    engine, first, second = engine_of(), rows(3, 5, seed=1), rows(3, 5, seed=2)
    kept = engine(first)["y"]
    before = kept.clone()
    again = engine(second)["y"]
    assert again.data_ptr() == kept.data_ptr() and not torch.equal(before, again)
    bound = [call[1:] for call in names(library, "address") if call[1] != "y"]
    wanted = [(name, inputs[name].data_ptr()) for inputs in (first, second) for name in inputs]
    assert bound == wanted


def test_every_shape_has_a_context_that_is_set_up_once(engine_of, library):
    engine = engine_of()
    for n, s in ((1, 2), (3, 7), (1, 2), (3, 7), (3, 7)):
        engine(rows(n, s))
    assert len(library.contexts) == 2
    assert len(names(library, "profile")) == 2 and len(names(library, "shape")) == 4
    assert len(names(library, "execute")) == 5


def test_the_narrowest_profile_that_holds_the_shapes_is_taken(engine_of, library):
    engine = engine_of(ranges=(BROAD, NARROW))
    engine(rows(2, 4))
    engine(rows(2, 5))
    assert [call[1] for call in names(library, "profile")] == [1, 0]


def test_a_shape_outside_every_profile_names_the_ranges_there_are(engine_of, library):
    engine = engine_of()
    with pytest.raises(ValueError, match=r"x \[7, 4, 8\].*none of.*x \[1, 2, 8\]\.\.\[6, 16, 8\]"):
        engine(rows(7, 4))
    assert not library.contexts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, 8).double()}, "small.x: want dtype float32, got torch.float64"),
        ({"x": torch.zeros(8, 4, 2).transpose(0, 2)}, "small.x: want a contiguous tensor"),
        ({"x": torch.zeros(2, 4, 8, device="meta")}, "small.x: want a tensor on cpu, got one on meta"),
        ({"at": torch.zeros(2, dtype=torch.int32)}, "small.at: want dtype int64"),
        ({"at": torch.zeros(3, dtype=torch.int64)}, "fits none"),
        ({"z": torch.zeros(1)}, r"want inputs \['at', 'x'\], got \['at', 'x', 'z'\]"),
    ],
    ids=["dtype", "strides", "device", "index dtype", "fixed side", "name"],
)  # fmt: skip
def test_what_cannot_be_read_in_place_is_refused(engine_of, change, message):
    with pytest.raises(ValueError, match=message):
        engine_of()({**rows(2, 4), **change})


def test_contexts_share_scratch_memory_and_a_larger_one_replaces_it(engine_of, library):
    engine = engine_of()
    for n, s in ((2, 4), (1, 3), (6, 16), (2, 5)):
        engine(rows(n, s))
    small, inside, large, later = (context.memory[0] for context in library.contexts)
    assert small == inside != large == later
    # The first one's memory is still its own.
    assert engine.bound[((2, 4, 8), (2,))].scratch.data_ptr() == small
    engine(rows(2, 4))


def test_work_goes_to_the_current_stream(engine_of, library, monkeypatch):
    monkeypatch.setattr(trt_run, "stream_of", lambda device: 77)
    engine_of()(rows(2, 4))
    assert names(library, "execute") == [("execute", 77)]
    assert names(library, "profile") == [("profile", 1, 77)]


def test_a_call_from_the_default_stream_runs_beside_it_in_its_order(engine_of, library, monkeypatch):  # fmt: skip
    class Stream:
        def __init__(self, name):
            self.name, self.cuda_stream = name, 0

        def wait_stream(self, other):
            library.calls.append((f"{self.name} waits for {other.name}",))

    @contextlib.contextmanager
    def inside(stream):
        library.calls.append((f"on {stream.name}",))
        yield
        library.calls.append(("off",))

    engine = engine_of()
    engine(rows(2, 4))
    engine.beside = Stream("beside")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("default"))
    monkeypatch.setattr(torch.cuda, "stream", inside)
    library.calls.clear()
    engine(rows(2, 4))
    order = [call[0] for call in library.calls if call[0] != "address"]
    waits = ["beside waits for default", "default waits for beside"]
    assert order == [waits[0], "on beside", "execute", "off", waits[1]]
    library.calls.clear()
    monkeypatch.setattr(trt_run, "stream_of", lambda device: 5)
    engine(rows(2, 4))
    assert [call[0] for call in library.calls if call[0] != "address"] == ["execute"]


def test_a_graph_runner_replays_at_addresses_of_its_own(engine_of, library):
    engine = engine_of(record=GraphRunner("rehearsal", "cpu").run)
    for seed in range(3):
        inputs = rows(3, 7, seed)
        assert torch.allclose(engine(inputs)["y"], expected(**inputs), atol=1e-5)
    addresses = {call[2] for call in names(library, "address") if call[1] == "x"}
    assert len(addresses) == 1
    other = rows(2, 4)
    assert torch.allclose(engine(other)["y"], expected(**other), atol=1e-5)
    assert len(library.contexts) == 2


def test_streamed_weights_get_their_budget_first_and_are_never_recorded(engine_of):
    def record(*_):
        raise AssertionError("recorded")

    options = EngineOptions(weight_streaming=True)
    engine = engine_of(options=options, streaming_bytes=40, record=record)
    assert engine.engine.weight_streaming_budget_v2 == 40
    engine(rows(2, 4))
    whole = engine_of(options=options, streaming_bytes=1000, record=lambda key, work, x: work(*x))
    assert whole.engine.weight_streaming_budget_v2 == 100 and not whole.streams_weights


def test_a_shape_that_cannot_be_captured_is_enqueued_every_time_with_one_warning(engine_of, caplog):
    tried = []

    def record(key, work, inputs):
        tried.append(key)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    engine = engine_of(record=record)
    for seed in range(3):
        inputs = rows(3, 7, seed)
        assert torch.allclose(engine(inputs)["y"], expected(**inputs), atol=1e-5)
    assert len(tried) == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "and more" not in caplog.text


def test_a_failing_engine_is_an_error_inside_a_recording_too(engine_of, library):
    engine = engine_of(record=GraphRunner("rehearsal", "cpu").run)
    library.failing.add("execute")
    with pytest.raises(EngineError, match="execute was told to fail"):
        engine(rows(2, 4))


def test_compiled_kernels_are_kept_for_the_next_start(engine_of, library, tmp_path):
    engine = engine_of()
    engine(rows(2, 4))
    engine(rows(3, 4))
    engine_of()
    assert library.kernels == [b"kernels of 2 contexts"]
    path = tmp_path / "kernels.jit"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    engine_of()(rows(2, 4))
    assert library.kernels == [b"kernels of 2 contexts"]  # the damaged ones were not read


@pytest.mark.parametrize("call", ["execute", "address", "shape", "profile"])
def test_a_call_that_answers_false_is_an_error_with_the_log_in_it(engine_of, library, call):
    engine = engine_of()
    library.failing.add(call)
    with pytest.raises(EngineError, match=f"{call} was told to fail"):
        engine(rows(2, 4))


def test_an_engine_for_another_gpu_is_not_called_damaged(engine_of, library):
    library.refuse = Validity.UNSUPPORTED_CC
    with pytest.raises(EngineError, match=r"does not run on cpu \(documented for .*UNSUPPORTED_CC") as caught:  # fmt: skip
        engine_of()
    assert not isinstance(caught.value, EngineDamaged)


@pytest.mark.parametrize("found", [Validity.VERSION_MISMATCH, Validity.MALFORMED_ENGINE], ids=str)
def test_an_engine_that_cannot_be_read_is_called_damaged(engine_of, library, found):
    library.refuse = found
    with pytest.raises(EngineDamaged, match="cannot be read: .*serialization assertion failed"):
        engine_of()


def test_an_engine_whose_layers_compute_in_another_type_is_refused(engine_of, library):
    with pytest.raises(EngineError, match="want fp16, the engine's layers have .*FP32"):
        engine_of("float16", precision="fp16")
    library.layer_types = ["Row major linear FP32", "Half"]
    engine_of("float16", precision="fp16")
    library.layer_types = ["Float"]  # fused into one layer, which tells nothing
    engine_of("float16", precision="fp16")


def test_an_engine_with_other_ports_is_refused(engine_of, tmp_path, library):
    engine = engine_of()
    onnx, spec = write_graph(tmp_path)
    port = dataclasses.replace(spec.inputs["x"], dtype="float16")
    other = dataclasses.replace(spec, inputs={**spec.inputs, "x": port})
    plan = plan_of(onnx.read_bytes(), spec)
    with pytest.raises(EngineDamaged, match=r"small.x: want float16, the engine has torch.float32"):
        Engine(plan, other, engine.place, tmp_path / "j")
    other = dataclasses.replace(spec, outputs={"z": spec.outputs["y"]})
    with pytest.raises(EngineDamaged, match=r"want \['at', 'x', 'z'\]"):
        Engine(plan, other, engine.place, tmp_path / "j")
