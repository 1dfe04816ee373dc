"""The numbers behind the curves of the quality report, and the points of the sweeps."""

import math

import pytest

from runtime.bench.quality import curves, sweeps
from runtime.bench.quality.curves import View
from runtime.bench.quality.methods import METHODS, SCALING, named
from runtime.bench.quality.row import RIGHT
from tests.quality_rows import row, rows


def scored(method, values, column="Subject"):
    """Rows whose column holds ``values``: one list of seeds per prompt."""
    return [
        row(method, prompt, seed, scores={column: value})
        for prompt, seeds in enumerate(values)
        for seed, value in enumerate(seeds)
    ]


def test_a_point_is_the_mean_over_prompts_of_the_mean_over_seeds():
    (line,) = curves.scaling(scored("stream-t1", [[1.0, 0.0], [0.25], [math.nan, 0.75]]), "Subject")
    (point,) = line.points
    assert point.mean == pytest.approx((0.5 + 0.25 + 0.75) / 3)
    assert point.prompts == 3 and point.low <= point.mean <= point.high


def test_the_gain_is_paired_by_prompt_and_seed():
    plain = scored("single", [[0.1], [0.9], [0.5]])
    better = scored("stream-t1", [[0.2], [1.0], [0.6], [7.0]])  # the last one has no partner
    (line,) = curves.scaling(plain + better, "Subject", View(gain=True))
    start, end = line.points
    assert (start.x, start.mean, start.low, start.high) == (1.0, 0.0, 0.0, 0.0)
    # Prompts differ by 0.8, every pair by 0.1: an unpaired interval would be wide.
    assert end.mean == pytest.approx(0.1) and end.high - end.low < 1e-9 and end.prompts == 3


def test_there_is_no_gain_without_plain_streaming():
    assert curves.scaling(rows(["stream-t1", "beam"]), "Subject", View(gain=True)) == []


def test_the_scaling_law_has_a_line_per_policy_that_begins_at_plain_streaming():
    made = rows([*SCALING, "stream-t1", "best-of-n", "best-of-n[4x4]", "beam", "no-sinking"])
    lines = {line.method: line for line in curves.scaling(made, "Subject")}
    assert set(lines) == {"stream-t1", "best-of-n", "beam"}
    assert [p.x for p in lines["stream-t1"].points] == [1, 2, 4, 8, 16]
    assert [p.x for p in lines["best-of-n"].points] == [1, 4, 16]
    assert all(line.points[0].name == "single" for line in lines.values())


def test_the_same_size_split_otherwise_stands_beside_the_line():
    made = rows([*SCALING, "stream-t1[8x2]", "stream-t1[1x4]", "stream-t1[noise.beta=0.3]"])
    (line,) = curves.scaling(made, "Subject")
    assert {(p.x, p.name) for p in line.loose} == {(16, "stream-t1[8x2]"), (4, "stream-t1[1x4]")}
    assert "stream-t1[4x4]" in {p.name for p in line.points}


def test_against_passes_a_point_stands_at_what_its_videos_took():
    made = rows(["single", "stream-t1"])
    (line,) = curves.scaling(made, "Subject", View(by_passes=True))
    took = {name: [r.cost.passes for r in made if r.key.method == name] for name in METHODS}
    assert [p.x for p in line.points] == [
        sum(took[name]) / len(took[name]) for name in ("single", "stream-t1")
    ]


def test_drift_is_the_change_since_each_videos_first_span():
    videos = [
        row("single", 0, over_time={"Subject": (0.5, 0.4)}),
        row("single", 1, over_time={"Subject": (0.9, 0.8)}),
        row("single", 2, over_time={"Subject": (0.9, math.nan)}),
    ]
    (change,) = curves.drift(videos, "Subject", change=True)
    assert [p.mean for p in change.points] == pytest.approx([0.0, -0.1])
    assert [p.prompts for p in change.points] == [3, 2]
    (level,) = curves.drift(videos, "Subject")
    assert [p.mean for p in level.points] == pytest.approx([2.3 / 3, 0.6])


