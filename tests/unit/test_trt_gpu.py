"""Engines on a GPU: built or read there, run on torch tensors and in CUDA graphs, no less exact than torch in the same type.

Every vendor that is installed is tried. One that does not run on this GPU skips with its own words, which is an answer too.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util

import pytest
import torch

pytest.importorskip("onnx")

from runtime import trt
from runtime.graph import GraphRunner
from runtime.trt import VENDORS, EngineError, EngineOptions, EnginePlace
from tests.kernels.tolerance import assert_no_worse_than_torch
from tests.small_graph import WIDTH, expected, weights, write_graph

pytestmark = pytest.mark.gpu
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INSTALLED = [name for name, kind in VENDORS.items() if importlib.util.find_spec(kind.module)]


@pytest.fixture(params=VENDORS)
def vendor(request):
    if request.param not in INSTALLED:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def opened(folder, vendor, precision="fp32", **changes):
    onnx, spec = write_graph(folder, str(DTYPES[precision]).removeprefix("torch."))
    place = EnginePlace(vendor, precision, folder / "engines", torch.device("cuda"))
    place = dataclasses.replace(place, **changes)
    return engine_or_skip(onnx, spec, place)


def engine_or_skip(onnx, spec, place):
    try:
        return trt.open_engine(onnx, spec, place)
    except EngineError as error:
        if "does not run on" in str(error) or "builds nothing for" in str(error):
            pytest.skip(str(error))
        raise


def inputs_of(n, s, dtype=torch.float32, seed=0):
    x = torch.randn(n, s, WIDTH, generator=torch.Generator().manual_seed(seed))
    return {"x": x.to("cuda", dtype), "at": torch.tensor([1, 0], device="cuda")}


def exact(inputs):
    w, b = (value.to(inputs["x"].dtype).double() for value in weights())
    return (inputs["x"].cpu().double() @ w + b)[:, inputs["at"].cpu()]


def plain(inputs):
    w, b = (value.to("cuda", inputs["x"].dtype) for value in weights())
    return (inputs["x"] @ w + b)[:, inputs["at"]]


@pytest.mark.parametrize("precision", DTYPES)
def test_an_engine_is_as_exact_as_torch_in_its_type(vendor, precision, tmp_path):
    engine = opened(tmp_path, vendor, precision)
    for n, s in ((1, 2), (2, 4), (3, 7), (6, 16)):
        inputs = inputs_of(n, s, DTYPES[precision])
        got = engine(inputs)["y"]
        assert_no_worse_than_torch(got.cpu(), plain(inputs).cpu(), exact(inputs))


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ["hpsv3", "videoalign"])
def test_a_published_reward_s_graphs_are_as_exact_as_torch(vendor, name, precision, tmp_path):
    pytest.importorskip("onnxscript")
    from tests.small_reward import small_pieces

    record = GraphRunner("cuda", "cuda").run
    folder, device = tmp_path / "engines", torch.device("cuda")
    place = EnginePlace(vendor, precision, folder, device, record=record)
    for onnx, spec, module in small_pieces(name, precision, tmp_path):
        engine = engine_or_skip(onnx, spec, place)
        largest = {port: ranges[2] for port, ranges in spec.profiles[-1].items()}
        source = torch.Generator().manual_seed(0)
        inputs = {
            port: torch.randn(largest[port], generator=source).to(device, DTYPES[precision])
            if spec.inputs[port].dtype != "int64"
            else torch.arange(3, 3 + largest[port][0], device=device)
            for port in spec.inputs
        }
        (got,) = (value.double() for value in engine(inputs).values())
        plain, wide = module.to(device), copy.deepcopy(module).to(device, torch.float64)
        if hasattr(wide, "head_dtype"):
            wide.head_dtype = torch.float64
        with torch.no_grad():
            same = plain(*inputs.values()).double()
            true = wide(*(x.double() if x.is_floating_point() else x for x in inputs.values()))
        rounding = torch.finfo(DTYPES[precision]).eps * true.abs().max()
        allowed = 2 * (same - true).abs().max() + rounding
        assert (got - true).abs().max() <= allowed, spec.name


def test_a_cached_engine_gives_the_same_bits(vendor, tmp_path):
    inputs = inputs_of(3, 7)
    first = opened(tmp_path, vendor)(inputs)["y"].clone()
    trt.EVENTS.clear()
    again = opened(tmp_path, vendor)(inputs)["y"]
    assert trt.EVENTS == {"found": 1} and torch.equal(first, again)


def test_a_damaged_engine_is_built_once_more(vendor, tmp_path):
    opened(tmp_path, vendor)
    path = next((tmp_path / "engines").glob("*.engine"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    trt.EVENTS.clear()
    inputs = inputs_of(2, 4)
    assert torch.allclose(opened(tmp_path, vendor)(inputs)["y"].cpu(), exact(inputs).float(), atol=1e-4)  # fmt: skip
    assert trt.EVENTS["damaged"] == 1 and trt.EVENTS["built"] == 1


def test_a_captured_engine_replays_on_new_inputs_and_never_waits(vendor, tmp_path):
    engine = opened(tmp_path, vendor, record=GraphRunner("cuda", "cuda").run)
    shapes = ((2, 4), (3, 7))
    for n, s in shapes:
        engine(inputs_of(n, s))  # recorded
    fresh = [inputs_of(n, s, seed=seed) for seed in (1, 2) for n, s in shapes]
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = [engine(inputs)["y"].clone() for inputs in fresh]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for inputs, y in zip(fresh, got, strict=True):
        assert torch.allclose(y.cpu(), exact(inputs).float(), atol=1e-4)


def test_an_engine_follows_the_order_of_the_stream_it_is_called_on(vendor, tmp_path):
    engine = opened(tmp_path, vendor)
    inputs, stream = inputs_of(6, 16), torch.cuda.Stream()
    wanted = exact({**inputs, "x": inputs["x"] * 3}).float()
    engine(inputs)  # the context is made
    for where in (stream, torch.cuda.default_stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(where):
            x = inputs["x"].clone()
            torch.cuda._sleep(20_000_000)  # what is called too early sees x as it is now
            x.mul_(3)
            y = engine({**inputs, "x": x})["y"] * 1
        torch.cuda.synchronize()
        assert torch.allclose(y.cpu(), wanted, atol=1e-4)


def test_weights_can_be_streamed_from_host_memory(vendor, tmp_path):
    options = EngineOptions(weight_streaming=True)
    engine = opened(tmp_path, vendor, options=options, streaming_bytes=0)
    inputs = inputs_of(3, 7)
    assert torch.allclose(engine(inputs)["y"].cpu(), exact(inputs).float(), atol=1e-4)


def test_an_engine_that_was_built_without_a_gpu_runs_on_one(tmp_path):
    if "tensorrt-rtx" not in INSTALLED:
        pytest.skip("tensorrt-rtx is not installed")
    onnx, spec = write_graph(tmp_path)
    place = EnginePlace("tensorrt-rtx", "fp32", tmp_path / "engines", torch.device("cpu"))
    trt.build_engine(onnx, spec, place)
    trt.EVENTS.clear()
    inputs = inputs_of(2, 4)
    got = opened(tmp_path, "tensorrt-rtx")(inputs)["y"]
    assert trt.EVENTS == {"found": 1}
    assert torch.allclose(got.cpu(), expected(inputs["x"].cpu(), inputs["at"].cpu()), atol=1e-4)
