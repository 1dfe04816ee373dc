"""Siblings share what is shareable: frames that are the same tensors, pictures looked at once, beginnings read once."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.rewards import load_reward
from runtime.rewards.qwen2vl import Qwen2VL, answer
from runtime.rewards.qwen2vl_judge import Judge
from runtime.rewards.qwen2vl_kin import Kin, Stretch
from runtime.rewards.qwen2vl_vision import PATCH_VALUES
from runtime.rewards.qwen2vl_words import Filler
from runtime.rewards.videoalign import KIND, VideoAlign, sampled_frames
from runtime.score import Place, Scorer, clip_for
from runtime.settings import MemorySettings, RewardSettings
from runtime.types import Clip
from runtime.window import Window
from tests.reward_folder import write_folder
from tests.tiny import generator_of

FPS = 16
PLACE = Place("a red circle", FPS, 4, 11)
# Who each of four rows descends from, chunk by chunk; the newest chunk is everybody's own.
STORIES = {
    "two pairs from the start": ["ab", "ab", "cd", "cd"],
    "two pairs that part late": ["abc", "abc", "abd", "abd"],
    "three generations": ["abcd", "abcd", "abce", "afgh"],
    "one parent": ["abc", "abc", "abc", "abc"],
    "strangers": ["ab", "cd", "ef", "gh"],
    "one and three": ["abc", "dbc", "dbc", "dbc"],
    "not side by side": ["abc", "def", "abc", "def"],
    "a first chunk": ["", "", "", ""],
}


def story(rows: list[str], size=(60, 90), frames=12) -> Window:
    """A window whose chunks of the same letter are one tensor."""
    source = generator_of(5)
    chunks = {letter: torch.rand(frames, 3, *size, generator=source) for letter in "".join(rows)}
    newest = torch.rand(len(rows), frames, 3, *size, generator=source)
    return Window(newest, tuple(tuple(chunks[letter] for letter in row) for row in rows))


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> VideoAlign:
    folder = write_folder(tmp_path_factory.mktemp("weights"), "videoalign")
    return load_reward("videoalign", "cpu", str(folder))


@pytest.mark.parametrize("rows", STORIES.values(), ids=STORIES)
def test_shared_scores_are_the_scores_of_clips_that_know_nothing_of_each_other(reward, rows):
    window = story(rows)
    clip = clip_for(reward, window, PLACE)
    plain = reward.detail(Clip(window.whole(), PLACE.prompt, FPS, 4))
    shared = reward.detail(clip)
    assert torch.allclose(shared, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(shared.sum(1).argsort(), plain.sum(1).argsort())
    assert plain.std(0).min() > 1e-4
