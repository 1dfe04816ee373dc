"""The benchmark of reward backends: every way gives the same outputs, and a way that is missing is named."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from runtime.bench import engines, reward_graphs
from runtime.rewards import hpsv3
from runtime.rewards.qwen2vl_judge import PixelBounds

CPU = torch.device("cpu")


def test_every_way_on_the_cpu_agrees_with_float64(tmp_path):
    subject = next(reward_graphs.embedded())
    case = reward_graphs.case(subject, CPU, tmp_path)
    assert set(case.runs) == {"torch", "onnxruntime"}
    assert all(0 < error < 1e-4 for error in case.errors.values()), case.errors
    assert case.moved_bytes > 48 * 3 * 96 * 96 * 4 and "frames=[48, 3, 96, 96]" in case.shape


def test_a_way_that_computes_something_else_shows_in_the_error_column():
    exact = (torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    spec = next(iter([type("Spec", (), {"outputs": {"a": 0, "b": 0}})]))
    got = {"b": torch.zeros(2), "a": torch.tensor([1.0, 1.5])}
    assert reward_graphs.difference(got, exact, spec) == 0.5
    assert reward_graphs.difference((got["a"], got["b"]), exact, spec) == 0.5


def test_a_way_that_is_missing_is_named_and_has_no_row(tmp_path, monkeypatch, capsys):
    def missing(*_):
        def fail():
            raise RuntimeError("onnxruntime: has no CUDAExecutionProvider\nand more")

        return {"onnxruntime": fail}

    monkeypatch.setattr(reward_graphs, "openers", missing)
    case = reward_graphs.case(next(reward_graphs.embedded()), CPU, tmp_path)
    assert set(case.runs) == {"torch"}
    assert "onnxruntime: not here (onnxruntime: has no CUDAExecutionProvider)" in capsys.readouterr().err  # fmt: skip


def test_what_is_timed_at_full_size_agrees_with_torch_at_a_small_one(tmp_path, monkeypatch):
    kind = hpsv3.KIND
    text = dataclasses.replace(
        kind.config.text,
        hidden_size=32,
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    vision = dataclasses.replace(kind.config.vision, embed_dim=32, num_heads=2, mlp_ratio=2)
    config = dataclasses.replace(kind.config, text=text, vision=vision)
    pixels = PixelBounds(4 * 28 * 28, 6 * 28 * 28)
    monkeypatch.setattr(hpsv3, "KIND", dataclasses.replace(kind, config=config, pixels=pixels))
    monkeypatch.setattr(reward_graphs, "LOOKING", 1)
    monkeypatch.setattr(reward_graphs, "TOKENS", 64)
    names = []
    for subject in reward_graphs.full():
        case = reward_graphs.case(subject, CPU, tmp_path)
        names.append(subject.name)
        # bfloat16 against float32: a few roundings of values about 1.
        assert case.errors["torch"] < 0.1 and case.flops > 0
    assert names == ["hpsv3 looks, 1 layers", "hpsv3 reads, 2 layers"]


def test_full_size_is_not_timed_on_a_cpu(capsys):
    assert not list(reward_graphs.cases(CPU, "full"))
    assert "on a GPU only" in capsys.readouterr().err


def test_engines_that_are_not_installed_are_told_in_words(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name == "onnx" or None)
    monkeypatch.setattr("sys.argv", ["engines", "--json", str(tmp_path / "rows.json")])
    assert engines.main() == 0
    told = capsys.readouterr().out
    assert told.count("not installed: pip install") == 2
    assert "stream-t1-runtime[tensorrt-rtx]" in (tmp_path / "rows.json").read_text()


def test_an_engine_less_exact_than_its_type_is_wrong():
    row = engines.words("tensorrt", "fp16", "runs")
    assert not row.wrong
    fine = dataclasses.replace(row, max_error=2e-3, torch_error=1e-3)
    assert not fine.wrong and dataclasses.replace(fine, max_error=2.1e-3).wrong
    assert dataclasses.replace(fine, max_error=float("nan")).wrong
