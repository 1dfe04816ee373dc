"""Published rewards in an engine, by name, and on a GPU: no waiting in a forward pass, and one that a graph can capture."""

import json
from dataclasses import replace

import pytest
import torch

from runtime.arguments import build_settings, parse
from runtime.engine import Engine
from runtime.rewards import PUBLISHED, REWARDS, load_reward
from runtime.rewards.qwen2vl_rotary import token_turns
from runtime.settings import Settings
from runtime.types import Clip
from tests.picture_folder import write_pictures
from tests.reward_folder import write_folder
from tests.tiny import generator_of, tiny_engine, tiny_vae

FAMILY = {"hpsv3": "sprites-image", "videoalign": "sprites-video"}
QWEN = tuple(FAMILY)  # what a graph can capture
PICTURES = ("clip-h", "imagereward", "mps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for name in QWEN:
        write_folder(root, name)
    for name in PICTURES:
        write_pictures(root, name)
    pytest.importorskip("transformers.models.video_llama_3")
    from tests.videollama3_folder import write_video_folder

    write_video_folder(root)
    table = {name: {"mean": 0.5, "std": 2.0, "samples": 9} for name in REWARDS}
    (root / "statistics.json").write_text(json.dumps(table))
    return root


def clip(device="cpu", dtype=torch.float32):
    frames = torch.rand(4, 21, 3, 60, 90, generator=generator_of(7))
    return Clip(frames.to(device, dtype), "a red circle", 16, 0)


def test_an_engine_searches_with_published_rewards(folder):
    """Random weights, real path: frames of the real autoencoder, both rewards, gates, selection."""
    image, video = (load_reward(name, "cpu", str(folder)) for name in QWEN)
    records, events = [], []
    for _ in range(2):
        engine = tiny_engine(3, decoder=tiny_vae(), image=image, video=video)
        watched = []
        events.append(list(engine.stream("a red circle", watch=watched.append)))
        records.append([[c.scores for c in record.candidates] for record in watched])
    scores = [score for chunk in records[0] for score in chunk]
    assert len(scores) == 3 * 4 and len(events[0]) == 3
    assert len({score.short for score in scores}) == len({score.long for score in scores}) == 12
    assert records[0] == records[1]
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(*events, strict=True))


IMAGES = (
    "hpsv3",
    "imagereward",
    "mps",
    "clip-h",
    "sprites-image",
    "stub",
    "hpsv3*0.5+imagereward*0.5",
)
VIDEOS = ("videoalign", "videollama3", "sprites-video", "stub", "videoalign*0.6+videollama3*0.4")


def test_every_reward_of_the_table_is_in_a_combination():
    assert {name for text in (*IMAGES, *VIDEOS) for name in text.replace("*", "+").split("+")} >= {
        *REWARDS
    }
    assert PUBLISHED.keys() < REWARDS.keys()


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("video", VIDEOS)
def test_any_two_rewards_judge_the_same_search(folder, image, video, pair):
    """By name, from one folder; the embedded rewards come with their own weights. Every candidate gets two finite scores."""
    shorts, longs = pair(image, "image"), pair(video, "video")
    engine = tiny_engine(2, {"reward.stride": 2}, decoder=tiny_vae(), image=shorts, video=longs)
    records = []
    list(engine.stream("a red circle", watch=records.append))
    scores = [candidate.scores for record in records for candidate in record.candidates]
    assert len(scores) == 2 * 4
    table = torch.tensor([[score.short, score.long, score.fused] for score in scores])
    assert table.isfinite().all() and len(set(table[:, 0].tolist())) > 1


@pytest.fixture(scope="module")
def pair(folder):
    """A reward by name, loaded once for all combinations."""
    loaded = {}

    def load(expression, role):
        if expression not in loaded:
            weights = "" if expression.startswith("sprites") else str(folder)
            loaded[expression] = load_reward(
                expression, "cpu", weights, statistics=str(folder / "statistics.json")
            )
        return loaded[expression]

    return load


