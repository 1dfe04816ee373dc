"""Two rewards become one score and one route; rewards that misbehave are named or passed over."""

import math

import pytest
import torch

from runtime.score import Place, Scorer, image_weight
from runtime.settings import MemorySettings, RewardSettings
from runtime.types import Branch, Clip, Route, Trajectory
from runtime.window import Window

NAN, INF = math.nan, math.inf
PLACE = Place("a prompt", 16, 4, 11)


class Noting:
    """A reward that notes the clips it sees and answers with one number per clip."""

    horizon = 1

    def __init__(self, *answers: torch.Tensor) -> None:
        self.answers, self.clips = list(answers), []

    def score(self, clip: Clip) -> torch.Tensor:
        self.clips.append(clip)
        return self.answers.pop(0) if self.answers else clip.frames.mean((1, 2, 3, 4))


def scorer(image=None, video=None, released=False, batch_rows=0, tau=0.4, **memory) -> Scorer:
    image, video = image or Noting(), video or Noting()
    reward = RewardSettings(tau=tau)
    return Scorer(image, video, reward, MemorySettings(**memory), released, batch_rows)


def decided(parent: Trajectory, short: float, long: float, chunk: int = 4, **kinds):
    shorts, longs = [short], [long]
    place = Place("", 16, chunk, 11)
    ((scores, route),) = scorer(**kinds).decide([Branch(parent, 0, 0, 0, 0)], shorts, longs, place)
    return scores, route


@pytest.mark.parametrize(
    ("chunk", "chunks", "tau", "want"),
    [(0, 11, 0.4, 0), (2, 11, 0.4, 0.2), (4, 11, 0.4, 0.4), (10, 11, 0.4, 0.4)]
    + [(10, 11, 1.0, 1.0), (5, 11, 0.0, 0), (0, 1, 0.4, 0), (0, 1, 1.0, 0), (1, 2, 1.0, 1.0)],
)
def test_the_image_rewards_share_grows_up_to_tau(chunk, chunks, tau, want):
    assert image_weight(chunk, chunks, tau) == pytest.approx(want)


def test_scores_fuse_with_the_share_of_their_chunk():
    scores, _ = decided(Trajectory(shorts=(0.5, 1.5), long=2.0), short=3.0, long=-1.0, chunk=2)
    assert scores.fused == pytest.approx(0.2 * 3 + 0.8 * -1)
    assert (scores.quality_gain, scores.long_drop) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("short", "long", "route"),
    [
        (1.0, 1.0, Route.DISCARD),  # as good as before is not better
        (1.25, 1.0, Route.EMA),
        (1.25, 0.75, Route.EMA),  # dropped by just the threshold: the gates are strict
        (1.25, 0.5, Route.APPEND),
        (0.75, 0.5, Route.DISCARD),
    ],
)
def test_two_strict_gates_choose_the_route(short, long, route):
    parent = Trajectory(shorts=(0.5, 1.5), long=1.0)
    assert decided(parent, short, long, transition_threshold=0.25)[1] is route


def test_the_first_chunk_has_no_gates():
    scores, route = decided(Trajectory(), 9.0, -9.0, chunk=0, quality_threshold=-99.0)
    assert route is Route.DISCARD and (scores.quality_gain, scores.long_drop) == (0.0, 0.0)
    assert scores.fused == -9.0


def test_the_papers_gate_looks_at_recent_chunks_and_the_released_one_at_all():
    parent = Trajectory(shorts=(2.0, 4.0), short_sum=0.0 + 0.0 + 2.0 + 4.0, judged=4)
    assert decided(parent, 2.5, 0.0)[0].quality_gain == -0.5
    assert decided(parent, 2.5, 0.0, released=True)[0].quality_gain == 1.0


