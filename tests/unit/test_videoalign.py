"""VideoAlign on a small random checkpoint: which frames it sees, how it scores, and its full size on paper; both in an engine."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.kernels.reward_patches import PatchFormat, reward_patches_reference
from runtime.rewards import load_reward
from runtime.rewards.qwen2vl import Qwen2VL
from runtime.rewards.qwen2vl_judge import Judge
from runtime.rewards.qwen2vl_vision import PATCH_VALUES
from runtime.rewards.qwen2vl_words import Filler
from runtime.rewards.videoalign import KIND, MEANS, STDS, VideoAlign, sampled_frames
from runtime.types import Clip
from tests.reward_folder import write_folder
from tests.tiny import generator_of

PROMPT = "a red circle"


@pytest.fixture(scope="module", params=[1, 3])
def reward(request, tmp_path_factory) -> VideoAlign:
    folder = tmp_path_factory.mktemp("weights")
    write_folder(folder, "videoalign", output_dim=request.param)
    return load_reward("videoalign", "cpu", str(folder))


def clip(B=3, T=21, prompt=PROMPT, fps=16):
    frames = torch.rand(B, T, 3, 60, 90, generator=generator_of(7))
    return Clip(frames, prompt, fps, 0)


@pytest.mark.parametrize(
    ("frames", "fps", "seen"),
    [
        (2, 16, (0, 1)),
        (3, 16, (0, 2)),
        (4, 16, (0, 1, 2, 3)),
        (5, 16, (0, 1, 3, 4)),
        (9, 16, (0, 3, 5, 8)),  # a first chunk
        (12, 16, (0, 4, 7, 11)),
        (21, 16, (0, 7, 13, 20)),
        (40, 16, (0, 13, 26, 39)),  # 2.5 pairs are 2
        (56, 16, (0, 8, 16, 24, 31, 39, 47, 55)),  # 3.5 pairs are 4
        (72, 16, (0, 10, 20, 30, 41, 51, 61, 71)),  # 4.5 pairs are 4
        (41, 16, (0, 8, 16, 24, 32, 40)),
        (9, 1, (0, 1, 2, 3, 5, 6, 7, 8)),  # more than there are: all but what pairs leave over
        (117, 16, (0, 9, 18, 27, 36, 45, 54, 62, 71, 80, 89, 98, 107, 116)),  # ten chunks
    ],
)
def test_frames_are_sampled_twice_a_second_in_even_number(frames, fps, seen):
    assert sampled_frames(frames, fps) == seen


@pytest.mark.parametrize("fps", [1, 8, 16, 24])
def test_first_and_last_frame_are_always_seen_and_none_twice(fps):
    for frames in range(2, 500):
        seen = sampled_frames(frames, fps)
        assert seen[0] == 0 and seen[-1] == frames - 1 and len(seen) % 2 == 0
        assert all(a < b for a, b in zip(seen, seen[1:], strict=False))
        if frames >= 4 and 2 * frames / fps >= 4 and fps > 1:
            assert abs(len(seen) - 2 * frames / fps) <= 1


@pytest.mark.parametrize(("frames", "fps"), [(1, 16), (0, 16), (9, 0)])
def test_a_clip_that_cannot_be_sampled_is_told(frames, fps):
    with pytest.raises(ValueError, match="clip: want at least 2 frames at 1 frame a second"):
        sampled_frames(frames, fps)


@torch.no_grad()
def test_a_score_is_the_sum_of_three_normalised_outputs_each_at_its_token(reward):
    """By hand: one clip at a time, frames by their indices, patches from the reference."""
    some, net = clip(), reward.judge.net
    form = PatchFormat(56, 84, video=True, dtype=torch.float32)
    rows = []
    for frames in some.frames:
        patches = reward_patches_reference(frames[[0, 7, 13, 20]], form).view(1, 2, 24, -1)
        said = net(patches, (4, 6), reward.judge.words(PROMPT))[0]  # [R, O]
        own = [said[i, 0 if said.shape[1] == 1 else i] for i in range(3)]
        rows.append(torch.stack([(o - m) / s for o, m, s in zip(own, MEANS, STDS, strict=True)]))
    want = torch.stack(rows)
    assert torch.allclose(reward.detail(some), want, atol=1e-5)
    got = reward.score(some)
    assert got.dtype == torch.float32 and torch.allclose(got, want.sum(1), atol=1e-5)
    assert want.std(0).min() > 1e-3


def test_a_known_hidden_state_scores_as_worked_out_by_hand(reward, monkeypatch):
    """Three tokens' hidden states pick out one weight each; with three outputs a token reads its own row of the head."""
    head = reward.judge.net.rm_head
    table = torch.arange(float(head.weight.numel())).view_as(head.weight) / 8
    monkeypatch.setattr(head.weight, "data", table)
    hidden = torch.zeros(1, 3, 32)
    for token, (channel, value) in enumerate(((4, 1.0), (9, -2.0), (30, 0.5))):
        hidden[0, token, channel] = value
    monkeypatch.setattr(reward.judge.net.model, "forward", lambda x, at: hidden)
    said = (4 / 8, -2 * 9 / 8, 0.5 * 30 / 8)
    if head.out_features == 3:
        said = (4 / 8, -2 * (32 + 9) / 8, 0.5 * (64 + 30) / 8)
    want = [
        (s - m) / d
        for s, m, d in zip(said, (3.6757, 1.1646, 2.8105), (2.2476, 1.3811, 2.5121), strict=True)
    ]
    assert reward.detail(clip(1))[0].tolist() == pytest.approx(want, rel=1e-5)
    assert reward.score(clip(1)).item() == pytest.approx(sum(want), rel=1e-5)


