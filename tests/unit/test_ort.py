"""onnxruntime on torch tensors: the numbers, the memory they lie in, and what an input that does not fit is told."""

import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from runtime.ort import OrtGraph, resolved
from tests.export_folder import spec_of, write_sum
from tests.tiny import generator_of


@pytest.fixture
def graph(tmp_path):
    return OrtGraph(tmp_path / "whole.onnx", write_sum(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_graph_computes_on_any_number_of_rows(tmp_path, dtype):
    graph = OrtGraph(tmp_path / "whole.onnx", write_sum(tmp_path, dtype))
    for rows in (1, 3, 7):
        x = torch.randn(rows, 2, generator=generator_of(rows)).to(getattr(torch, dtype))
        (total,) = graph({"frames": x}).values()
        assert total.dtype == x.dtype and total.shape == (rows, 1)
        assert torch.allclose(total.float(), x.float().sum(1, keepdim=True), atol=2e-3 if dtype == "float16" else 1e-6)  # fmt: skip


def test_a_call_leaves_the_outputs_of_the_last_one_alone(graph):
    first = graph({"frames": torch.ones(2, 2)})["total"]
    graph({"frames": torch.zeros(2, 2)})
    assert first.tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"x": torch.zeros(1, 2)}, r"want inputs \['frames'\], got \['x'\]"),
        ({"frames": torch.zeros(1, 2).double()}, "want dtype torch.float32, got torch.float64"),
        ({"frames": torch.zeros(1, 3)}, r"want shape \['rows', 2\], got \[1, 3\]"),
        ({"frames": torch.zeros(2)}, r"want shape \['rows', 2\], got \[2\]"),
        ({"frames": torch.zeros(2, 2).T}, None),
        ({"frames": torch.zeros(2, 4)[:, ::2]}, "want a contiguous tensor, got strides"),
    ],
)
def test_an_input_that_does_not_fit_is_named(graph, inputs, sentence):
    if sentence is None:  # a transposed square is not contiguous either
        sentence = "contiguous"
    with pytest.raises(ValueError, match=sentence):
        graph(inputs)


def test_a_file_that_is_no_graph_is_one_line(tmp_path):
    write_sum(tmp_path)
    (tmp_path / "whole.onnx").write_bytes(b"\x00\x01nonsense" * 9)
    with pytest.raises(RuntimeError, match="onnxruntime: cannot open .*whole.onnx: ") as caught:
        OrtGraph(tmp_path / "whole.onnx", spec_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_axes_are_filled_in_by_name(graph):
    assert resolved(graph.spec.outputs["total"], {"rows": 5}) == (5, 1)


@pytest.mark.gpu
def test_a_graph_on_a_gpu_keeps_the_order_of_the_caller_s_stream(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime knows no GPU")
    graph = OrtGraph(tmp_path / "whole.onnx", write_sum(tmp_path), "cuda")
    x = torch.zeros(4, 2, device="cuda")
    torch.cuda._sleep(50_000_000)
    x += 1.0
    total = graph({"frames": x})["total"]
    assert (total + 1).eq(3.0).all()
