"""Budget mode against engines of known costs: the pace is kept, the time is used, and nothing asked for is exceeded."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.budget import (
    HISTORY,
    Budget,
    Choice,
    rungs,
)
from runtime.costs import Costs, Work
from tests.simulated_engine import PICTURES, SPRITES, Simulated

MOST = (4, 4, 1)


def fps(ms: float) -> float:
    return 12e3 / ms


def used(budget: Budget, first: int = 0, last: int | None = None) -> float:
    """Time taken over time allowed."""
    spent = budget.history[first:last]
    return sum(s.ms for s in spent) / sum(s.allowed_ms for s in spent)


def warm(engine: Simulated, most: tuple[int, int, int] = MOST) -> Costs:
    """What a warm-up chunk of the whole request teaches."""
    costs, rows = Costs(), most[0] * most[1]
    pictures = rows * math.ceil(12 / most[2])
    costs.observe(Work(rows, most[0], pictures), engine.turn(1, Work(rows, most[0], pictures)))
    return costs


CASES = [(SPRITES, ms) for ms in (100, 150, 200, 300, 450)]
CASES += [(PICTURES, ms) for ms in (350, 500, 800, 1200, 2000, 3000)]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize(("stages", "ms"), CASES, ids=lambda x: x if isinstance(x, int) else "")
def test_the_pace_is_kept_and_the_time_is_used(stages, ms, noise):
    for seed in range(3):
        engine = Simulated(stages, noise, seed=seed)
        budget = Budget(fps(ms), MOST)
        engine.run(budget, 120)
        assert 0.85 <= used(budget, 10) <= 1.05
        fitting = sum(spent.choice.fits for spent in budget.history)
        assert fitting >= (120 if noise < 0.1 else 110), "at 350 ms one candidate takes 312"


def test_as_much_as_asked_for_is_made_when_it_fits_and_no_more():
    engine = Simulated(SPRITES)
    budget = Budget(fps(2 * engine.true_ms(*MOST)), MOST)
    assert set(engine.run(budget, 60)) == {MOST}
    assert budget.history[-1].choice.why == "as asked for: it fits"


def test_one_warm_up_chunk_is_enough_for_a_video_of_five_seconds():
    for stages, ms in CASES:
        engine = Simulated(stages, 0.05, seed=5)
        budget = Budget(fps(ms), MOST, warm(engine))
        engine.run(budget, 7)
        assert used(budget) <= 1.25, (ms, budget.report())
        assert used(budget, 2) >= 0.6, (ms, budget.report())


def test_it_settles_within_ten_chunks_of_knowing_nothing():
    for stages, ms in CASES:
        engine = Simulated(stages, 0.05, seed=6)
        budget = Budget(fps(ms), MOST)
        engine.run(budget, 30)
        assert 0.75 <= used(budget, 10, 30) <= 1.1, (ms, budget.report())


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_it_does_not_flap(noise):
    for stages, ms in CASES:
        budget = Budget(fps(ms), MOST)
        chosen = Simulated(stages, noise, seed=7).run(budget, 120)[10:]
        changes = sum(a != b for a, b in zip(chosen, chosen[1:], strict=False))
        assert changes <= 0.27 * len(chosen), (ms, changes)


def test_a_choice_that_just_fits_stays():
    engine = Simulated(SPRITES, noise=0.0)
    budget = Budget(fps(engine.true_ms(2, 2, 1) * 1.02), (2, 2, 1), warm(engine, (2, 2, 1)))
    assert set(engine.run(budget, 50)[6:]) == {(2, 2, 1)}, "the first has less time"


def test_a_machine_that_slows_down_is_followed_within_a_few_chunks_and_back():
    engine = Simulated(SPRITES, 0.05, slow=lambda i: 2.0 if 50 <= i < 100 else 1.0)
    budget = Budget(fps(200), MOST)
    chosen = engine.run(budget, 150)

    def rows(first: int, last: int) -> float:
        return sum(k * m for k, m, _ in chosen[first:last]) / (last - first)

    assert 0.9 <= used(budget, 20, 50) <= 1.05
    assert used(budget, 50, 60) <= 1.2
    assert 0.9 <= used(budget, 60, 100) <= 1.05
    assert 0.9 <= used(budget, 110, 150) <= 1.06
    assert rows(60, 100) < 0.6 * rows(20, 50) < rows(115, 150)


def test_other_videos_that_join_the_batch_take_their_part_of_the_time():
    engine = Simulated(SPRITES, 0.05, others=lambda i: 4 if 40 <= i < 80 else 0)
    budget = Budget(fps(300), MOST)
    chosen = engine.run(budget, 120)
    alone, beside = chosen[20:40], chosen[50:80]
    assert 0.9 <= used(budget, 50, 80) <= 1.06
    mean = [sum(k * m for k, m, _ in part) / len(part) for part in (alone, beside)]
    assert 2 <= mean[0] - mean[1] <= 6, "about the four rows that the others draw"
    assert 0.9 <= used(budget, 90, 120) <= 1.06


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 14),
    st.floats(1.0, 2000.0),
    st.floats(0.0, 0.5),
    st.floats(0.0, 0.3),
    st.integers(0, 9),
)
def test_the_request_is_never_exceeded(k, m, stride, ms, noise, spikes, seed):
    budget = Budget(fps(ms), (k, m, stride))
    engine = Simulated(PICTURES, noise, seed=seed, spikes=spikes, others=lambda i: (i * 7) % 5)
    for histories, expansions, chosen_stride in engine.run(budget, 40):
        assert 1 <= histories <= k and 1 <= expansions <= m and chosen_stride >= stride
    for spent in budget.history:
        assert -2.0 * spent.allowed_ms - 1e-6 <= spent.balance_ms
        assert spent.balance_ms <= 1.0 * spent.allowed_ms + 1e-6


def test_hiccups_do_not_cost_more_than_their_own_time():
    engine = Simulated(SPRITES, 0.05, spikes=0.04, seed=3)
    budget = Budget(fps(200), MOST)
    engine.run(budget, 200)
    assert 0.85 <= used(budget, 10) <= 1.1


def chunk(budget: Budget, ms: float, index: int = 1, **more: float) -> Choice:
    """One chunk that takes ``ms`` whatever is chosen."""
    choice = budget.choose(index, budget.most[0])
    rows = choice.histories * choice.expansions
    budget.observe(choice, rows, choice.histories, 12, {"denoise": ms, **more})
    return choice


def known(stages: dict[str, tuple[float, float]] = SPRITES) -> Costs:
    """Costs known for every size."""
    costs, engine = Costs(), Simulated(stages, noise=0.0)
    for _ in range(3):
        for k, m, s in rungs(MOST):
            work = Work(k * m, k, k * m * math.ceil(12 / s))
            costs.observe(work, engine.turn(1, work))
    return costs


def test_a_late_chunk_is_made_up_for_and_a_very_late_one_only_in_part():
    engine = Simulated(SPRITES, noise=0.0, slow=lambda i: 30.0 if i == 20 else 1.0)
    budget = Budget(fps(200), MOST, known())
    chosen = engine.run(budget, 60)
    before, after = chosen[12:20], chosen[21:29]
    assert sum(k * m for k, m, _ in after) < 0.8 * sum(k * m for k, m, _ in before)
    assert budget.history[20].balance_ms == pytest.approx(-2.0 * 200)
    assert used(budget, 21, 41) == pytest.approx(1 - 2.0 / 20, abs=0.05), "paid within 20 chunks"
    assert used(budget, 40, 60) == pytest.approx(1, abs=0.06), "and no longer"


def test_fast_chunks_are_credit_for_little_more_than_one_chunk():
    most = (2, 2, 1)
    engine = Simulated(SPRITES, noise=0.0, slow=lambda i: 0.5 if i < 20 else 2.0)
    budget = Budget(fps(200), most, warm(engine, most))
    engine.run(budget, 60)
    assert budget.history[19].balance_ms == pytest.approx(1.0 * 200)
    late = [-s.balance_ms for s in budget.history[20:]]
    assert 0 < max(late) <= 0.5 * 200 + 60, "twenty fast chunks pay for little more than one"
    assert used(budget, 20, 60) <= 1 + (1.0 + 0.5) / 40 + 0.02
    budget = Budget(fps(200), MOST, known())
    for _ in range(10):
        index = 1
        choice = budget.choose(index, 1)
        allowed = 200 + max(budget.balance_ms, 0.0) / 2
        assert choice.predicted_ms <= allowed + 1e-6
        budget.observe(choice, 1, 1, 12, {"denoise": 1.0})


def test_not_even_one_candidate_fits_and_it_says_so():
    engine = Simulated(SPRITES, noise=0.02)
    budget = Budget(fps(20), MOST, known())
    chosen = engine.run(budget, 30)
    assert set(chosen[2:]) == {(1, 1, 4)}
    last = budget.history[-1].choice
    assert not last.fits
    assert re.fullmatch(r"one candidate takes \d+ ms, 600 FPS allow 20", last.why)
    assert f"; the pace cannot be kept: {last.why}" in budget.report()


def test_being_late_is_not_taken_for_being_too_slow():
    budget = Budget(fps(80), MOST, known())
    engine = Simulated(SPRITES, noise=0.0, slow=lambda i: 20.0 if i == 3 else 1.0)
    engine.run(budget, 10)
    assert budget.history[4].balance_ms < 0
    assert all(spent.choice.fits for spent in budget.history)


def test_before_anything_is_measured_the_request_is_taken_at_its_word():
    choice = Budget(16, (3, 2, 2)).choose(0, 1)
    assert (choice.histories, choice.expansions, choice.stride) == (3, 2, 2)
    assert math.isnan(choice.predicted_ms) and choice.fits and "nothing is measured" in choice.why


def test_the_same_observations_make_the_same_choices_however_often_one_asks():
    runs = []
    for asks in (1, 3):
        engine, budget, chosen, now = Simulated(SPRITES, 0.2, seed=9), Budget(60, MOST), [], 1
        for index in range(40):
            for _ in range(asks):
                choice = budget.choose(index, now)
            rows = choice.expansions * (now if index else choice.histories)
            now = min(choice.histories, rows)
            work = Work(rows, now, rows * 12)
            budget.observe(choice, rows, now, 12, engine.turn(index, work))
            chosen.append(choice)
        runs.append(chosen)
    assert repr(runs[0]) == repr(runs[1])


def test_histories_that_are_too_many_are_drawn_from_once_each_and_then_gone():
    budget = Budget(fps(95), MOST, known())
    choice = budget.choose(1, 4)
    assert (choice.histories, choice.expansions) == (1, 1)
    rows = 4
    engine = Simulated(SPRITES, noise=0.0)
    assert choice.predicted_ms == pytest.approx(
        sum(engine.turn(1, Work(rows, 1, rows * math.ceil(12 / choice.stride))).values()), rel=0.1
    )
    assert budget.choose(1, 1).expansions > 1, "with one history left there is time for more"


def test_a_first_chunk_draws_all_its_candidates_from_nothing():
    budget = Budget(fps(200), MOST, known())
    first, later = budget.choose(0, 1), budget.choose(1, 1)
    rows = first.histories * first.expansions
    assert rows > later.histories and first.predicted_ms > later.predicted_ms


def test_a_first_chunk_has_fewer_frames_and_so_less_time():
    budget = Budget(fps(200), MOST, known())
    first, later = budget.choose(0, 1), budget.choose(1, 4)
    assert first.predicted_ms <= 150 < later.predicted_ms <= 200 or later.expansions == 1
    budget.observe(first, 4, 2, 9, {"denoise": 100.0})
    assert budget.history[0].allowed_ms == pytest.approx(150)
    budget.observe(first, 4, 2, 12, {"denoise": 100.0})
    assert budget.history[1].allowed_ms == pytest.approx(200)


def test_waiting_between_turns_counts_as_time():
    quick, waiting = Budget(fps(200), MOST, known()), Budget(fps(200), MOST, known())
    engine = Simulated(SPRITES, noise=0.0)
    now = {id(quick): 1, id(waiting): 1}
    for index in range(60):
        for budget, pause in ((quick, 0.0), (waiting, 80.0)):
            choice = budget.choose(index, now[id(budget)])
            rows = choice.expansions * (now[id(budget)] if index else choice.histories)
            now[id(budget)] = min(choice.histories, rows)
            work = Work(rows, now[id(budget)], rows * math.ceil(12 / choice.stride))
            times = engine.turn(1, work)
            wall = {"wall": sum(times.values()) + pause}
            budget.observe(choice, rows, now[id(budget)], 12, {**times, **wall})
    assert used(waiting, 10) == pytest.approx(1, abs=0.06)
    rows = [sum(s.rows for s in budget.history[10:]) for budget in (quick, waiting)]
    assert rows[1] < 0.7 * rows[0]


def test_videos_of_one_engine_learn_from_each_other():
    costs = Costs()
    Simulated(SPRITES, 0.05).run(Budget(fps(200), MOST, costs), 30)
    second = Budget(fps(200), MOST, costs)
    Simulated(SPRITES, 0.05, seed=4).run(second, 8)
    assert 0.8 <= used(second) <= 1.1


def test_the_report_says_what_was_chosen_and_the_pace_that_was_kept():
    budget = Budget(16, (2, 2, 1))
    assert budget.report() == "16 FPS: no chunk was made"
    for _ in range(5):
        chunk(budget, 600.0)
    assert budget.report() == "16 FPS: K 2 M 2 stride 1 for 5 chunks; kept 20.0"
    assert budget.kept_fps == pytest.approx(20)
    for _ in range(3):
        chunk(budget, 6000.0)
    words = budget.report()
    assert re.match(r"16 FPS: K 2 M 2 stride 1 for \d chunks, K \d M \d stride \d for \d", words)
    assert words.endswith("; kept 4.6")


def test_the_history_is_bounded():
    budget = Budget(16, (1, 1, 8))
    for _ in range(HISTORY + 10):
        chunk(budget, 100.0)
    assert len(budget.history) == HISTORY
    assert f"for {HISTORY + 10} chunks" in budget.report()


@pytest.mark.parametrize("pace", [0.0, -1.0, math.nan, math.inf])
def test_a_pace_that_is_none_is_refused(pace):
    with pytest.raises(ValueError, match="budget_fps: want a pace above 0, got"):
        Budget(pace, MOST)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="want K, M and stride of at least 1"):
        Budget(16, (0, 1, 1))
    budget = Budget(16, MOST)
    with pytest.raises(ValueError, match=r"want a share in \(0, 1\], got 0"):
        budget.observe(budget.choose(0, 1), 1, 1, 12, {"denoise": 1.0}, share=0)