def test_a_span_stands_at_its_middle_and_a_stub_at_the_end_is_left_out():
    (short,) = curves.drift([row("single", over_time={"Subject": (1.0, 1.0)})], "Subject")
    assert [p.x for p in short.points] == [1.5, 4.0]  # 0 to 3 s, 3 to 5 s
    eleven = row("single", seconds=30.0, over_time={"Subject": (1.0,) * 11})  # the last: one frame
    (long,) = curves.drift([eleven], "Subject")
    assert [p.x for p in long.points] == [1.5 + 3 * span for span in range(10)]


def test_columns_are_those_that_have_a_number():
    made = [row("single", scores={"Subject": math.nan, "Motion": 0.5, RIGHT: 1.0})]
    assert curves.columns(made) == [RIGHT, "Motion"]


def test_a_sweep_is_the_difference_to_the_defaults_own_videos():
    beta = sweeps.SWEEPS["noise.beta"]
    made = scored("stream-t1", [[0.1], [0.9]]) + scored("stream-t1[noise.beta=0.3]", [[0.3], [1.1]])
    series = curves.sweep(made, beta, "Subject")
    assert [(p.x, p.chosen) for p in series.points] == [(-0.1, True), (0.3, False)]
    assert [p.mean for p in series.points] == pytest.approx([0.0, 0.2])
    assert series.points[1].high - series.points[1].low < 1e-9  # paired
    even, ticks = curves.evenly(series)
    assert [p.x for p in even.points] == [0, 1] and ticks == ((0.0, "-0.1"), (1.0, "0.3"))


def test_a_sweep_without_its_default_or_with_it_alone_is_no_curve():
    beta = sweeps.SWEEPS["noise.beta"]
    others = ["stream-t1[noise.beta=0.3]", "stream-t1[noise.beta=0.0]"]
    assert curves.sweep(rows(others), beta, "Subject") is None
    assert curves.sweep(rows(["stream-t1", "beam"]), beta, "Subject") is None


@pytest.mark.parametrize("sweep", sweeps.SWEEPS.values(), ids=lambda sweep: sweep.setting)
def test_every_point_of_a_sweep_is_a_valid_setting_and_the_default_is_the_plain_method(sweep):
    assert sweep.default == sweeps.value_of(sweeps.USUAL, sweep.setting)
    assert sweep.default in sweep.values and list(sweep.values) == sorted(set(sweep.values))
    assert len(sweep.values) >= 4
    for value, method in zip(sweep.values, sweep.methods, strict=True):
        made = sweeps.USUAL.with_changes(named(method).changes)
        assert sweeps.value_of(made, sweep.setting) == value
        assert (method == "stream-t1") == (value == sweep.default)
        assert sweeps.place(method, sweep) == value
        back = made.with_changes({sweep.setting: sweep.default})
        assert back == sweeps.USUAL, "a sweep changes one setting alone"


def test_a_method_of_another_kind_is_no_point_of_a_sweep():
    beta = sweeps.SWEEPS["noise.beta"]
    for method in ("beam", "no-sinking", "stream-t1[noise.beta=0.3,reward.tau=1.0]", "gone[x=1]"):
        assert sweeps.place(method, beta) is None
    assert sweeps.place("stream-t1[2x2]", beta) == -0.1  # the default by another name
    assert sweeps.place("stream-t1[4x2]", sweeps.SWEEPS["search.histories"]) == 4.0


def test_sweeps_of_k_and_m_share_their_videos_with_the_scaling_law():
    made = {
        m for name in ("histories", "expansions") for m in sweeps.SWEEPS[f"search.{name}"].methods
    }
    assert {"stream-t1[1x2]", "stream-t1[2x4]"} <= made & set(SCALING)
