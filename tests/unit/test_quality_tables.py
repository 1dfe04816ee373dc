"""Tables show what rows hold: same videos, right marks, costs beside quality."""

import math

import pytest

from runtime.bench.quality import tables
from runtime.bench.quality.row import COLUMNS, RIGHT
from runtime.bench.quality.tables import as_markdown, as_text, cells, details, document, head, make
from tests.video_row import row

PROMPTS = 12


def videos(method, value, *, prompts=PROMPTS, column="VQ", passes=34, seconds=5.0, spread=0.001):
    """One row per prompt around ``value``: names of odd length are above where those of even length are below."""
    signs = [(-1) ** (p + len(method)) for p in range(prompts)]
    return [
        row(method, p, {column: value + spread * sign}, passes=passes, seconds=seconds)
        for p, sign in enumerate(signs)
    ]


def by_title(rows):
    return {made.title: made for made in make(rows)}


def line_of(made, method):
    return next(line for line in made.lines if line.method == method)


@pytest.mark.parametrize(
    ("value", "mark", "word"),
    [
        (0.6, "+", "better in 1, worse in 0 of 1"),
        (0.4, "-", "better in 0, worse in 1 of 1"),
        (0.5, "=", "no difference"),
    ],
)
def test_a_row_says_better_worse_or_no_difference(value, mark, word):
    made = by_title([*videos("single", 0.5), *videos("stream-t1", value)])["Five seconds"]
    shown = cells(line_of(made, "stream-t1"), made)
    assert shown[1] == f"{line_of(made, 'stream-t1').means['VQ']:.3f}{mark}" and shown[-1] == word
    assert cells(line_of(made, "single"), made)[-1] == "reference"


def test_few_prompts_decide_nothing():
    rows = [*videos("single", 0.5, prompts=3), *videos("stream-t1", 0.9, prompts=3)]
    made = by_title(rows)["Five seconds"]
    shown = cells(made.lines[1], made)
    assert shown[1].endswith("?") and shown[-1] == "too few prompts"


def test_only_videos_that_all_methods_made_are_in_a_table():
    """The missing video is a very good one: with it the two means would not be of the same prompts."""
    rows = [
        *videos("single", 0.5),
        row("single", PROMPTS, {"VQ": 100.0}),
        *videos("stream-t1", 0.5),
    ]
    made = by_title(rows)["Five seconds"]
    assert made.prompts == PROMPTS and made.lines[0].means["VQ"] == pytest.approx(0.5, abs=0.01)
    assert "1 videos that not all of these methods made" in made.note and made.note in as_text(made)


def test_lengths_are_not_mixed_and_the_five_second_table_is_of_five_seconds():
    rows = [
        *videos("single", 0.5),
        *videos("stream-t1", 0.5),
        *videos("single", 0.2, seconds=30.0),
        *videos("stream-t1", 0.3, seconds=30.0),
    ]
    made = {(one.title, one.seconds): one for one in make(rows)}
    assert ("Five seconds", 30.0) not in made and ("Thirty seconds", 5.0) not in made
    assert made["Thirty seconds", 30.0].lines[0].means["VQ"] == pytest.approx(0.2, abs=0.01)


def test_each_table_is_against_its_own_reference():
    rows = [*videos("single", 0.1), *videos("stream-t1", 0.5), *videos("no-sinking", 0.4)]
    made = by_title(rows)["What each part is worth"]
    assert [line.method for line in made.lines] == ["stream-t1", "no-sinking"]
    assert made.reference == "Stream-T1"
    assert made.lines[1].against["VQ"].difference.mean == pytest.approx(-0.1, abs=0.01)


def test_a_table_needs_its_reference_and_somebody_else():
    assert make(videos("stream-t1", 0.5)) == []
    assert "What each part is worth" not in by_title(
        [*videos("no-sinking", 0.5), *videos("no-pruning", 0.5)]
    )


def test_the_same_methods_are_not_shown_twice():
    made = make([*videos("single", 0.5), *videos("stream-t1", 0.6)])
    assert [one.title for one in made] == ["Five seconds"]