@pytest.mark.parametrize("batch_rows", [0, 1, 2])
def test_clips_reach_the_reward_with_their_place_in_any_batch(batch_rows):
    image = Noting()
    frames = torch.rand(5, 2, 3, 4, 4)
    got = scorer(image, batch_rows=batch_rows).rate_images(frames, [slice(None)], [PLACE])
    assert torch.equal(got, frames.mean((1, 2, 3, 4)))
    assert torch.equal(torch.cat([clip.frames for clip in image.clips]), frames)
    assert {(c.prompt, c.fps, c.chunk) for c in image.clips} == {("a prompt", 16, 4)}


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(2), r"\[2\]"),
        (torch.zeros(3, 1), r"\[3, 1\]"),
        (torch.tensor(1.0), r"\[\]"),
        (torch.zeros(0), r"\[0\]"),
    ],
    ids=lambda value: str(list(value.shape)) if isinstance(value, torch.Tensor) else None,
)
def test_a_reward_of_the_wrong_shape_is_named(answer, got):
    frames = torch.rand(3, 2, 3, 4, 4)
    with pytest.raises(
        RuntimeError, match=rf"image reward: want one score per clip \[3\], got {got}"
    ):
        scorer(image=Noting(answer)).rate_images(frames, [slice(None)], [PLACE])
    with pytest.raises(RuntimeError, match="video reward: want one score per clip"):
        scorer(video=Noting(answer)).rate_videos([Window(frames)], [PLACE])
    with pytest.raises(RuntimeError, match="final reward: want one score per clip"):
        scorer().rate_whole(list(frames), PLACE, Noting(answer))


def test_wrong_shapes_that_add_up_are_still_wrong():
    image = Noting(torch.zeros(2), torch.zeros(0))
    with pytest.raises(RuntimeError, match=r"want one score per clip \[1\], got \[2\]"):
        scorer(image, batch_rows=1).rate_images(torch.rand(2, 2, 3, 4, 4), [slice(None)], [PLACE])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.0, 1.0, 0.5], 1),
        ([1.0, 1.0, 0.0], 0),
        ([NAN, -5.0, NAN], 1),
        ([INF, -5.0, -7.0], 1),
        ([-INF, NAN, -1e30], 2),
        ([NAN, NAN, NAN], 0),
        ([NAN, 2.0, INF], 1),
    ],
    ids=str,
)
def test_the_final_choice_passes_over_what_is_not_finite(scores, best):
    assert scorer().best(scores, PLACE) == best


@pytest.mark.parametrize(("alone", "batches"), [(False, [2]), (True, [1, 1])])
def test_whole_videos_are_rated_together_or_each_alone_by_whoever_is_asked(alone, batches):
    videos = [torch.full((2, 3, 4, 4), level) for level in (0.25, 0.75)]

    class Brightness:
        horizon = 1

        def __init__(self):
            self.seen = []

        def score(self, clip):
            self.seen.append(len(clip.frames))
            return clip.frames.mean((1, 2, 3, 4))

    model, another = Brightness(), Brightness()
    assert scorer(video=model).rate_whole(videos, PLACE, alone=alone) == [0.25, 0.75]
    assert scorer().rate_whole(videos, PLACE, another, alone) == [0.25, 0.75]
    assert model.seen == another.seen == batches


@pytest.mark.parametrize(
    ("stride", "seen"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (4, [0, 4]), (9, [4])]
)
def test_the_image_reward_sees_every_nth_frame_and_the_last(stride, seen):
    image, video = Noting(), Noting()
    frames = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(2, 5, 3, 4, 4)
    reward = RewardSettings(stride=stride)
    room = Scorer(image, video, reward, MemorySettings(), False)
    room.rate_images(frames, [slice(None)], [PLACE])
    room.rate_videos([Window(frames)], [PLACE])
    assert image.clips[0].frames[0, :, 0, 0, 0].tolist() == seen
    assert torch.equal(video.clips[0].frames, frames)


def test_rows_of_two_videos_reach_the_reward_with_their_own_prompt():
    image = Noting()
    frames = torch.rand(5, 2, 3, 4, 4)
    other = Place("another prompt", 16, 4, 11)
    got = scorer(image).rate_images(frames, [slice(0, 3), slice(3, 5)], [PLACE, other])
    assert torch.equal(got, frames.mean((1, 2, 3, 4)))
    assert [(c.prompt, len(c.frames)) for c in image.clips] == [
        ("a prompt", 3),
        ("another prompt", 2),
    ]
