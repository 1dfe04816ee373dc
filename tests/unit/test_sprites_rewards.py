"""The rewards rank what they should, the defects they learn from are what they claim, and wrong files are told."""

import json
import math
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.bench.sprites import train_rewards
from runtime.bench.sprites.corrupt import MOVEMENT, PICTURE, WORDS, Defects, corrupt
from runtime.bench.sprites.reward_batches import draw_defects, video_batch
from runtime.bench.sprites.reward_report import ranks, spearman
from runtime.bench.sprites.world import Caption, Scene, held_out_captions, render
from runtime.rewards import PUBLISHED, REWARDS, load_reward
from runtime.rewards.sprites_image import SpritesImageReward
from runtime.rewards.sprites_net import WEIGHTS, known_words
from runtime.rewards.sprites_video import SpritesVideoReward, seen_frames
from runtime.rewards.stub import Stub
from runtime.types import Clip

CAPTION = Caption("cross", "cyan", "moving right", "quickly", "black")
SCENE = Scene(CAPTION, 19.5, (30.0, 48.0))


@pytest.fixture(scope="module")
def image():
    return SpritesImageReward.load()


@pytest.fixture(scope="module")
def video():
    return SpritesVideoReward.load()


def clip(frames, prompt=CAPTION.text):
    return Clip(frames if frames.ndim == 5 else frames[None], prompt, 16, 0)


def damaged(length, **defects):
    return corrupt(SCENE, Defects(**defects), length, seed=3).frames


def test_a_clip_without_defects_is_the_world_itself():
    sample = corrupt(SCENE, Defects(), 12, seed=0)
    assert torch.allclose(sample.frames, render(SCENE, 12), atol=1e-6)
    assert sample.visual == sample.motion == sample.aligned == 1
    assert (sample.quality == 1).all() and (sample.alignment == 1).all()
    assert sample.caption == CAPTION
    assert sample.truth.sum() == 5


def test_the_same_seed_draws_the_same_clip():
    defects = draw_defects(random.Random(4))
    first, second = (corrupt(SCENE, defects, 21, seed=9) for _ in range(2))
    assert torch.equal(first.frames, second.frames) and first.caption == second.caption
    assert not torch.equal(first.frames, corrupt(SCENE, Defects(jitter=1), 21, seed=10).frames)


def test_some_frames_of_a_clip_are_the_frames_of_the_clip():
    defects = Defects(blur=0.4, jump=0.7, jitter=0.5, ink_drift=0.8, onset=0.2)
    whole = corrupt(SCENE, defects, 30, seed=2)
    some = corrupt(SCENE, defects, 30, seed=2, frames=(3, 17, 29))
    assert torch.allclose(some.frames, whole.frames[[3, 17, 29]], atol=1e-5)
    assert torch.equal(some.quality, whole.quality[[3, 17, 29]])
    assert some.visual == whole.visual and some.motion == whole.motion


@pytest.mark.parametrize("name", [*PICTURE, *MOVEMENT])
def test_a_defect_is_visible_and_lowers_its_own_target(name):
    weak, strong = (corrupt(SCENE, Defects(**{name: s}), 33, seed=5) for s in (0.3, 0.9))
    clean = render(SCENE, 33)
    assert (weak.frames - clean).abs().mean() > 0
    own = "visual" if name in PICTURE else "motion"
    other = "motion" if name in PICTURE else "visual"
    assert 1 > getattr(weak, own) > getattr(strong, own) > 0
    assert getattr(strong, other) == 1 or name == "fade"  # nothing to see, nothing that moves


def test_wrong_words_lower_alignment_by_their_share():
    sample = corrupt(SCENE, Defects(wrong=("colour", "motion")), 9, seed=1)
    assert sample.caption.colour != "cyan" and sample.caption.motion != "moving right"
    assert sample.aligned == pytest.approx(3 / 5)
    assert sample.alignment.tolist() == pytest.approx([2 / 3] * 9)