def test_settings_name_two_ensembles_their_folder_and_their_scale(folder):
    """Through ``Parts.load``, as the command line does it, on the embedded generator."""
    changes = {
        "seconds": 0.5,
        "search.expansions": 1,
        "reward.image": "mps*0.5+imagereward*0.5",
        "reward.video": "videoalign*0.5+videollama3*0.5",
        "reward.weights": str(folder),
        "reward.statistics": str(folder / "statistics.json"),
        "reward.stride": 4,
    }
    engine = Engine(Settings().with_changes(changes))
    records = []
    list(engine.stream("a red circle moving left", watch=records.append))
    assert engine.parts.image.names == ("mps", "imagereward")
    assert all(c.scores.fused == c.scores.fused for record in records for c in record.candidates)


def test_the_command_line_takes_rewards_weights_and_a_stride():
    words = [
        "x",
        "--reward-stride",
        "3",
        "--set",
        "reward.image=mps*0.5+stub",
        "--set",
        "reward.weights=there",
    ]
    reward = build_settings(parse(words)).reward
    assert (reward.stride, reward.image, reward.weights) == (3, "mps*0.5+stub", "there")
    with pytest.raises(ValueError, match=r"reward.stride: want at least 1"):
        build_settings(parse(["x", "--reward-stride", "0"]))


@pytest.mark.parametrize("name", QWEN)
def test_the_embedded_rewards_have_no_random_form_and_read_folders_too(name, tmp_path):
    family = FAMILY[name]
    with pytest.raises(ValueError, match=f"reward '{family}': has no random form, .* to ''"):
        load_reward(family, weights="random")
    with pytest.raises(ValueError, match=f"{family}/model.json: no such file"):
        load_reward(family, weights=str(tmp_path))
    assert load_reward("stub", weights="random").score(clip()).shape == (4,)


@pytest.mark.parametrize("name", QWEN)
def test_what_was_prepared_can_be_asked_again(folder, name):
    """``score`` is prepare, then forward, then arithmetic: what a graph would replay is the whole network."""
    reward = load_reward(name, "cpu", str(folder))
    questions = reward.prepare(clip())
    first, again = reward.forward(questions), reward.forward(questions)
    assert torch.equal(first, again)
    parts = first.view(4, -1)
    want = parts.mean(1) if name == "hpsv3" else parts.sum(1)
    assert torch.equal(reward.score(clip()), want)


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 2714])
def test_tables_of_any_length_are_one_table(length):
    """Prompts of many lengths share memory, and what a graph captured stays where it is."""
    place = 8, 1e6, torch.float32, torch.device("cpu")
    turn, again = (token_turns(length, *place) for _ in range(2))
    angles = torch.arange(length)[:, None] / 1e6 ** (torch.arange(4) / 4)
    assert torch.allclose(turn.cos, torch.cat((angles.cos(), angles.cos()), 1), atol=1e-6)
    assert torch.allclose(turn.sin, torch.cat((-angles.sin(), angles.sin()), 1), atol=1e-6)
    assert turn.cos.data_ptr() == again.cos.data_ptr()
    shared = token_turns(1, *place).cos.data_ptr() == turn.cos.data_ptr()
    assert shared == (length <= 1024)


@pytest.mark.gpu
@pytest.mark.parametrize("name", QWEN)
def test_a_gpu_scores_as_the_cpu_does(folder, name):
    want = load_reward(name, "cpu", str(folder)).score(clip())
    got = load_reward(name, "cuda", str(folder)).score(clip("cuda"))
    assert got.device.type == "cuda" and torch.allclose(got.cpu(), want, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", QWEN)
def test_scoring_never_waits_for_the_gpu(folder, name):
    reward, some = load_reward(name, "cuda", str(folder), torch.bfloat16), clip("cuda", torch.bfloat16)  # fmt: skip
    reward.score(some)  # warm: the prompt's ids and the tables go up
    torch.cuda.set_sync_debug_mode("error")
    try:
        reward.score(replace(some, frames=some.frames.flip(0)))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("name", QWEN)
def test_a_captured_forward_scores_new_patches(folder, name):
    reward = load_reward(name, "cuda", str(folder), torch.bfloat16)
    questions = reward.prepare(clip("cuda"))
    other = reward.prepare(replace(clip("cuda"), frames=clip("cuda").frames.flip(0)))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        reward.forward(questions)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = reward.forward(questions)
    questions.patches.copy_(other.patches)
    graph.replay()
    assert torch.allclose(scores, reward.forward(other), atol=1e-2)
