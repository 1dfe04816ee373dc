"""Qwen2-VL rewards on exported graphs against torch, through whole scores: clips, prompts and batches that were not traced."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx

from runtime.backends import Place, load_backed
from runtime.export.__main__ import export, verification
from runtime.export.fp8 import Rounding, linears, rounded, scale_of
from runtime.export.graph import write_graph
from runtime.export.pieces import DTYPES, Wanted, make_plan
from runtime.export.verify import difference
from runtime.ort import OrtGraph
from runtime.rewards import load_reward
from runtime.settings import RewardSettings
from runtime.types import Clip
from tests.reward_folder import write_folder
from tests.tiny import generator_of

SIZE = (60, 90)
CPU = Place(torch.device("cpu"))
CASES = [("hpsv3", "fp32"), ("videoalign", "fp16")]
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-3}  # of scores, over the largest one or 1


def calm_(folder):
    """Halve every matrix: a network that amplifies rounding as little as a trained one."""
    path = folder / "model.safetensors"
    save_file({k: v / 2 if v.ndim > 1 else v for k, v in load_file(path).items()}, path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for name, _ in CASES:
        calm_(write_folder(root, name) / name)
    return str(root)


@pytest.fixture(scope="module")
def graphs(weights, tmp_path_factory):
    root = tmp_path_factory.mktemp("graphs")
    for name, precision in CASES:
        wanted = Wanted(reward=name, precision=precision, weights=weights, frame_size=SIZE, prompt_words=128, frames=None if name == "hpsv3" else 33)  # fmt: skip
        export(wanted, root, verify=name == "hpsv3")
    return str(root)


def on_graphs(name, weights, graphs):
    settings = RewardSettings(backend="onnxruntime", weights=weights, graphs=graphs)
    reward, backings = load_backed(name, settings, CPU)
    assert backings[name].name == "onnxruntime"
    return reward


def clip(B, T, prompt):
    return Clip(torch.rand(B, T, 3, *SIZE, generator=generator_of(B + T)), prompt, 16, 0)


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_scores_on_graphs_are_torch_s_whatever_the_batch_the_clip_and_the_prompt(name, precision, weights, graphs):  # fmt: skip
    exact, reward = load_reward(name, "cpu", weights), on_graphs(name, weights, graphs)
    own = load_reward(name, "cpu", weights, DTYPES[precision])
    lengths = set()
    language = reward.net.language
    reward.net.language = lambda x: lengths.add(x["x"].shape[1]) or language(x)
    clips = [clip(1, 4, "a"), clip(3, 9, "a red circle"), clip(5, 33, "word " * 90)]
    wants = [exact.score(some) for some in clips]
    rounding = max(
        difference(own.score(some), want) for some, want in zip(clips, wants, strict=True)
    )
    allowed = max(TOLERANCE[precision], 2 * rounding)  # rounding of torch's own in that dtype
    assert allowed < 4 * TOLERANCE[precision]
    for some, want in zip(clips, wants, strict=True):
        assert difference(reward.score(some), want) <= allowed
        assert len(want) == 1 or want.std() > 2 * allowed  # a constant would pass all the same
    assert len(lengths) > 1, "prompts of different lengths must meet different buckets"


def test_on_graphs_nothing_but_the_embedding_is_read(weights, graphs):
    reward = on_graphs("hpsv3", weights, graphs)
    vocabulary, width = reward.judge.config.text.vocab_size, 32
    assert reward.nbytes == 4 * vocabulary * width


def test_a_prompt_beyond_the_largest_bucket_is_told_the_limit_and_another_frame_size_the_option(weights, graphs):  # fmt: skip
    reward = on_graphs("hpsv3", weights, graphs)
    with pytest.raises(ValueError, match=r"takes? at most \d+; shorten it, or export again with a larger --prompt-words"):  # fmt: skip
        reward.score(clip(1, 2, "word " * 300))
    wide = replace(clip(1, 2, "a"), frames=torch.rand(1, 2, 3, 30, 90))
    with pytest.raises(ValueError, match="want 4 x 6 patches.*--frame-size"):
        reward.score(wide)


def test_the_weights_lie_beside_the_graph_as_the_products_read_them(graphs, weights):
    model = onnx.load(f"{graphs}/hpsv3/language.onnx")
    values = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    theirs = load_file(f"{weights}/hpsv3/model.safetensors")
    key = "layers.0.mlp.up_proj.weight"
    assert torch.equal(torch.from_numpy(values[f"{key}.T"].copy()), theirs[f"model.{key}"].T)
    assert not any(node.op_type == "Transpose" and node.input[0] in values for node in model.graph.node)  # fmt: skip


class Eight(nn.Module):
    """What a linear does with 8-bit numbers on both sides, by torch."""

    def __init__(self, linear, scale):
        super().__init__()
        self.linear, self.scale = linear, scale

    def forward(self, x):
        its = scale_of(self.linear.weight.abs().max().item())
        weight = rounded(self.linear.weight, its).float() * its
        return nn.functional.linear(rounded(x, self.scale).float() * self.scale, weight, self.linear.bias)  # fmt: skip


def test_products_in_8_bits_are_those_of_torch_s_own_8_bit_numbers(weights, tmp_path):
    wanted = Wanted(reward="hpsv3", precision="fp8", weights=weights, frame_size=SIZE, dtype=torch.float32)  # fmt: skip
    plan = make_plan(wanted)
    piece, rounding = plan.pieces["vision"], Rounding.calibrated(plan)
    spec = write_graph("vision", piece, tmp_path, rounding.of("vision"))
    x = torch.rand(3, 24, 1176, generator=generator_of(0)) * 2 - 1
    got = OrtGraph(tmp_path / spec.file, spec)({"patches": x})["tokens"]
    with torch.no_grad():
        plain = piece.module(x)
        for name, linear in list(linears(piece, plan.rounded)):
            owner, _, leaf = name.rpartition(".")
            setattr(piece.module.get_submodule(owner), leaf, Eight(linear, rounding.scales["vision"][name]))  # fmt: skip
        eight = piece.module(x)
    by_rounding = (plain - eight).abs().mean()
    assert by_rounding > 1e-4
    # Two ways to one sum may fall on two sides of a rounding now and then, no more.
    assert (got - eight).abs().mean() < by_rounding / 10
    model = onnx.load(str(tmp_path / spec.file))
    eights = [v for v in model.graph.initializer if v.data_type == onnx.TensorProto.FLOAT8E4M3FN and v.dims]  # fmt: skip
    assert len(eights) == 2 * 4  # two blocks of qkv, proj, fc1, fc2


@pytest.mark.parametrize(("largest", "scale"), [(448.0, 1.0), (449.0, 2.0), (1.0, 2.0**-8), (0.0, 1.0)])  # fmt: skip
def test_a_scale_is_the_least_power_of_two_that_avoids_saturation(largest, scale):
    assert scale_of(largest) == scale


def test_bfloat16_is_written_and_said_not_to_be_verified(weights, tmp_path):
    wanted = Wanted(reward="hpsv3", precision="bf16", weights=weights, frame_size=SIZE, prompt_words=32)  # fmt: skip
    plan = make_plan(wanted)
    language = write_graph("language", plan.pieces["language"], tmp_path)
    assert language.inputs["x"].dtype == "bfloat16" and language.outputs["out"].dtype == "float32"
    assert language.inputs["x"].shape == ("rows", 256, 32)  # one bucket: no free length
    with pytest.raises(RuntimeError, match="onnxruntime: cannot open"):
        OrtGraph(tmp_path / language.file, language)
    differences, verified = verification(wanted, plan, {"language": language}, tmp_path)
    assert differences == {} and verified.startswith("not verified: ")