def test_outputs_of_zero_score_what_the_published_constants_say(reward, monkeypatch):
    head = reward.judge.net.rm_head
    monkeypatch.setattr(head, "forward", lambda x: torch.zeros(*x.shape[:-1], head.out_features))
    want = -(3.6757 / 2.2476 + 1.1646 / 1.3811 + 2.8105 / 2.5121)
    assert reward.score(clip()).tolist() == pytest.approx([want] * 3)


@pytest.mark.parametrize(
    ("size", "want"), [((480, 832), (336, 588)), ((96, 96), (336, 336)), ((336, 336), (336, 336))]
)
def test_frames_keep_their_size_within_the_bounds(size, want):
    assert KIND.pixels.size(*size) == want


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_score_does_not_depend_on_how_the_batch_is_cut(reward, rows):
    some = clip()
    again = VideoAlign(reward.judge, rows).score(some)
    assert torch.allclose(again, reward.score(some), atol=1e-5)
    alone = torch.cat([reward.score(replace(some, frames=row[None])) for row in some.frames])
    assert torch.allclose(again, alone, atol=1e-5)


def test_a_clip_with_a_broken_pixel_is_not_judged_even_where_nobody_looks(reward):
    some = clip()
    want = reward.score(some)
    some.frames[1, 1, 0, 5, 5] = math.nan
    got = reward.score(some)
    assert got[1].isnan() and torch.equal(got[[0, 2]], want[[0, 2]])


def test_only_the_last_token_knows_the_prompt_and_all_know_the_frame_rate(reward):
    some = clip(T=41)
    base = reward.detail(some)
    other = reward.detail(replace(some, prompt="a blue square"))
    assert torch.allclose(other[:, :2], base[:, :2], atol=1e-5)
    assert (other[:, 2] - base[:, 2]).abs().min() > 1e-4
    slow = reward.detail(replace(some, fps=8))
    assert ((slow - base).abs() > 1e-5).all()


def test_an_output_size_that_means_nothing_is_told(tmp_path):
    write_folder(tmp_path, "videoalign")
    config = tmp_path / "videoalign" / "config.json"
    config.write_text(config.read_text().replace("{", '{"output_dim": 2, ', 1))
    with pytest.raises(ValueError, match="config.json: output_dim: want 1 or 3, got 2"):
        load_reward("videoalign", "cpu", str(tmp_path))


@torch.no_grad()
def test_at_full_size_ten_chunks_are_14_frames_2714_tokens_and_about_18_teraflops():
    """On the meta device: shapes and counts of the real thing, without its 4.4 GB."""
    with torch.device("meta"):
        net = Qwen2VL(KIND.config, KIND.head(1536, {})).to(torch.bfloat16)
    script = Filler(KIND.filler_tokens, 3, 151_660)
    judge = Judge(KIND, net, script, KIND.pixels)
    words = judge.words(PROMPT)
    assert len(words.before) + len(words.after) + 7 * 252 == 2714
    patches = torch.empty(2, 7, 1008, PATCH_VALUES, dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counter:
        assert net(patches, (24, 42), words).shape == (2, 3, 1)
    unseen = 27 * 2 * 1536 * 2714 * 2713 + 4 * 1536 * sum(script.ids("").back)
    want = judge.flops(7, 480, 832)
    assert counter.get_total_flops() == 2 * (want + unseen + 3 * 2 * 1536)
    assert want == pytest.approx(17.9e12, rel=0.05)
    assert judge.nbytes == pytest.approx(4.4e9, rel=0.02)
