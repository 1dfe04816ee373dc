"""HPSv3 on a small random checkpoint: what it reads, how it scores, what it says of wrong files, and its full size on paper."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from runtime.kernels.reward_patches import PatchFormat, reward_patches_reference
from runtime.rewards import load_reward
from runtime.rewards.hpsv3 import KIND, HPSv3
from runtime.rewards.qwen2vl import Qwen2VL, Qwen2VLConfig, Words
from runtime.rewards.qwen2vl_judge import Judge
from runtime.rewards.qwen2vl_vision import PATCH_VALUES
from runtime.rewards.qwen2vl_words import BEFORE, Filler
from runtime.types import Clip
from tests.reward_folder import RUBRICS, byte_tokeniser, write_folder
from tests.tiny import generator_of

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("weights"), "hpsv3")


@pytest.fixture(scope="module")
def reward(folder) -> HPSv3:
    return load_reward("hpsv3", "cpu", str(folder))


def clip(B=3, T=4, prompt=PROMPT, dtype=torch.float32):
    frames = torch.rand(B, T, 3, 60, 90, generator=generator_of(7))
    return Clip(frames.to(dtype), prompt, 16, 0)


@torch.no_grad()
def test_a_score_is_the_mean_of_mu_over_frames_asked_one_by_one_with_the_whole_chat(reward):
    """By hand: every frame alone, the chat with what follows the read-out token, no batch, no cut."""
    net, tokeniser, some = reward.judge.net, byte_tokeniser(KIND.marks), clip()
    spoken = (
        f"<|vision_end|>{RUBRICS['hpsv3'].format(prompt=PROMPT)}<|im_end|>\n<|im_start|>assistant\n"
    )
    before, after = (torch.tensor(tokeniser.encode(text).ids) for text in (BEFORE, spoken))
    mark = tokeniser.token_to_id("<|Reward|>")
    at = torch.tensor([index for index, token in enumerate(after) if token == mark])
    form = PatchFormat(56, 84, dtype=torch.float32)  # 60 x 90 within the bounds
    want = []
    for frame in some.frames.flatten(0, 1):
        patches = reward_patches_reference(frame[None], form)[None, None]
        want.append(net(patches, (4, 6), Words(before, after, at))[0, 0, 0])
    want = torch.stack(want).view(3, 4).mean(1)
    got = reward.score(some)
    assert got.shape == (3,) and got.dtype == torch.float32
    assert torch.allclose(got, want, atol=1e-5)
    assert want.std() > 1e-3  # a constant would pass all the same


def test_a_known_hidden_state_scores_as_worked_out_by_hand(reward, monkeypatch):
    """Width 32: the first layer passes channel 0 and its negative on, the second doubles, the third adds one."""
    first, _, _, second, _, third = reward.judge.net.rm_head
    for layer in (first, second, third):
        for values in layer.parameters():
            monkeypatch.setattr(values, "data", torch.zeros_like(values))
    first.weight.data[0, 0], first.weight.data[1, 0] = 1.0, -1.0
    second.weight.data[0, 0], second.weight.data[1, 1], second.bias.data[1] = 2.0, 3.0, -1.0
    third.weight.data[0, 0], third.weight.data[0, 1], third.bias.data[0] = 1.0, -1.0, 1.0
    third.weight.data[1], third.bias.data[1] = 7.0, 7.0  # sigma, which nobody reads
    hidden = torch.zeros(4, 1, 32)
    hidden[:, 0, 0] = torch.tensor([0.5, -0.25, -2.0, 0.0])
    monkeypatch.setattr(reward.judge.net.model, "forward", lambda x, at: hidden)
    # relu(2 h) - relu(3 relu(-h) - 1) + 1
    want = [2.0, 1.0, 1.0 - 5.0, 1.0]
    assert reward.score(clip(2, 2)).tolist() == [sum(want[:2]) / 2, sum(want[2:]) / 2]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_score_does_not_depend_on_how_the_batch_is_cut(reward, rows):
    some = clip()
    again = HPSv3(reward.judge, rows).score(some)
    assert torch.allclose(again, reward.score(some), atol=1e-5)
    alone = torch.cat([reward.score(replace(some, frames=row[None])) for row in some.frames])
    assert torch.allclose(again, alone, atol=1e-5)
    assert torch.equal(HPSv3(reward.judge, rows).score(some), again)


@pytest.mark.parametrize(("rows", "batches"), [(0, [12]), (5, [5, 5, 2]), (16, [12])])
def test_no_forward_pass_takes_more_rows_than_it_may(reward, monkeypatch, rows, batches):
    seen = []
    visual = reward.judge.net.visual
    look = visual.forward
    monkeypatch.setattr(visual, "forward", lambda x, grid: seen.append(len(x)) or look(x, grid))
    HPSv3(reward.judge, rows).score(clip())
    assert seen == batches


@pytest.mark.parametrize(
    ("size", "want"),
    [((480, 832), (336, 588)), ((96, 96), (448, 448)), ((720, 1280), (336, 588))],
)
def test_frames_of_any_size_become_about_200_thousand_pixels(size, want):
    assert KIND.pixels.size(*size) == want


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_clip_with_a_broken_pixel_is_not_judged_and_its_siblings_are(reward, bad):
    some = clip()
    want = reward.score(some)
    some.frames[1, 2, 0, 5, 5] = bad
    got = reward.score(some)
    assert got[1].isnan() and torch.equal(got[[0, 2]], want[[0, 2]])


def test_the_prompt_and_the_picture_matter_and_the_frame_rate_does_not(reward):
    some = clip()
    base = reward.score(some)
    assert (reward.score(clip(prompt="a blue square")) - base).abs().min() > 1e-4
    assert (reward.score(replace(some, frames=1 - some.frames)) - base).abs().min() > 1e-4
    assert torch.equal(reward.score(replace(some, fps=8, chunk=5)), base)
    assert torch.equal(reward.score(replace(some, frames=some.frames.double())), base)


def test_a_prompt_is_sent_to_the_device_once(reward):
    assert reward.judge.words("one prompt") is reward.judge.words("one prompt")


def test_bfloat16_is_the_backbone_s_and_the_head_stays_in_float32(folder, reward):
    narrow = load_reward("hpsv3", "cpu", str(folder), torch.bfloat16)
    dtypes = {name.split(".")[0]: value.dtype for name, value in narrow.judge.net.named_parameters()}  # fmt: skip
    assert dtypes == {"visual": torch.bfloat16, "model": torch.bfloat16, "rm_head": torch.float32}
    assert torch.allclose(narrow.score(clip()), reward.score(clip()), atol=0.2)
    head = sum(value.numel() for value in narrow.judge.net.rm_head.parameters())
    assert narrow.nbytes == reward.nbytes // 2 + 2 * head


def test_the_head_has_the_published_names_and_sizes():
    shapes = {name: list(value.shape) for name, value in KIND.head(3584, {}).state_dict().items()}
    assert shapes == {
        "0.weight": [1024, 3584], "0.bias": [1024], "3.weight": [16, 1024], "3.bias": [16],
        "5.weight": [2, 16], "5.bias": [2],
    }  # fmt: skip


def full_size(kind):
    with torch.device("meta"):
        net = Qwen2VL(kind.config, kind.head(kind.config.text.hidden_size, {})).to(torch.bfloat16)
    return net


@torch.no_grad()
def test_at_full_size_nine_frames_are_910_tokens_each_and_about_120_teraflops():
    """On the meta device: shapes and counts of the real thing, without its 16.6 GB."""
    net = full_size(KIND)
    reward = HPSv3(Judge(KIND, net, Filler(KIND.filler_tokens, 1, 151_658), KIND.pixels))
    assert KIND.pixels.size(480, 832) == (336, 588)
    words = reward.judge.words(PROMPT)
    assert len(words.before) + len(words.after) + 252 == 910
    patches = torch.empty(9, 1, 1008, PATCH_VALUES, dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counter:
        assert net(patches, (24, 42), words).shape == (9, 1, 2)
    head = 2 * (3584 * 1024 + 1024 * 16 + 16 * 2)
    unseen = 27 * 2 * 3584 * 910 * 909  # the upper triangle, counted in all layers but the last
    want = reward.flops(9, 480, 832, 16)
    assert counter.get_total_flops() == want + 9 * (head + unseen)
    assert want == pytest.approx(120e12, rel=0.02)
    assert net.visual.blocks[31].mlp.fc1.weight.shape == (5120, 1280)
    assert reward.nbytes == pytest.approx(15.5e9, rel=0.01)


def test_random_weights_score_and_do_so_again(monkeypatch):
    """The path of reward.weights = "random", at a size that a test can afford."""
    text = replace(KIND.config.text, hidden_size=56, intermediate_size=8, num_hidden_layers=2)
    vision = replace(KIND.config.vision, depth=1, embed_dim=64)
    small = replace(KIND, config=Qwen2VLConfig(text, vision), filler_tokens=128)
    monkeypatch.setattr(HPSv3, "kind", small)
    one, other = (load_reward("hpsv3", weights="random", dtype=torch.bfloat16) for _ in range(2))
    some = clip(2, 1)
    assert one.score(some).isfinite().all()
    assert torch.equal(one.score(some), other.score(some))
    assert one.judge.net.dtype == torch.bfloat16
    assert {value.dtype for value in one.judge.net.rm_head.parameters()} == {torch.float32}


@pytest.mark.gpu
def test_at_full_size_sixteen_frames_at_a_time_bound_the_memory():
    """Four candidates of a chunk at 832x480, random weights: 15.5 GB of them, and what a forward pass adds."""
    reward = load_reward("hpsv3", "cuda", "random", torch.bfloat16)
    frames = torch.rand(4, 12, 3, 480, 832, device="cuda", dtype=torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    scores = reward.score(Clip(frames, PROMPT, 16, 0))
    assert scores.shape == (4,) and scores.isfinite().all()
    assert reward.nbytes <= before < reward.nbytes + 1e9
    assert torch.cuda.max_memory_allocated() - before < 4e9


def test_without_weights_it_says_where_they_come_from(tmp_path):
    with pytest.raises(ValueError, match=r"set reward.weights to a folder .*holds hpsv3/.*'random'"):  # fmt: skip
        load_reward("hpsv3")
    with pytest.raises(ValueError, match=r"reward.weights: want a folder that holds hpsv3/.*got"):
        load_reward("hpsv3", "cpu", str(tmp_path))
    (tmp_path / "hpsv3").mkdir()
    with pytest.raises(ValueError, match=r"hpsv3/config.json: no such file"):
        load_reward("hpsv3", "cpu", str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "config.json: hidden_size: want a whole number"),
        ({"hidden_size": 34}, "hidden_size: want a multiple of 2 x 4 heads, got 34"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: want a divisor of 4 heads, got 3"),
        ({"vision_config": []}, "missing|mis-shaped"),
        ({"vision_config": 3}, "vision_config: want an object, got int"),
        ({"vision_config": {"embed_dim": 30}}, "vision_config.embed_dim: want a multiple of 4"),
        ({"rope_theta": -1}, "rope_theta: want a number above 0, got -1"),
        ({"max_pixels": 1}, "min_pixels, max_pixels: want 1 to max_pixels"),
        ({"max_pixels": "big"}, "min_pixels, max_pixels: want whole numbers"),
        ({"intermediate_size": 48}, r"model.safetensors: .*mis-shaped model.layers.0.mlp"),
        ({"num_hidden_layers": 1}, r"model.safetensors: .*unknown model.layers.1"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_told(folder, tmp_path, changes, message):
    mine = tmp_path / "hpsv3"
    mine.mkdir()
    for file in (folder / "hpsv3").iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    table = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**table, **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        load_reward("hpsv3", "cpu", str(tmp_path))
    assert str(mine) in str(caught.value)


def test_a_config_without_a_size_and_a_file_with_a_vocabulary_head(tmp_path):
    write_folder(tmp_path, "hpsv3")
    weights = tmp_path / "hpsv3" / "model.safetensors"
    save_file({**load_file(weights), "lm_head.weight": torch.ones(3, 3)}, weights)
    load_reward("hpsv3", "cpu", str(tmp_path))
    config = tmp_path / "hpsv3" / "config.json"
    table = json.loads(config.read_text())
    del table["hidden_size"], table["vocab_size"]
    config.write_text(json.dumps(table))
    with pytest.raises(ValueError, match="config.json: missing hidden_size, vocab_size"):
        load_reward("hpsv3", "cpu", str(tmp_path))


@pytest.mark.parametrize("shape", [(4, 3, 56, 56), (1, 0, 3, 56, 56), (1, 4, 1, 56, 56)], ids=str)
def test_frames_of_another_shape_are_told(reward, shape):
    with pytest.raises(ValueError, match=r"clip.frames: want \[B, T, 3, H, W\], none of them 0"):
        reward.score(Clip(torch.rand(shape), PROMPT, 16, 0))
