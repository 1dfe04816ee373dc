"""ImageReward, MPS and CLIP on exported graphs against torch, through whole scores: clips, prompts and batches that were not traced."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from safetensors.torch import load_file

from runtime import backends, trt
from runtime.backends import Place, load_backed
from runtime.export.__main__ import export
from runtime.export.graph import write_graph
from runtime.export.pieces import DTYPES, Piece, Wanted, make_plan, port
from runtime.export.verify import TOLERANCE, difference
from runtime.exported import read_export
from runtime.ort import OrtGraph
from runtime.rewards import clip_h, imagereward, load_reward, mps
from runtime.rewards.blip import BlipConfig
from runtime.rewards.clip import ClipConfig
from runtime.rewards.fixed_words import ByteWords
from runtime.settings import RewardSettings
from runtime.trt import EnginePlace
from runtime.types import Clip
from tests.picture_folder import BLIP_SIZES, CLIP_SIZES, write_shallow
from tests.tiny import generator_of

NAMES = ("clip-h", "imagereward", "mps")
CPU = Place(torch.device("cpu"))
# Of weights, what torch reads on graphs; of products, those in float32: the head, or the cosine.
LEFT = {
    "clip-h": ("text_", "logit_scale"),
    "imagereward": ("blip.text_encoder.embeddings",),
    "mps": ("model.text_", "model.logit_scale"),
}
WIDE = {"clip-h": 1, "imagereward": 5, "mps": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        write_shallow(root, name)
    return str(root)


@pytest.fixture(scope="module")
def graphs(weights, tmp_path_factory):
    """Of a name and a precision, the folder that reward.graphs names; exported when first asked for."""
    root, done = tmp_path_factory.mktemp("graphs"), set()

    def folder(name, precision):
        if (name, precision) not in done:
            done.add((name, precision))
            export(Wanted(reward=name, precision=precision, weights=weights), root / precision)
        return root / precision

    return folder


def on_graphs(name, weights, folder):
    settings = RewardSettings(backend="onnxruntime", weights=weights, graphs=str(folder))
    reward, backings = load_backed(name, settings, CPU)
    return reward, backings[name]


def clip(B, T, prompt, size=(40, 64)):
    return Clip(torch.rand(B, T, 3, *size, generator=generator_of(B + T)), prompt, 16, 0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_on_graphs_are_torch_s_whatever_the_batch_the_clip_and_the_prompt(name, precision, weights, graphs):  # fmt: skip
    exact, own = (load_reward(name, "cpu", weights, dtype) for dtype in (torch.float32, DTYPES[precision]))  # fmt: skip
    reward, backing = on_graphs(name, weights, graphs(name, precision))
    assert backing.name == "onnxruntime" and reward.dtype == DTYPES[precision]
    # One picture; a prompt that is cut; more pictures than go at once, so that a graph is called twice.
    clips = [clip(1, 1, "a"), clip(3, 2, "two bluish squares " * 9), clip(5, 7, "", (30, 30))]
    wants = [exact.score(some) for some in clips]
    rounding = max(difference(own.score(c), want) for c, want in zip(clips, wants, strict=True))
    allowed = max(TOLERANCE[precision], 2 * rounding)  # rounding of torch's own in that dtype
    assert allowed < 4 * TOLERANCE[precision]
    for some, want in zip(clips, wants, strict=True):
        assert difference(reward.score(some), want) <= allowed
        assert len(want) == 1 or want.std() > 2 * TOLERANCE["fp32"]  # a constant would pass
    # Scores are compared as a whole: each part of the sum has to matter.
    assert difference(reward.score(dataclasses.replace(clips[0], prompt="zebras")), wants[0]) > 10 * allowed  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_of_the_weights_only_what_reads_the_prompt_is_read(name, weights, graphs):
    reward, _ = on_graphs(name, weights, graphs(name, "fp32"))
    stored = load_file(f"{weights}/{name}/model.safetensors")
    left = sum(value.nbytes for key, value in stored.items() if key.startswith(LEFT[name]))
    assert reward.nbytes == left < sum(value.nbytes for value in stored.values())
    plain = load_reward(name, "cpu", weights)
    assert reward.flops(12, 480, 832, 16, "a") == plain.flops(12, 480, 832, 16, "a") > 0


class EngineTrouble(RuntimeError):
    pass


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_fails_gives_way_to_torch_in_the_engine_s_dtype(name, good, weights, graphs, monkeypatch):  # fmt: skip
    left = [good]

    def opener(asked, exported, place):
        graph = OrtGraph(exported.path("whole"), exported.graphs["whole"])

        def call(inputs):
            left[0] -= 1
            if left[0] < 0:
                raise EngineTrouble("gone")
            return graph(inputs)

        return lambda _: call, EngineTrouble

    monkeypatch.setattr(backends, "_opener", opener)
    reward, backing = on_graphs(name, weights, graphs(name, "fp16"))
    want = load_reward(name, "cpu", weights, torch.float16).score(clip(2, 2, "a circle"))
    for _ in range(2):
        got = reward.score(clip(2, 2, "a circle"))
        assert difference(got, want) <= 2e-3
    assert (backing.name, backing.fallbacks) == ("torch", 1) and torch.equal(got, want)
    assert reward.nbytes and reward.flops(2, 40, 64, 16)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_graphs_build_as_engines_in_their_own_types(name, precision, weights, graphs, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    exported = read_export(graphs(name, precision) / name)
    place = EnginePlace("tensorrt-rtx", precision, tmp_path, CPU.device)
    path = trt.build_engine(exported.path("whole"), exported.graphs["whole"], place)
    products = json.loads(path.with_suffix(".json").read_text())["build"]["products"]
    own = {"fp32": "FLOAT", "fp16": "HALF"}[precision]
    assert products[own] > 9 and sum(products.values()) - products[own] in (0, WIDE[name])


def small(name, monkeypatch):
    """The module of a reward whose random weights are small."""
    if name == "imagereward":
        setup = BlipConfig.read(BLIP_SIZES), ByteWords(35, 256)
        monkeypatch.setattr(imagereward, "read_setup", lambda path: setup)
        return imagereward.ImageReward
    setup = ClipConfig.read(CLIP_SIZES), ByteWords(20, 256)
    for module in (clip_h, mps):
        monkeypatch.setattr(module, "read_setup", lambda path: setup)
    return clip_h.ClipReward if name == "clip-h" else mps.MPS


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_read_the_same_words_with_and_without_graphs(name, monkeypatch):
    kind, constants = small(name, monkeypatch), {"dtype": "float32", "pictures": 3}
    plain = kind.random("cpu", torch.float32)
    graph = kind.on_graphs("cpu", None, {"whole": lambda inputs: inputs}, constants)
    assert graph.rows_per_forward == 3 and plain.rows_per_forward == 32
    # A direction times a scale that was drawn as 1, or embedded words.
    kinds = ("a circle", "a square")
    said, other = (plain.words(prompt) for prompt in kinds)
    assert not all(map(torch.equal, said, other))
    assert all(map(torch.equal, graph.words(kinds[0]), said))


def test_scores_are_kept_where_an_engine_writes_the_next_ones_over_them(monkeypatch):
    fixed = torch.empty(3)

    def engine(inputs):
        return {"scores": fixed.copy_(inputs["pixels"].mean((1, 2, 3)))}

    constants = {"dtype": "float32", "pictures": 3}
    reward = small("clip-h", monkeypatch).on_graphs("cpu", None, {"whole": engine}, constants)
    some = clip(2, 3, "a")
    want = reward.prepare(some).pixels.mean((1, 2, 3)).view(2, 3).mean(1)
    assert torch.equal(reward.score(some), want) and want[0] != want[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"precision": "fp8"}, "clip-h is exported in fp32, fp16, bf16, got fp8"), ({"frame_size": (60, 90)}, "--frame-size.*drop")],
    ids=["fp8", "frame size"],
)  # fmt: skip
def test_what_cannot_be_exported_is_told(changes, sentence, weights):
    with pytest.raises(ValueError, match=sentence):
        make_plan(Wanted(reward="clip-h", weights=weights, **changes))


@pytest.mark.parametrize(
    ("constants", "sentence"),
    [({"dtype": "float32"}, "constants.pictures: want whole numbers"), ({"dtype": "int8", "pictures": 3}, "constants.dtype: want float32")],
    ids=["pictures", "dtype"],
)  # fmt: skip
def test_constants_that_are_missing_or_wrong_are_named(constants, sentence, weights):
    with pytest.raises(ValueError, match=sentence):
        clip_h.ClipReward.on_graphs("cpu", Path(weights) / "clip-h", {"whole": None}, constants)


class Counting(nn.Module):
    def forward(self, x):
        return x * len(x)


def test_an_axis_that_the_tracer_took_for_a_constant_is_an_error(tmp_path):
    free = port(torch.float32, "rows", 2)
    piece = Piece(Counting(), {"x": free}, {"y": free}, {"rows": (1, 8)}, [])
    with pytest.raises(RuntimeError, match="x: want a free axis rows, got the constant 2"):
        write_graph("counting", piece, tmp_path)