def test_equal_compute_takes_what_is_within_ten_percent_of_the_passes():
    rows = [
        *videos("single", 0.5, passes=34),
        *videos("stream-t1[noise.beta=0.3]", 0.5, passes=100),
        *videos("stream-t1[2x2]", 0.5, passes=100),
        *videos("stream-t1", 0.5, passes=91),
        *videos("beam", 0.5, passes=89),
        *videos("no-sinking", 0.5, passes=100),
        *videos("best-of-n", 0.5, passes=100),
    ]
    made = by_title(rows)["Equal compute: about 100 passes"]
    # [2x2] is stream-t1 by another name; what is swept or left out has tables of its own
    assert [line.method for line in made.lines] == ["best-of-n", "stream-t1"]
    assert [line.costs["passes"] for line in made.lines] == [100, 91]


def test_every_size_of_best_of_n_has_its_equals():
    rows = [
        *videos("best-of-n", 0.5, passes=100),
        *videos("stream-t1", 0.5, passes=100),
        *videos("best-of-n[4x4]", 0.5, passes=400),
        *videos("stream-t1[4x4]", 0.5, passes=390),
    ]
    found = by_title(rows)
    made = found["Equal compute: about 400 passes"]
    assert [line.method for line in made.lines] == ["best-of-n[4x4]", "stream-t1[4x4]"]
    assert len([title for title in found if title.startswith("Equal compute")]) == 2


def test_the_scaling_law_has_a_table_of_its_own():
    rows = [r for m in ("single", "stream-t1[1x2]", "stream-t1[2x2]") for r in videos(m, 0.5)]
    assert len(by_title(rows)["Test-time scaling"].lines) == 3


def test_costs_are_means_over_the_videos():
    rows = [
        row(m, p, {"VQ": 0.5}, passes=10 * (1 + p)) for m in ("single", "stream-t1") for p in (0, 1)
    ]
    made = by_title(rows)["Five seconds"]
    shown = dict(zip(head(made), cells(made.lines[0], made), strict=True))
    assert (
        shown["passes"] == "15" and shown["decoded frames"] == "81" and shown["seconds"] == "0.50"
    )


def test_a_column_without_a_number_is_left_out_and_a_missing_mean_is_a_dash():
    rows = [row("single", 0, {"VQ": math.nan, "TA": 0.5}), row("stream-t1", 0, {"TA": 0.5})]
    assert by_title(rows)["Five seconds"].columns == ("TA",)
    rows = [row("single", 0, {"VQ": 0.5}), row("stream-t1", 0, {"TA": 0.5})]
    made = by_title(rows)["Five seconds"]
    assert cells(made.lines[1], made)[1].strip(" ?") == tables.NOT_MEASURED
    assert details(made)[0][1] == tables.NOT_MEASURED


def test_shares_are_percentages_and_their_differences_points():
    rows = [
        *videos("single", 0.5, column=RIGHT, spread=0),
        *videos("stream-t1", 0.75, column=RIGHT, spread=0),
    ]
    made = by_title(rows)["Five seconds"]
    assert cells(made.lines[1], made)[1] == "75.0%+"
    assert details(made)[0] == ["Stream-T1", "+25.0 (+25.0 to +25.0)"]


def test_the_terminal_says_by_how_much():
    text = as_text(by_title([*videos("single", 0.5), *videos("stream-t1", 0.6)])["Five seconds"])
    assert text.startswith(
        "Five seconds: 5 s videos, 12 prompts of 1 seed, against Plain streaming"
    )
    assert "  Stream-T1: better in 1, worse in 0 of 1: VQ +0.100 (+0.099 to +0.101)" in text
    lines = text.splitlines()
    assert len({len(line) for line in lines[1:4]}) == 1  # columns stand below each other
    assert lines[3].endswith("0.50") and "verdict" not in text.lower()


def test_a_full_table_fits_a_wide_terminal():
    columns = dict.fromkeys((*COLUMNS, RIGHT), 0.5)
    rows = [row(m, p, columns) for m in ("stream-t1", "no-propagation") for p in range(PROMPTS)]
    text = as_text(by_title(rows)["What each part is worth"])
    assert max(map(len, text.splitlines())) <= 130


def test_markdown_is_a_table_with_one_width():
    rows = [*videos("single", 0.5), *videos("stream-t1", 0.6)]
    made = by_title(rows)["Five seconds"]
    lines = [line for line in as_markdown(made).splitlines() if line.startswith("|")]
    assert len(lines) == 4 + 3 and lines[1].startswith("| --- | ---: |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    whole = document([made], "`python -m x`.")
    assert whole.startswith("# Quality") and tables.LEGEND in whole and "`python -m x`." in whole
