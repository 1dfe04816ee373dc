"""What is counted is what a method's own arithmetic says it should be.

Legend: N chunks, T frames of the video, 2 passes a chunk, K = M = 2.
"""

import pytest
import torch

from runtime.bench.quality.costs import Meter
from runtime.bench.quality.methods import METHODS
from runtime.bench.quality.row import Cost
from tests.tiny import Echo, Likes, motion, tiny_engine

N, FIRST, LATER, PASSES = 4, 5, 6, 2
T = FIRST + (N - 1) * LATER
PROMPTS = ["a circle", "a square", "a star"]


def counted(changes, prompts=PROMPTS, **parts):
    engine = tiny_engine(N, {**changes, "run.prompts": len(prompts)}, **parts)
    meter = Meter(engine)
    costs = []
    for _ in range(2):  # a second batch begins at zero
        meter.begin(prompts)
        for _ in engine.stream_many(prompts):
            pass
        costs.append(meter.costs(3.0))
    assert costs[0] == costs[1]
    return costs[0]


FORMULAS = {
    # passes, decoded frames, image rewards, video rewards
    "single": (N * PASSES + N - 1, T, 0, 0),
    "best-of-n": (4 * N * PASSES + 4 * (N - 1), 4 * T, 0, 4),
    "beam": (4 * N * PASSES + 2 * (N - 1), 4 * T, 4 * T, 4 * N + 2),
    "stream-t1": (4 * N * PASSES + 2 * (N - 1), 4 * T, 4 * T, 4 * N + 2),
    "no-sinking": (4 * N * PASSES + 2 * (N - 1), 4 * T, 4 * T, 4 * N + 2),
    "no-pruning": (N * PASSES + N - 1, T, T, N),
}


@pytest.mark.parametrize("method", FORMULAS)
def test_every_video_of_a_batch_costs_what_its_method_says(method):
    assert counted(METHODS[method].changes) == [Cost(*FORMULAS[method], seconds=1.0)] * 3


@pytest.mark.parametrize(("k", "m"), [(1, 2), (3, 2)])
def test_candidates_cost_by_their_number(k, m):
    changes = {"search.histories": k, "search.expansions": m}
    (cost,) = counted(changes, ["a circle"])
    final = k if k > 1 else 0
    assert cost == Cost(
        k * m * N * PASSES + k * (N - 1), k * m * T, k * m * T, k * m * N + final, 3.0
    )


def test_drafts_are_counted_as_far_as_they_went():
    changes = {"search.policy": "halving", "search.drafts": 4, "search.draft_passes": 1}
    (cost,) = counted(changes, ["a circle"])
    drafts, finalists = 2 * 4, 2 * 2  # per chunk
    assert cost.passes == N * (drafts + finalists) + 2 * (N - 1)
    assert cost.decoder_frames == 4 * T + N * drafts  # one frame of every draft


def test_the_wasteful_order_costs_what_it_wastes():
    """A clean pass for every candidate; chunk and window decoded from nothing, survivors once more as shown."""
    (cost,) = counted({"run.schedule": "released"}, ["a circle"])
    windows = sum(FIRST + chunk * LATER for chunk in range(N))
    assert cost.passes == 4 * N * PASSES + 4 * (N - 1)
    assert cost.decoder_frames == 4 * N * FIRST + 4 * windows + 2 * T


def test_a_second_decoder_for_the_rewards_is_counted_too():
    (cost,) = counted({}, ["a circle"], scoring=Echo())
    assert cost.decoder_frames == 4 * T + 2 * T


def test_parts_of_a_batch_add_up():
    changes = {"run.batch_rows": 5, "run.decoder_rows": 7}
    assert counted(changes) == [Cost(*FORMULAS["stream-t1"], seconds=1.0)] * 3


def test_only_what_the_image_reward_saw_is_counted():
    (cost,) = counted({"reward.stride": 3}, ["a circle"])
    assert cost.image_rewards == 4 * N * 2  # of 5 or 6 frames every third


def test_a_final_reward_of_its_own_is_counted():
    (cost,) = counted(METHODS["best-of-n"].changes, ["a circle"], final=Likes(motion, 10))
    assert cost.video_rewards == 4


def test_a_prompt_asked_for_twice_pays_twice():
    costs = counted({}, ["a circle", "a circle"])
    assert costs == [Cost(*FORMULAS["stream-t1"], seconds=1.5)] * 2


def test_counting_changes_no_video():
    plain, watched = tiny_engine(N), tiny_engine(N)
    Meter(watched).begin(["a circle"])
    pairs = zip(plain.stream("a circle"), watched.stream("a circle"), strict=True)
    assert all(torch.equal(a.frames, b.frames) and a.route == b.route for a, b in pairs)
