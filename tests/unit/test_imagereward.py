"""Rewards that see squares of pixels: against Pillow, their words, batches, folders, conversions and sizes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime.rewards import PUBLISHED, load_reward, published_imagereward
from runtime.rewards.blip import BlipConfig
from runtime.rewards.pictures import middle, squares
from runtime.shards import FolderWriter, verify
from runtime.types import Clip
from tests.picture_folder import BLIP_SIZES, bert_words, small_net, write_pictures
from tests.tiny import generator_of

Image = pytest.importorskip("PIL.Image")
NAMES = ("imagereward", "clip-h", "mps")
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        write_pictures(root, name)
    return root


def clip(B=3, T=2, H=40, W=64):
    return Clip(torch.rand(B, T, 3, H, W, generator=generator_of(7)), "a red circle", 16, 0)


def scene(H, W):
    """Edges, a ramp and noise: what a resize may get wrong."""
    y, x = np.mgrid[0:H, 0:W]
    ramp = np.stack((255 * x / W, 255 * y / H, 127 + 120 * np.sin(x * y / 97)), -1)
    ramp[H // 3 : H // 2, W // 4 : W // 2] = (255, 0, 30)
    noise = np.random.default_rng(0).normal(0, 20, ramp.shape)
    return np.clip(ramp + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("H", "W"), [(480, 832), (96, 96), (101, 57), (33, 70)])
@pytest.mark.parametrize("halves", ["even", "down"])
def test_squares_are_those_of_pillow_to_the_last_bit(H, W, halves):
    """Resize of the shorter side and middle crop in Pillow, then the published float32 arithmetic."""
    side, picture = 56, scene(H, W)
    short = min(H, W)
    tall, wide = int(side * H / short), int(side * W / short)
    small = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = (middle(length, side, halves) for length in (tall, wide))
    small = small[top : top + side, left : left + side]
    want = (
        torch.from_numpy(small.copy()).float() / 255 - torch.from_numpy(MEAN)
    ) / torch.from_numpy(STD)
    frames = torch.from_numpy(picture).permute(2, 0, 1)[None]
    for given in (frames, frames.float() / 255, (frames.double() / 255)):
        got = squares(given, side, torch.float32, halves)[0].permute(1, 2, 0)
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("length", "even", "down"), [(388, 82, 82), (56, 0, 0), (57, 0, 0), (59, 2, 1), (61, 2, 2)]
)
def test_half_a_pixel_of_a_crop_goes_where_the_publishers_put_it(length, even, down):
    side = 224 if length > 224 else 56
    assert (middle(length, side, "even"), middle(length, side, "down")) == (even, down)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_scores_as_its_clips_do_alone(folder, name):
    reward = load_reward(name, "cpu", str(folder))
    whole = reward.score(clip())
    alone = [reward.score(replace(clip(), frames=frames[None])) for frames in clip().frames]
    assert whole.shape == (3,) and whole.dtype == torch.float32 and whole.std() > 1e-4
    assert torch.allclose(whole, torch.cat(alone), rtol=1e-4, atol=1e-5)
    reward.rows_per_forward = 4
    assert torch.allclose(whole, reward.score(clip()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_is_the_mean_of_its_frames_and_the_prompt_matters(folder, name):
    reward = load_reward(name, "cpu", str(folder))
    frames = clip().frames
    each = reward.score(replace(clip(), frames=frames.flatten(0, 1)[:, None])).view(3, 2)
    assert torch.allclose(reward.score(clip()), each.mean(1), atol=1e-5)
    assert not torch.allclose(
        reward.score(clip()), reward.score(replace(clip(), prompt="two bluish squares"))
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_pixel_that_is_not_finite_spoils_its_own_clip_alone(folder, name):
    reward = load_reward(name, "cpu", str(folder))
    frames = clip().frames.clone()
    frames[1, 1, 0, 5, 5] = float("nan")
    got, want = reward.score(replace(clip(), frames=frames)), reward.score(clip())
    assert got.isnan().tolist() == [False, True, False]
    assert torch.allclose(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("name", NAMES)
def test_what_was_prepared_can_be_asked_again(folder, name):
    reward = load_reward(name, "cpu", str(folder))
    sight = reward.prepare(clip())
    first = reward.forward(sight)
    assert torch.equal(first, reward.forward(sight))
    assert torch.equal(first.view(3, 2).mean(1), reward.score(clip()))


def test_words_are_cut_padded_and_never_marks(folder):
    """A prompt that spells [SEP] says five signs, and one that is too long still ends in its mark."""
    script = load_reward("imagereward", "cpu", str(folder)).script
    marks = {mark: bert_words().token_to_id(mark) for mark in ("[PAD]", "[CLS]", "[SEP]")}
    short, long, spelt = (script.ids(text) for text in ("ab", "x" * 99, "[SEP]"))
    assert all(len(row.ids) == len(row.mask) == 35 for row in (short, long, spelt))
    assert short.ids[0] == marks["[CLS]"] and short.ids[3:5] == (marks["[SEP]"], marks["[PAD]"])
    assert sum(short.mask) == 4 and sum(long.mask) == 35 and long.ids[-1] == marks["[SEP]"]
    assert spelt.ids.count(marks["[SEP]"]) == 1 and sum(spelt.mask) == 7


def test_a_tokeniser_that_puts_no_marks_is_refused(tmp_path):
    write_pictures(tmp_path, "imagereward")
    path = tmp_path / "imagereward" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    with pytest.raises(ValueError, match=r"tokenizer.json: want one mark before and one behind"):
        load_reward("imagereward", "cpu", str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name, file):
    write_pictures(tmp_path, name)
    (tmp_path / name / file).unlink()
    with pytest.raises(ValueError, match=f"{name}/{file}: no such file"):
        load_reward(name, "cpu", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("imagereward", {"hidden_size": 25}, "hidden_size: want a multiple of num_attention_heads"),
        ("imagereward", {"vision_layers": True}, "vision_layers: want a whole number"),
        ("imagereward", {"vocab_size": 100}, "belongs to other weights|as a token below 100"),
        ("clip-h", {"text_config": 3}, "text_config: want an object, got int"),
        ("clip-h", {"projection_dim": 0}, "projection_dim: want a whole number of 1 to 65536"),
        ("mps", {"mask_threshold": 1.5}, r"mask_threshold: want a number in \[0, 1\)"),
        ("mps", {"cross_layers": 3}, "missing cross_model.layers.2"),
    ],
)
def test_a_wrong_config_is_told_in_a_sentence(tmp_path, name, changes, sentence):
    write_pictures(tmp_path, name, **changes)
    with pytest.raises(ValueError, match=sentence):
        load_reward(name, "cpu", str(tmp_path))


def test_random_weights_are_the_published_size():
    """Counted on the meta device: 446 M, 986 M and 1,105 M, as their publishers' sizes make them."""
    from runtime.rewards.blip import ImageRewardNet
    from runtime.rewards.clip import VIT_H_14, ClipTowers
    from runtime.rewards.mps import CrossConfig, MPSNet

    with torch.device("meta"):
        nets = {
            "imagereward": ImageRewardNet(BlipConfig()),
            "clip-h": ClipTowers(VIT_H_14),
            "mps": MPSNet(VIT_H_14, CrossConfig()),
        }
    for name, net in nets.items():
        assert sum(value.numel() for value in net.parameters()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_that_torch_counts(folder, name):
    """Attention as plain products, for torch does not count its own kernels of the CPU; the text was read before."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    reward = load_reward(name, "cpu", str(folder))
    sight = reward.prepare(clip(B=1, T=1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        reward.forward(sight)
    assert reward.flops(1, 40, 64, 16) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def write_source(source, extra=()):
    source.mkdir()
    net = small_net("imagereward")
    unused = {
        "blip.vision_proj.weight": torch.zeros(2, 3),
        "blip.text_encoder.embeddings.position_ids": torch.arange(40).expand(1, -1),
    }
    torch.save({**net.state_dict(), **unused, **dict(extra)}, source / "ImageReward.pt")
    (source / "med_config.json").write_text(json.dumps(BLIP_SIZES))
    bert_words().save(str(source / "tokenizer.json"))
    return net


def test_the_published_checkpoint_becomes_a_folder_that_loads(tmp_path, folder):
    write_source(tmp_path / "source")
    with FolderWriter(tmp_path / "home" / "imagereward") as out:
        published_imagereward.convert(tmp_path / "source", out)
    verify(tmp_path / "home" / "imagereward")
    got = load_reward("imagereward", "cpu", str(tmp_path / "home")).score(clip())
    want = load_reward("imagereward", "cpu", str(folder)).score(clip())
    assert torch.allclose(got, want, rtol=1e-5)  # mapped elsewhere, the products may sum otherwise


def test_a_checkpoint_of_something_else_is_refused_and_leaves_nothing(tmp_path):
    write_source(tmp_path / "source", [("blip.other.weight", torch.zeros(1))])
    with (
        pytest.raises(ValueError, match=r"ImageReward\.pt: .*unknown blip\.other\.weight"),
        FolderWriter(tmp_path / "out") as out,
    ):
        published_imagereward.convert(tmp_path / "source", out)
    assert not (tmp_path / "out").exists()


def test_weights_are_found_where_they_are_kept(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("STREAM_T1_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match="python -m runtime.fetch imagereward.*runtime.convert"):
        load_reward("imagereward")
    shutil.copytree(folder / "imagereward", tmp_path / "imagereward")
    assert load_reward("imagereward").score(clip()).shape == (3,)


def test_a_half_precision_file_and_network_score_nearly_the_same(folder):
    want = load_reward("imagereward", "cpu", str(folder)).score(clip())
    narrow = load_reward("imagereward", "cpu", str(folder), torch.bfloat16)
    assert narrow.dtype == torch.bfloat16 and narrow.net.mlp.layers[0].weight.dtype == torch.float32
    assert (narrow.score(clip()) - want).abs().max() < 0.15 * want.std() + 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_scores_as_the_cpu_does_and_never_waits(folder, name):
    want = load_reward(name, "cpu", str(folder)).score(clip())
    reward = load_reward(name, "cuda", str(folder))
    some = replace(clip(), frames=clip().frames.cuda())
    got = reward.score(some)
    assert torch.allclose(got.cpu(), want, atol=1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        reward.score(replace(some, frames=some.frames.flip(0)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