def test_a_missing_object_makes_only_the_background_true():
    sample = corrupt(SCENE, Defects(fade=1), 9, seed=1)
    assert sample.aligned == pytest.approx(1 / 5)
    assert sample.truth.nonzero().flatten().tolist() == [WORDS.index("black")]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"blur": 1.5}, r"defects.blur: want a severity in \[0, 1\], got 1.5"),
        ({"wrong": ("size",)}, "defects.wrong: want names among shape, .*got .'size'"),
    ],
)
def test_defects_say_what_they_want(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Defects(**wrong)
    with pytest.raises(ValueError, match=r"frames: want indices in \[0, 9\)"):
        corrupt(SCENE, Defects(), 9, seed=0, frames=(9,))


def test_known_words_finds_phrases_and_ignores_the_rest():
    found = [WORDS[i] for i in known_words("A RED blob moving right, not orangeish, RED", WORDS)]
    assert found == ["red", "moving right"]
    assert known_words("nothing of this world", WORDS) == ()


@pytest.mark.parametrize("length", [1, 9, 12, 33])
def test_scores_have_one_row_per_clip(image, video, length):
    frames = render(SCENE, length)
    batch = torch.stack((frames, 1 - frames, frames.flip(0)))
    for reward, parts in ((image, 2), (video, 3)):
        scores, detail = reward.score(clip(batch)), reward.detail(clip(batch))
        assert scores.shape == (3,) and scores.dtype == torch.float32
        assert detail.shape == (3, parts) and detail.isfinite().all()
        alone = torch.cat([reward.score(clip(row)) for row in batch])
        assert torch.allclose(scores, alone, atol=1e-5)  # siblings do not see one another
    assert torch.allclose(video.score(clip(batch)), video.detail(clip(batch)).sum(1))
    assert torch.allclose(image.score(clip(batch)), image.detail(clip(batch)).mean(1))


def test_rewards_take_other_sizes_and_dtypes(image, video):
    frames = render(SCENE, 9)
    larger = torch.nn.functional.interpolate(frames, scale_factor=2, mode="bilinear")
    for reward in (image, video):
        base = reward.score(clip(frames))
        assert torch.allclose(reward.score(clip(frames.bfloat16())), base, atol=0.05)
        assert torch.allclose(reward.score(clip(larger)), base, atol=0.15)
        assert reward.score(clip(frames, "nothing it knows")).isfinite().all()
        with pytest.raises(ValueError, match=r"clip.frames: want \[B, T, 3, H, W\]"):
            reward.score(Clip(frames, "a", 16, 0))


def test_the_newest_frame_is_always_seen():
    assert list(seen_frames(9)) == [0, 2, 4, 6, 8]
    assert list(seen_frames(12)) == [1, 3, 5, 7, 9, 11]
    assert list(seen_frames(1)) == [0]


def test_the_image_reward_prefers_clean_pictures_and_true_captions(image):
    clean = image.detail(clip(render(SCENE, 12)))[0]
    for defect in ("blur", "noise", "blocks", "fade", "crumble"):
        mild, bad = (image.detail(clip(damaged(12, **{defect: s})))[0, 0] for s in (0.45, 0.9))
        assert clean[0] > mild > bad, defect
    for word, lie in (("cyan", "red"), ("cross", "circle"), ("black", "gray")):
        lied = image.detail(clip(render(SCENE, 12), CAPTION.text.replace(word, lie)))[0, 1]
        assert clean[1] - lied > 0.2, lie


def test_the_video_reward_prefers_clean_clips_and_true_captions(video):
    clean = video.detail(clip(render(SCENE, 81)))[0]
    for defect in ("blur", "noise", "blocks", "fade", "crumble"):
        assert video.detail(clip(damaged(81, **{defect: 0.7})))[0, 0] < clean[0] - 0.1, defect
    for defect in ("morph", "jitter", "jump", "stall", "ink_drift"):
        assert video.detail(clip(damaged(81, **{defect: 0.8})))[0, 1] < clean[1] - 0.1, defect
    for word, lie in (("cyan", "red"), ("cross", "ring"), ("moving right", "moving up")):
        lied = video.detail(clip(render(SCENE, 81), CAPTION.text.replace(word, lie)))[0, 2]
        assert clean[2] - lied > 0.1, lie


def test_ranks_agree_with_the_truth_on_held_out_captions(video):
    batch = video_batch(held_out_captions(64, seed=2), random.Random(0), clips=48, length=57)
    got = torch.cat([
        torch.stack(reading[:2], 1)
        for part in batch.frames.split(8)
        for reading in [video.net(part)]
    ])  # fmt: skip
    assert spearman(got[:, 0], batch.qualities[:, 0]) > 0.75
    assert spearman(got[:, 1], batch.qualities[:, 1]) > 0.7


@pytest.mark.parametrize("which", ["image", "video"])
def test_weights_are_small_and_their_facts_are_beside_them(which):
    path = WEIGHTS / f"{which}.safetensors"
    assert path.stat().st_size < 1.5e6
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["words"] == list(WORDS[: len(facts["words"])])
    floors = (
        {"quality": 0.8, "alignment": 0.8, "decoded, quality": 0.65, "decoded, alignment": 0.85}
        if which == "image"
        else {"VQ": 0.8, "MQ": 0.7, "TA": 0.8, "decoded, VQ": 0.65, "decoded, MQ": 0.7}
    )
    for name, floor in floors.items():
        assert facts["held_out_spearman"][name] > floor, name


@pytest.mark.parametrize("reward", [SpritesImageReward, SpritesVideoReward])
def test_a_wrong_file_is_told_by_name_and_key(tmp_path, reward):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(ValueError, match=r"mine\.json: no such file"):
        reward.load(path=path)
    good = WEIGHTS / ("image.safetensors" if reward is SpritesImageReward else "video.safetensors")
    tensors = load_file(good)
    facts = path.with_suffix(".json")
    facts.write_text("{}")
    with pytest.raises(ValueError, match=r"mine\.json: key 'words': want a list"):
        reward.load(path=path)
    facts.write_text(good.with_suffix(".json").read_text())
    with pytest.raises(ValueError, match=r"mine\.safetensors: no such file"):
        reward.load(path=path)
    save_file({name: value.half() for name, value in tensors.items()}, path)
    assert {value.dtype for value in reward.load(path=path).net.parameters()} == {torch.float32}
    short = {key: value for key, value in tensors.items() if key != "hidden.bias"}
    for broken, sentence in (
        (short, "missing hidden.bias"),
        (short | {"hidden.bias": torch.zeros(3)}, r"hidden.bias \(want \[\d+\], got \[3\]\)"),
        (tensors | {"zzz": torch.zeros(3)}, "unknown zzz"),
    ):
        save_file(broken, path)
        with pytest.raises(ValueError, match=sentence):
            reward.load(path=path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"mine\.safetensors: not a whole safetensors file"):
        reward.load(path=path)


def test_every_row_of_the_table_that_has_weights_loads_and_scores():
    for name in REWARDS.keys() - set(PUBLISHED):
        reward = load_reward(name)
        assert reward.horizon >= 1
        assert reward.score(clip(render(SCENE, 9))).shape == (1,)
    with pytest.raises(
        ValueError, match="known: .*hpsv3, .*stub, .*; did you mean 'sprites-video'"
    ):
        load_reward("sprite-video")


def test_the_stub_is_what_its_formula_says():
    frames = torch.zeros(2, 3, 3, 4, 4)
    frames[0] = 0.5
    frames[1, 1] = 1.0
    scores = Stub(horizon=4).score(clip(frames))
    assert scores.tolist() == pytest.approx([0.5, 1 / 3 - 1.0])
    assert Stub().score(clip(frames[:, :1])).tolist() == pytest.approx([0.5, 0.0])
    with pytest.raises(ValueError, match="horizon: want at least 1 chunk, got 0"):
        Stub(horizon=0)


def test_rank_correlation_shares_ties():
    assert ranks(torch.tensor([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]
    values = torch.tensor([0.1, 0.4, 0.2, 0.9])
    assert spearman(values, values.exp()) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert spearman(values, torch.ones(4)) == 0


@pytest.mark.parametrize("which", ["image", "video"])
def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch, which):
    draw, drawn = getattr(train_rewards, f"{which}_batch"), []

    def small(captions, rng):
        drawn.append(1)
        if len(drawn) == 7:  # the second run, third step
            raise KeyboardInterrupt
        return draw(captions, rng, 2, *((9,) if which == "video" else ()))

    monkeypatch.setattr(train_rewards, f"{which}_batch", small)
    monkeypatch.setattr(train_rewards, "evaluate", lambda net, words, shelf: {})
    monkeypatch.setattr(train_rewards, "SAVE_EVERY", 2)

    def run(out, resume=False):
        out.mkdir(exist_ok=True)
        train_rewards.train(train_rewards.Run(which, out, 4, 0, resume, "cpu", 1e-3))
        return load_file(out / f"{which}.safetensors")

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part")
    again = run(tmp_path / "part", resume=True)
    assert len(drawn) == 9  # steps 0 and 1 were not drawn again
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert math.isfinite(sum(value.double().sum().item() for value in whole.values()))
