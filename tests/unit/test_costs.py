"""What is learnt of a chunk's costs from few and noisy times."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.costs import DOUBT, FIRST, FIXED, SIZES, STALE, Costs, Work


def work(rows: float, kept: float = 2, pictures: float = 24) -> Work:
    return Work(rows, kept, pictures)


def seen(*turns: tuple[float, float]) -> Costs:
    """Costs that saw (rows, ms) of the denoise stage."""
    costs = Costs()
    for rows, ms in turns:
        costs.observe(work(rows), {"denoise": ms})
    return costs


def test_one_size_gives_itself_back_and_a_line_with_a_fixed_share():
    costs = seen((4, 100.0), (4, 100.0))
    assert costs.predict(work(4)) == pytest.approx(100)
    assert costs.predict(work(8)) == pytest.approx(100 * (FIXED + 2 * (1 - FIXED)))
    assert costs.predict(work(1)) == pytest.approx(100 * (FIXED + (1 - FIXED) / 4))


def test_several_sizes_give_the_line_through_them():
    costs = seen(*[(rows, 30 + 10 * rows) for rows in (1, 2, 4, 1, 2, 4, 1, 2, 4)])
    fixed, each = costs.line("denoise")
    assert fixed == pytest.approx(30, rel=0.1) and each == pytest.approx(10, rel=0.1)
    assert costs.predict(work(8)) == pytest.approx(110, rel=0.05)


def test_a_line_is_learnt_from_a_dozen_noisy_chunks():
    source = random.Random(1)
    turns = [(rows, (20 + 15 * rows) * source.lognormvariate(0, 0.08)) for rows in (2, 4, 6) * 4]
    costs = seen(*turns)
    for rows in (1, 2, 3, 4, 6, 8):
        assert costs.predict(work(rows)) == pytest.approx(20 + 15 * rows, rel=0.15)


@pytest.mark.parametrize("turns", [[(1, 50.0), (8, 20.0)], [(2, 10.0), (4, 90.0)]], ids=str)
def test_no_part_of_a_line_is_negative(turns):
    fixed, each = seen(*turns * 3).line("denoise")
    assert fixed >= 0 and each >= 0 and fixed + each > 0


def test_stages_grow_with_what_they_work_on():
    costs = Costs()
    costs.observe(
        Work(4, 2, 48), {"denoise": 40, "memory": 20, "image reward": 10, "new": 8, "text": 500}
    )
    assert costs.predict(Work(4, 2, 48)) == pytest.approx(78), "text is no part of a chunk"
    share = FIXED + (1 - FIXED) / 2
    assert costs.predict(Work(2, 2, 48)) == pytest.approx(30 + 48 * share)
    assert costs.predict(Work(4, 1, 48)) == pytest.approx(58 + 20 * share)
    assert costs.predict(Work(4, 2, 24)) == pytest.approx(68 + 10 * share)


def test_a_single_hiccup_changes_nothing_where_much_is_known():
    costs = seen((4, 100), (4, 101), (4, 99), (4, 1000), (4, 100))
    assert costs.predict(work(4)) == pytest.approx(100, rel=0.01)
    assert costs.predict(work(8)) == pytest.approx(180, rel=0.01)


def test_a_new_size_is_believed_only_so_far_the_first_time():
    costs = seen((4, 100), (4, 100), (8, 5000))
    assert costs.predict(work(8)) <= 180 * FIRST * 1.01
    costs = seen((4, 100), (4, 100), *[(8, 5000)] * 5)
    assert costs.predict(work(8)) > 4000, "five times is no hiccup"


def test_the_same_work_slower_twice_in_a_row_makes_everything_slower():
    turns = [(1, 25.0), (4, 100.0)] * 4
    before = seen(*turns).predict(work(1))
    once = seen(*turns, (4, 200)).predict(work(1))
    twice = seen(*turns, (4, 200), (4, 200)).predict(work(1))
    assert once == pytest.approx(before, rel=0.05)
    assert twice == pytest.approx(2 * before, rel=0.05)
    back = seen(*turns, *[(4, 200)] * 6, *[(4, 100)] * 2).predict(work(1))
    assert back == pytest.approx(before, rel=0.05)


def test_two_chunks_that_disagree_about_the_pace_change_nothing():
    turns = [(1, 25.0), (4, 100.0)] * 4
    before = seen(*turns).predict(work(1))
    assert seen(*turns, (4, 200), (4, 40)).predict(work(1)) == pytest.approx(before, rel=0.06)


def test_a_turn_told_by_each_of_its_videos_counts_once():
    costs, videos = Costs(), [object(), object(), object()]
    for turn in (1, 2):
        for video in videos:
            costs.observe(work(4), {"denoise": 100.0}, video)
        assert costs.turns == turn, "the same times again, from the same video, are another turn"
    costs.observe(work(4), {"denoise": 101.0}, videos[1])
    assert costs.turns == 3


def test_times_that_are_no_times_are_left_out():
    costs = Costs()
    costs.observe(work(4), {"denoise": float("nan"), "decode": float("inf"), "select": -1.0})
    assert not costs.known and costs.turns == 0
    with pytest.raises(RuntimeError, match="nothing was measured yet"):
        costs.predict(work(4))


def test_a_size_that_comes_back_after_long_is_learnt_anew():
    costs = seen((2, 100), (2, 100), (2, 100), *[(4, 100)] * STALE, (2, 60))
    assert costs.predict(work(2)) < 90


def test_only_so_many_sizes_are_remembered():
    costs = seen(*[(rows, 10.0 * rows) for rows in range(1, 3 * SIZES)])
    assert len(json.loads(costs.to_json())["stages"]["denoise"]) == SIZES


def test_a_file_brings_the_same_predictions_back(tmp_path):
    costs = seen((1, 20), (4, 50), (2, 31), (4, 52))
    costs.place = "cpu sprites float32"
    costs.save(tmp_path / "costs.json")
    again = Costs.load(tmp_path / "costs.json", "cpu sprites float32")
    for rows in (1, 2, 3, 4, 9):
        assert again.predict(work(rows)) == costs.predict(work(rows))
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]


def test_a_file_of_another_machine_is_refused(tmp_path):
    costs = seen((1, 20))
    costs.place = "an abacus"
    costs.save(tmp_path / "costs.json")
    with pytest.raises(ValueError, match="measured on 'an abacus', but this is 'cpu'; remove"):
        Costs.load(tmp_path / "costs.json", "cpu")


GOOD = json.loads(seen((1, 20), (2, 30)).to_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 5000,
        json.dumps({**GOOD, "version": 2}),
        json.dumps({**GOOD, "turns": -1}),
        json.dumps({**GOOD, "stages": [1]}),
        json.dumps({**GOOD, "stages": {"denoise": [[1, ["a"], 0]]}}),
        json.dumps({**GOOD, "stages": {"denoise": [[1, [float("nan")], 0]]}}),
        json.dumps({**GOOD, "stages": {"denoise": [[1, [-5], 0]]}}),
        json.dumps({**GOOD, "stages": {"denoise": [[1, [10**400], 0]]}}),
        json.dumps({**GOOD, "stages": {"denoise": [[True, [1.0], 0]]}}),
    ],
    ids=range(12),
)
def test_what_is_no_file_of_costs_is_refused(text):
    with pytest.raises(ValueError, match="costs: not a file of measured costs"):
        Costs.from_json(text)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["denoise", "x"]), inner, max_size=2)
        ),
        max_leaves=8,
    ),
    st.sampled_from(["stages", "turns", "place", "format"]),
)
def test_a_changed_file_is_read_or_refused_and_nothing_else(value, key):
    try:
        costs = Costs.from_json(json.dumps({**GOOD, key: value}))
    except ValueError:
        return
    if costs.known:
        assert costs.predict(work(3)) >= 0


def test_a_huge_file_is_not_read(tmp_path):
    (tmp_path / "costs.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        Costs.load(tmp_path / "costs.json")


def test_the_guess_counts_for_less_than_one_sample():
    assert 0 < DOUBT < 1, "else two sizes could not overrule it"
