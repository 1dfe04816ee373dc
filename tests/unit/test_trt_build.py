"""Every exported reward becomes an engine, and what could not run or would run in other types is refused with a sentence.

The builder is the real one: TensorRT-RTX builds without a GPU. Reading and running its engines takes one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx")

from runtime import trt
from runtime.export.tensorrt import build_engines
from runtime.exported import ENGINES, Exported, Port
from runtime.trt import EngineError, EngineOptions, EnginePlace
from runtime.trt.build import build_plan
from tests.small_graph import BROAD, NARROW
from tests.small_graph import write_graph as write_small
from tests.small_reward import small_pieces

CPU = torch.device("cpu")
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
NAMES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
REWARDS = [("sprites-image", "fp32"), ("sprites-video", "fp32")]
REWARDS += [(name, precision) for name in ("hpsv3", "videoalign") for precision in DTYPES]
# Their other precisions, and clip-h, whose graph is a part of that of mps, are built in tests/parity/test_picture_export.py.
REWARDS += [("imagereward", "bf16"), ("mps", "bf16")]
# A head may stay in float32, as published, and so may CLIP's cosine; nothing else may.
HEADS = {("hpsv3", "language"): 3, ("imagereward", "whole"): 5, ("mps", "whole"): 1}  # fmt: skip


def place_in(folder, precision="fp32", **changes):
    place = EnginePlace("tensorrt-rtx", precision, folder / "engines", CPU)
    return dataclasses.replace(place, **changes)


@pytest.mark.parametrize(("name", "precision"), REWARDS, ids=lambda value: value)
def test_every_exported_reward_builds_in_its_own_types_and_twice_alike(name, precision, tmp_path):
    found = set()
    for onnx, spec, _ in small_pieces(name, precision, tmp_path):
        found.add(spec.name)
        place = place_in(tmp_path, precision)
        path = trt.build_engine(onnx, spec, place)
        products = json.loads(path.with_suffix(".json").read_text())["build"]["products"]
        head = HEADS.get((name, spec.name), 0)
        others = sum(products.values()) - products[NAMES[precision]]
        assert products[NAMES[precision]] > 3 and others in (0, head)
        again = bytes(build_plan(onnx, spec, place).plan)
        # What belongs to several outputs is written in an order that the builder does not fix.
        assert again == path.read_bytes() or len(spec.outputs) > 1
        assert len(again) == path.stat().st_size
    wanted = {"hpsv3": {"vision", "language"}, "videoalign": {"language"}}
    assert found == wanted.get(name, {"whole"})


@pytest.mark.parametrize("precision", DTYPES)
def test_types_come_from_the_graph(precision, tmp_path):
    onnx, spec = write_small(tmp_path, DTYPES[precision])
    built = build_plan(onnx, spec, place_in(tmp_path, precision))
    assert built.products == {NAMES[precision]: 1} and built.layers > 3
    for promised in set(DTYPES) - {precision}:
        with pytest.raises(EngineError, match=f"promises {promised}, but .* in 1 {NAMES[precision]}"):  # fmt: skip
            build_plan(onnx, spec, place_in(tmp_path, promised))
    with pytest.raises(EngineError, match="promises fp8"):
        build_plan(onnx, spec, place_in(tmp_path, "fp8"))


@pytest.mark.parametrize("around", ["float16", "bfloat16"])
def test_eight_bit_products_are_found_between_other_types(around, tmp_path):
    onnx, spec = write_small(tmp_path, around, eight_bits=True)
    built = build_plan(onnx, spec, place_in(tmp_path, "fp8"))
    assert built.products["FP8"] == 2  # what it reads, and its weight


def test_a_graph_of_mixed_types_is_refused_by_the_name_of_its_node(tmp_path):
    onnx, spec = write_small(tmp_path, "float16", bias_dtype="float32")
    with pytest.raises(EngineError, match=r"node 'add_bias' \(Add\).*Half and Float.*cast in the network"):  # fmt: skip
        build_plan(onnx, spec, place_in(tmp_path, "fp16"))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (((4, 2, 8), (2, 4, 8), (6, 4, 8)), "profile 0 of x: want least <= usual <= largest, got"),
        (((1, 2, 8), (9, 4, 8), (6, 4, 8)), "profile 0 of x: want least <= usual <= largest, got"),
        (((0, 2, 8), (1, 4, 8), (6, 4, 8)), "profile 0 of x: want least <= usual <= largest, got"),
        (((1, 2, 7), (1, 4, 7), (6, 4, 7)), r"profile 0 of x: want shapes like \['n', 's', 8\]"),
        (((1, 2), (1, 4), (6, 4)), "profile 0 of x: want 3 sides"),
    ],
    ids=["least above largest", "usual above largest", "none", "fixed side", "rank"],
)
def test_a_profile_that_cannot_be_is_named(ranges, message, tmp_path):
    onnx, spec = write_small(tmp_path, ranges=[ranges])
    with pytest.raises(EngineError, match=message):
        build_plan(onnx, spec, place_in(tmp_path))


def test_a_profile_outside_what_the_graph_can_take_carries_the_library_s_words(tmp_path):
    onnx, spec = write_small(tmp_path)
    ports = {**spec.inputs, "x": Port("float32", ("n", "s", "w"))}  # says more is free than is
    profile = {**spec.profiles[0], "x": ((1, 2, 7), (1, 2, 7), (1, 2, 7))}
    changed = dataclasses.replace(spec, inputs=ports, profiles=(profile,))
    with pytest.raises(EngineError, match="profile has min=7, opt=7, max=7 but tensor has 8"):
        build_plan(onnx, changed, place_in(tmp_path))


def test_free_axes_want_profiles_and_unknown_inputs_have_none(tmp_path):
    onnx, spec = write_small(tmp_path)
    with pytest.raises(EngineError, match=r"inputs \['x'\] have free axes"):
        build_plan(onnx, dataclasses.replace(spec, profiles=()), place_in(tmp_path))
    profile = {**spec.profiles[0], "y": BROAD}
    with pytest.raises(EngineError, match="of y: no such input"):
        build_plan(onnx, dataclasses.replace(spec, profiles=(profile,)), place_in(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": {"z": Port("float32", ("n", 2, 4))}}, r"want outputs \['z'\], got \['y'\]"),
        ({"outputs": {"y": Port("float16", ("n", 2, 4))}}, "y: want dtype float16, got FLOAT"),
        ({"outputs": {"y": Port("float32", ("n", 3, 4))}}, "y: want shape .*3, 4.*, got"),
    ],
    ids=["name", "dtype", "shape"],
)
def test_a_graph_that_is_not_what_export_json_says_is_refused(changes, message, tmp_path):
    onnx, spec = write_small(tmp_path)
    with pytest.raises(EngineError, match=message):
        build_plan(onnx, dataclasses.replace(spec, **changes), place_in(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64], ids=["empty", "text", "bits"])
def test_a_file_that_is_no_graph_is_told(content, tmp_path):
    onnx, spec = write_small(tmp_path)
    onnx.write_bytes(content)
    spec = dataclasses.replace(spec, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(EngineError, match="is not an ONNX graph|cannot be parsed|Failed to parse"):
        build_plan(onnx, spec, place_in(tmp_path))


def test_options_reach_the_builder(tmp_path):
    onnx, spec = write_small(tmp_path)

    def bytes_of(**options):
        return bytes(
            build_plan(onnx, spec, place_in(tmp_path, options=EngineOptions(**options))).plan
        )

    plain = bytes_of()
    assert bytes_of(tf32=True) != plain
    assert bytes_of(weight_streaming=True) != plain
    assert bytes_of(workspace_bytes=1 << 24)


def test_a_library_without_a_flag_refuses_the_option(tmp_path, monkeypatch):
    onnx, spec = write_small(tmp_path)
    monkeypatch.setattr("runtime.trt.build.flag", lambda trt, name: None)
    with pytest.raises(EngineError, match="has no builder flag REFIT"):
        build_plan(onnx, spec, place_in(tmp_path, options=EngineOptions(refit=True)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_for_the_next_build_where_the_library_takes_them(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "tensorrt", sys.modules["tensorrt_rtx"]
    )  # whose timing cache is empty but there
    onnx, spec = write_small(tmp_path, ranges=[NARROW])
    place = place_in(tmp_path, vendor="tensorrt")
    timings = build_plan(onnx, spec, place).timings
    assert timings and build_plan(onnx, spec, place, timings).timings == timings
    assert build_plan(onnx, spec, place, b"garbage").timings


def test_a_machine_without_a_driver_gets_a_sentence(tmp_path, monkeypatch):
    def builder(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    pretended = SimpleNamespace(
        Builder=builder, ILogger=sys.modules["tensorrt_rtx"].ILogger, __version__="11.4"
    )
    monkeypatch.setitem(sys.modules, "tensorrt", pretended)
    onnx, spec = write_small(tmp_path)
    with pytest.raises(EngineError, match="no builder .*is there a driver"):
        build_plan(onnx, spec, place_in(tmp_path, vendor="tensorrt"))
    with pytest.raises(EngineError, match="tensorrt: builds on the GPU that it builds for"):
        trt.build_engine(onnx, spec, place_in(tmp_path, vendor="tensorrt"))


def test_a_real_engine_is_read_back_as_far_as_a_machine_without_a_gpu_can(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("says what happens without a GPU")
    onnx, spec = write_small(tmp_path)
    place = place_in(tmp_path)
    path = trt.build_engine(onnx, spec, place)
    with pytest.raises(EngineError, match="does not run on cpu .*cudaError") as caught:
        trt.Engine(path.read_bytes(), spec, place, tmp_path / "j")
    assert not isinstance(caught.value, trt.EngineDamaged)
    with pytest.raises(trt.EngineDamaged, match="MALFORMED_ENGINE"):
        trt.Engine(b"x" * 500, spec, place, tmp_path / "j")


def test_the_door_builds_what_is_missing_and_says_what_lies_where(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    onnx, spec = write_small(tmp_path)
    exported = Exported(tmp_path, "small", "fp32", "random", {}, {}, {}, {"small": spec})
    build_engines(exported, "tensorrt-rtx", keep_log=True)
    (path,) = (tmp_path / ENGINES).glob("*.engine")
    told = capsys.readouterr().out
    assert str(path) in told and "small for portable, products: 1 FLOAT" in told
    assert path.with_suffix(".log").exists()
    before = path.stat().st_mtime_ns
    build_engines(exported, "tensorrt-rtx", keep_log=False)
    assert path.stat().st_mtime_ns == before and not path.with_suffix(".log").exists()
    with pytest.raises(EngineError, match="builds on the GPU that it builds for"):
        monkeypatch.setitem(sys.modules, "tensorrt", sys.modules["tensorrt_rtx"])
        build_engines(exported, "tensorrt", keep_log=False)
