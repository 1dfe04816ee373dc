"""Windows of frames: what histories hold and candidates add, picked from before it is copied."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runtime.rewards.videoalign import sampled_frames
from runtime.score import Scorer, clip_for
from runtime.settings import MemorySettings, RewardSettings
from runtime.types import Clip
from runtime.window import Window
from tests.stories import FPS, PLACE, story


def scorer(video, batch_rows=0) -> Scorer:
    return Scorer(None, video, RewardSettings(), MemorySettings(), False, batch_rows)


class Noting:
    """A reward that notes what it is shown."""

    horizon = 10

    def __init__(self) -> None:
        self.clips = []

    def score(self, clip: Clip) -> torch.Tensor:
        self.clips.append(clip)
        return clip.frames.mean((1, 2, 3, 4))


class Picky(Noting):
    """One that wants to be handed three frames, or as many as ``picks`` says."""

    def __init__(self, picks=None) -> None:
        super().__init__()
        self.picks = picks or (lambda frames, fps: (0, frames // 2, frames - 2))


def test_a_window_is_its_histories_chunks_and_the_newest():
    window = story(["ab", "cb"], size=(2, 2), frames=3)
    (a, b), (c, _) = window.past
    want = torch.stack([torch.cat([a, b, window.newest[0]]), torch.cat([c, b, window.newest[1]])])
    assert window.frames == 9 and len(window) == 2
    assert torch.equal(window.whole(), want)
    assert torch.equal(window.pick((0, 4, 8)), want[:, [0, 4, 8]])
    assert torch.equal(window[1:2].pick((8, 2)), want[1:, [8, 2]])
    assert window.twins((0, 2, 3, 5, 6)) == ((0, 0, 0, 0, 0), (1, 1, 0, 0, 1))
    assert window[1:2].twins((0, 5)) == ((0, 0),)


def test_a_window_without_a_past_is_the_newest_chunk_itself():
    newest = torch.rand(2, 3, 3, 2, 2)
    for window in (Window(newest), Window(newest, ((), ()))):
        assert window.whole() is newest
        assert torch.equal(window.pick((2,)), newest[:, 2:])
        assert window.twins(range(3)) == ((0, 0, 0), (1, 1, 1))


def test_frames_that_only_look_alike_are_not_taken_for_the_same():
    chunk = torch.rand(3, 3, 2, 2)
    window = Window(torch.rand(2, 3, 3, 2, 2), ((chunk,), (chunk.clone(),)))
    assert window.twins((0,)) == ((0,), (1,))
    # Nor is a chunk that another row holds at another place.
    moved = Window(window.newest, ((chunk, chunk.clone()), (chunk.clone(), chunk)))
    assert moved.twins((0, 3)) == ((0, 0), (1, 1))


def test_a_reward_that_picks_is_handed_its_frames_alone_and_others_all_of_them():
    window = story(["ab", "ab", "cb"], size=(4, 4))
    whole, picky, plain = window.whole(), Picky(), Noting()
    for reward in (picky, plain):
        scorer(reward, batch_rows=2).rate_videos([window], [PLACE])
    assert torch.equal(torch.cat([c.frames for c in picky.clips]), whole[:, [0, 18, 34]])
    assert [clip.twins for clip in picky.clips] == [((0, 0, 0), (0, 0, 1)), ((0, 0, 0),)]
    assert all(clip.picked for clip in picky.clips)
    assert torch.equal(torch.cat([c.frames for c in plain.clips]), whole)
    assert plain.clips[0].twins == ((0,) * 36, (0,) * 24 + (1,) * 12)
    assert not plain.clips[0].picked


class Copied(TorchDispatchMode):
    """Counts the bytes of all that is put together; whatever else is done must be a view."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.cat:
            self.bytes += made.numel() * made.element_size()
        else:
            assert func.is_view, func
        return made


def test_at_full_size_an_eighth_of_the_window_is_copied():
    """Four candidates at 832x480 in bfloat16: 134 MB of 1.1 GB."""
    like = torch.empty(12, 3, 480, 832, dtype=torch.bfloat16, device="meta")
    chunks = [like[3:].clone(), *(like.clone() for _ in range(8))]
    window = Window(torch.stack([like] * 4), (tuple(chunks),) * 4)
    one_frame, seen = 3 * 480 * 832 * 2, sampled_frames(117, FPS)
    with Copied() as picked:
        clip_for(Picky(lambda frames, fps: seen), window, PLACE)
    assert picked.bytes == 4 * 14 * one_frame == 134_184_960
    with Copied() as whole:
        clip_for(Noting(), window, PLACE)
    assert whole.bytes == 4 * 117 * one_frame == 1_121_402_880


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_new_frame_that_is_broken_spoils_the_score_though_nobody_picked_it(bad):
    window = story(["ab", "ab", "cb"], size=(4, 4))
    want = scorer(Picky()).rate_videos([window], [PLACE])
    assert Picky().picks(36, FPS) == (0, 18, 34)
    window.newest[1, 2, 1, 3, 3] = bad
    got = scorer(Picky()).rate_videos([window], [PLACE])
    assert got[1].isnan() and torch.equal(got[[0, 2]], want[[0, 2]])
