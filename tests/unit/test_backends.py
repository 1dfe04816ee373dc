"""Which backend a reward gets: by name, by ``auto``, and after an engine has failed."""

import logging
from dataclasses import replace

import pytest
import torch

from runtime import backends
from runtime.backends import Place, find_export, load_backed, weights_hash
from runtime.rewards import load_reward
from runtime.settings import RewardSettings
from runtime.standins import Backing, GivesWay, captured
from runtime.types import Clip
from tests.export_folder import write_export
from tests.picture_folder import write_pictures, write_shallow
from tests.reward_folder import write_folder
from tests.tiny import generator_of

CPU = Place(torch.device("cpu"))
PICTURES = ["clip-h", "imagereward", "mps"]
NAMES = ["hpsv3", "videoalign", "sprites-image", "sprites-video", *PICTURES]


def clip(B=2, T=6, size=(60, 90), prompt="a red circle", seed=3):
    return Clip(torch.rand(B, T, 3, *size, generator=generator_of(seed)), prompt, 16, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for name in PICTURES:
        write_pictures(root, name)
    return write_folder(write_folder(root, "hpsv3"), "videoalign")


@pytest.mark.parametrize("name", ["sprites-image", "sprites-video", "stub"])
def test_auto_is_torch_on_the_cpu_and_says_so(name):
    reward, backings = load_backed(name, RewardSettings(), CPU)
    backing = backings[name]
    assert backing.name == "torch" and backing.fallbacks == 0
    assert str(backing).startswith("torch (auto: ")
    assert torch.equal(reward.score(clip()), load_reward(name).score(clip()))


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_reward_scores_as_the_plain_one_on_clips_of_several_shapes(name, weights):
    """The rehearsal copies to fixed addresses and replays; what it must not do is mix up shapes or outputs."""
    folder = "" if name.startswith("sprites") else str(weights)
    plain, recorded = (load_reward(name, "cpu", folder) for _ in range(2))
    recorded.net = captured(recorded.net, torch.device("cpu"), "rehearsal")
    clips = [clip(), clip(3, 8, seed=4), clip(prompt="a blue square that turns"), clip(seed=5)]
    kept = [recorded.score(some) for some in clips]
    for got, some in zip(kept, clips, strict=True):
        assert torch.allclose(got, plain.score(some), atol=1e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_prompts_share_a_recording_where_what_is_read_of_them_has_one_size(name, weights):
    reward = load_reward(name, "cpu", str(weights))
    facts = reward.nbytes, reward.flops(12, 480, 832, 16, "a"), reward.reader.side
    reward.net = captured(reward.net, torch.device("cpu"), "rehearsal")
    one, other = (reward.score(clip(prompt=prompt)) for prompt in ("a", "two bluish squares " * 9))
    assert not torch.equal(one, other)
    assert len(reward.net.runner.recordings) == 1
    assert facts == (reward.nbytes, reward.flops(12, 480, 832, 16, "a"), reward.reader.side)


@pytest.mark.slow  # half a minute of compilers
def test_a_compiled_reward_scores_as_the_plain_one_for_any_batch(tmp_path):
    root = str(write_shallow(tmp_path, "clip-h"))
    settings = RewardSettings(backend="compiled", weights=root)
    reward, backings = load_backed("clip-h", settings, CPU)
    assert str(backings["clip-h"]) == "compiled"
    plain = load_reward("clip-h", "cpu", root)
    for some in (clip(), clip(3, 5, seed=4, prompt="a blue square that turns")):
        want = plain.score(some)
        assert torch.allclose(reward.score(some), want, atol=1e-5) and want.std() > 1e-4


def test_prompts_of_neighbouring_lengths_share_a_recording(weights):
    reward = load_reward("hpsv3", "cpu", str(weights))
    reward.net = captured(reward.net, torch.device("cpu"), "rehearsal")
    for prompt in ("a", "ab", "abc"):
        reward.score(clip(prompt=prompt))
    kinds = [key[0] for key in reward.net.runner.recordings]
    assert kinds == ["look", "read"]


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("sprites-image", {"backend": "captured"}, "'captured': wants a GPU, got device cpu"),
        ("stub", {"backend": "compiled"}, "stub has no network that could be replaced; use 'torch'"),
        ("stub", {"backend": "onnxruntime"}, "stub runs by torch alone; use 'torch'"),
        (
            "sprites-image",
            {"backend": "onnxruntime"},
            "wants exported graphs; run `python -m runtime.export sprites-image --to onnx -o DIR` and set reward.graphs",
        ),
        (
            "sprites-image",
            {"backend": "onnxruntime", "graphs": "/nowhere"},
            "no such file; run `python -m runtime.export sprites-image --to onnx -o /nowhere`",
        ),
        ("sprites-image", {"backend": "tensorrt"}, "run on a GPU, got device cpu; use 'onnxruntime'"),
        ("hpsv", {"backend": "onnxruntime"}, "unknown reward 'hpsv'"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_by_name_says_what_to_do(name, changes, sentence):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        load_backed(name, RewardSettings(**changes), CPU)
    assert sentence in str(caught.value)


def test_the_members_of_an_ensemble_have_a_backing_each():
    reward, backings = load_backed("sprites-image*0.5+sprites-video", RewardSettings(), CPU)
    assert reward.score(clip()).shape == (2,)
    assert list(backings) == ["sprites-image", "sprites-video"]
    assert all(str(one).startswith("torch (auto: ") for one in backings.values())


def test_graphs_of_other_weights_are_refused_with_both_hashes(tmp_path):
    write_export(tmp_path, "sprites-image", weights_sha256="b" * 64)
    settings = RewardSettings(backend="onnxruntime", graphs=str(tmp_path))
    with pytest.raises(ValueError, match="made from weights b{16}, but reward.weights holds "):
        load_backed("sprites-image", settings, CPU)
    fitting = {"weights_sha256": weights_hash("sprites-image", "")}
    (tmp_path / "second").mkdir()
    write_export(tmp_path / "second", "sprites-image", **fitting)
    settings = replace(settings, graphs=str(tmp_path / "second"))
    assert find_export("sprites-image", "onnxruntime", settings, True).reward == "sprites-image"


class EngineTrouble(RuntimeError):
    pass


class Failing:
    """Engines that work ``good`` times."""

    def __init__(self, net, good):
        self.net, self.good = net, good

    def __call__(self, frames):
        self.good -= 1
        if self.good < 0:
            raise EngineTrouble("the engine is gone\nsecond line")
        return self.net(frames)


def test_an_engine_that_fails_gives_way_to_torch_once_with_one_warning_and_a_count(caplog):
    plain, reward, backing = load_reward("sprites-image"), load_reward("sprites-image"), Backing("tensorrt")  # fmt: skip
    loads = []

    def instead():
        loads.append(1)
        return plain.net

    reward.net = GivesWay(Failing(plain.net, 2), EngineTrouble, instead, backing)
    with caplog.at_level(logging.WARNING, backends.__name__):
        scores = [reward.score(clip(seed=n)) for n in range(5)]
    for n, got in enumerate(scores):
        assert torch.equal(got, plain.score(clip(seed=n)))
    assert (backing.name, backing.fallbacks, loads) == ("torch", 1, [1])
    assert "tensorrt failed: the engine is gone" in backing.why
    assert [r.message for r in caplog.records] == [
        "tensorrt failed (the engine is gone): torch runs this reward from now on"
    ]


def test_what_is_no_engine_s_fault_is_not_hidden_by_torch():
    reward, backing = load_reward("sprites-image"), Backing("tensorrt")
    reward.net = GivesWay(Failing(reward.net, 0), KeyError, lambda: None, backing)
    with pytest.raises(EngineTrouble):
        reward.score(clip())
    assert backing.fallbacks == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_auto_records_on_a_gpu_and_scores_as_torch_does(name, weights):
    folder = "" if name.startswith("sprites") else str(weights)
    place = Place(torch.device("cuda"))
    reward, backings = load_backed(name, RewardSettings(weights=folder), place)
    assert backings[name].name == "captured"
    plain = load_reward(name, "cuda", folder)
    for some in (clip(), clip(3, 8), clip()):
        some = replace(some, frames=some.frames.cuda())
        assert torch.allclose(reward.score(some), plain.score(some), atol=1e-4)
