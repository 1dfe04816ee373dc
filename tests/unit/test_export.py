"""The export command: what it writes, where it refuses to write, and that a failed check leaves nothing behind."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx

from runtime.backends import weights_hash
from runtime.export import __main__ as door
from runtime.export import verify
from runtime.export.folder import replaced
from runtime.export.graph import check_nodes
from runtime.export.pieces import RECIPES, Wanted, make_plan
from runtime.export.qwen2vl import bucket_lengths
from runtime.exported import FILE, read_export
from runtime.rewards.qwen2vl_words import Filler, TokenIds
from tests.export_folder import write_export


def say(monkeypatch, capsys, *arguments):
    """Exit code and what the command says."""
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    code = door.main()
    out, err = capsys.readouterr()
    return code, out + err


def test_an_embedded_reward_is_exported_whole_and_held_against_torch(tmp_path, monkeypatch, capsys):
    code, said = say(monkeypatch, capsys, "sprites-video", "-o", tmp_path)
    assert code == 0 and "sprites-video (1." in said and "scores differ from torch by" in said
    exported = read_export(tmp_path / "sprites-video")
    exported.verify()
    assert exported.largest_difference["scores"] <= 1e-5
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        FILE, "sprites-video", "whole.onnx", "whole.onnx.data"
    ]  # fmt: skip
    model = onnx.load(str(exported.path("whole")), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    text = str(model)
    assert ".py" not in text and "/" not in model.producer_name, "a path of this machine is kept"


def test_a_difference_beyond_the_tolerance_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(door, "write_graphs", lambda *_: {})
    monkeypatch.setattr(door, "measure", lambda *_: {"scores": 2e-5, verify.TORCH: 0.0, "whole": 1e-4})  # fmt: skip
    code, said = say(monkeypatch, capsys, "sprites-image", "-o", tmp_path)
    assert code == 1 and list(tmp_path.iterdir()) == []
    assert said == (
        "error: sprites-image: want scores within 1e-05 of torch's in fp32, got scores 2.0e-05, "
        "scores of torch 0.0e+00, whole 1.0e-04; nothing was kept\n"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_no_agreement(bad):
    assert verify.difference(torch.tensor([1.0, bad]), torch.tensor([1.0, 2.0])) == float("inf")
    with pytest.raises(RuntimeError, match="nothing was kept"):
        verify.check("x", "fp32", {"scores": float("nan"), verify.TORCH: 0.0})


def test_a_narrow_graph_may_differ_by_twice_what_torch_does_and_a_wide_one_may_not():
    verify.check("x", "fp16", {"scores": 3.9e-3, verify.TORCH: 2e-3})
    for precision in ("fp16", "fp32"):
        with pytest.raises(RuntimeError):
            verify.check("x", precision, {"scores": 4.1e-3, verify.TORCH: 2e-3})


def test_what_stands_at_the_place_is_kept_unless_it_is_an_export(tmp_path):
    target = tmp_path / "hpsv3"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no export"), replaced(target):
        pytest.fail("the block was entered")
    (target / FILE).write_text("{}")
    with pytest.raises(KeyError), replaced(target) as draft:
        (draft / FILE).write_text("new")
        raise KeyError
    assert (target / FILE).read_text() == "{}"
    with replaced(target) as draft:
        (draft / FILE).write_text("new")
    assert (target / FILE).read_text() == "new"
    assert [path.name for path in tmp_path.rglob("*")] == ["hpsv3", FILE]
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(ValueError, match="is no export"), replaced(link):
        pytest.fail("a link was followed")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sprites-image", "--precision", "fp16"], "sprites-image runs in fp32 alone, got fp16"),
        (["sprites-image", "--frames", "9"], "clips of any length; drop them"),
        (["sprites-image", "--weights", "/nowhere"], "/nowhere/sprites-image/model.json: no such file"),
        (["hpsv3"], "reward 'hpsv3': its weights are not in the package"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch, capsys, arguments, sentence):
    code, said = say(monkeypatch, capsys, *arguments, "-o", tmp_path)
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1 and sentence in said


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({}, False),
        ({"precision": "fp16"}, True),
        ({"frame_size": (96, 96)}, True),
        ({"prompt_words": 9}, True),
    ],
    ids=str,
)
def test_engines_are_built_from_what_lies_there_only_if_it_is_what_was_asked_for(tmp_path, changes, again):  # fmt: skip
    wanted = Wanted(reward="sprites-image")
    write_export(
        tmp_path,
        weights_sha256=weights_hash(wanted.reward, ""),
        constants={"asked": wanted.sizes},
    )
    found = door.there_already(dataclasses.replace(wanted, **changes), tmp_path)
    assert (found is None) == again


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, said = say(monkeypatch, capsys, "sprites-image", "-o", tmp_path)
    assert code == 1 and "is missing; run `pip install 'stream-t1-runtime[onnx]'`" in said
    assert list(tmp_path.iterdir()) == []


def test_every_recipe_is_found_and_an_unknown_reward_lists_them():
    with pytest.raises(
        ValueError, match="want one of clip-h, hpsv3, imagereward, mps, sprites-image"
    ):
        make_plan(Wanted(reward="stub"))
    assert {"clip-h", "hpsv3", "imagereward", "mps", "sprites-image", "sprites-video", "videoalign"} <= set(RECIPES)  # fmt: skip


class Counting:
    """A script of 100 tokens and one for every word."""

    def ids(self, prompt):
        return TokenIds((0,) * 60, (0,) * (40 + len(prompt.split())), (0,))


def test_buckets_hold_every_clip_with_a_usual_prompt_and_the_longest_prompt_with_the_longest_clip():
    visual = (252, 504, 1764)
    buckets = bucket_lengths(Counting(), visual, 400)
    assert all(bucket % 64 == 0 for bucket in buckets) and list(buckets) == sorted(set(buckets))
    assert buckets[-1] == 2304  # 1764 + 100 + 400, rounded up
    for tokens in visual:
        for words in (5, 96):
            length = tokens + 100 + words
            held = min(bucket for bucket in buckets if bucket >= length)
            assert held - length < 64 + 96, "padding costs more than the prompt"
    assert bucket_lengths(Counting(), (252,), 10) == (384,)  # short prompts alone
    assert bucket_lengths(Filler(658, 1, 1000), (252,), 400) == (960,)  # whose length is one


def test_an_operator_that_decides_on_the_device_is_refused():
    import onnx_ir as ir

    def model(domain, kind):
        node = ir.Node(domain, kind, [])
        graph = ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 20})
        return ir.Model(graph, ir_version=10)

    check_nodes("whole", model("", "Add"))
    for domain, kind in (("", "If"), ("", "Loop"), ("com.microsoft", "Attention")):
        with pytest.raises(
            RuntimeError, match=f"want standard operators without decisions.*{kind}"
        ):
            check_nodes("whole", model(domain, kind))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "-o", "x"], "argument REWARD: invalid choice: 'nothing'"),
        (["hpsv3", "-o", "x", "--frame-size", "480"], "want HEIGHTxWIDTH in pixels"),
        (["hpsv3"], "the following arguments are required: -o/--output"),
        (["hpsv3", "-o", "x", "--weights", "nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_a_wrong_call_is_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert door.main(arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("error: ") and message in err[0], err
