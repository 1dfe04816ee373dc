"""The page of the quality comparison: whole, true to its rows, safe with what anybody may hand in, honest about gaps."""

import html
import json
import math
import re
from dataclasses import replace

import pytest
import torch

from runtime.bench.quality import (
    curves,
    plots,
    report,
    report_paper,
    report_routes,
    report_tables,
    tables,
)
from runtime.bench.quality.methods import SCALING
from runtime.bench.quality.report_figures import drift_chart, scaling_chart
from runtime.bench.quality.report_lines import Frame, chart, spread, tick_text, ticks_between
from runtime.bench.quality.row import COLUMNS, RIGHT
from runtime.bench.quality.store import Store, save_frames
from tests.html_reader import Reader
from tests.quality_rows import everything, row, rows

FACTS = {"world": "sprites", "made": {"commit": "abc1234", "command": "python -m quality"}}
SECTIONS = {
    "tables": "What came out",
    "the paper's rows": "Beside the paper",
    "strips": "What it looks like",
    "the scaling law": "What more candidates buy",
    "drift over time": "Drift over time",
    "route maps": "What became of each chunk",
    "sweeps": "One setting at a time",
    "diagnosis": "Why: what limits the search",
}
HOSTILE = "</td></svg><script>alert(1)</script>\"'&"
WHY = {
    "about": {"candidates": 140, "prompts": 2, "seconds": 4.0},
    "agreement": [
        {"reward": reward, "measure": f"Subject of the {scope}", "within": 0.321, "low": None, "high": None}
        for reward in ("short", "long", "fused")
        for scope in ("chunk", "video")
    ],
    "regret": {
        reward: {"Subject": {"picks_best": 0.4, "chance": 0.25, "share": 0.18, "low": 0.1, "high": 0.2}}
        for reward in ("short", "long", "fused")
    },
    "oracle": [{"method": "oracle", "Subject": 0.9, "gain": 0.011, "low": 0.001, "high": 0.02}],
    "siblings": {"short": {"spread": 0.1, "std": 0.05, "share": None, "differ": 1.0}},
    "gates": {"quality_gain": {"0.5": -0.01, "threshold": 0.0, "above": 0.43}},
    "noise": {
        "Subject": {
            kind: {"r": 0.1, "low": -0.1, "high": 0.3}
            for kind in ("other_history", "next_chunk", "carried")
        }
    },
    "drift": {"chunk": [0, 1], "Subject": [0.9, 0.8]},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with every section, and its rows."""
    folder = tmp_path_factory.mktemp("quality")
    made = everything()
    frames = torch.zeros(81, 3, 96, 96, dtype=torch.uint8)
    for place, one in enumerate(made):
        if (one.key.prompt, one.key.seed, one.key.seconds) == (0, 0, 5.0):
            made[place] = replace(one, file=save_frames(folder, one.key, frames))
    (folder / "why.json").write_text(json.dumps(WHY))
    return report.page(folder, made, FACTS), made


def missing(page: str) -> list[str]:
    """What the page says it lacks."""
    found = re.search(r"<dt>Not here</dt><dd class=\"missing\">([^:]*):", page)
    return html.unescape(found[1]).split(", ") if found else []


def test_a_full_page_has_every_section_and_nothing_from_elsewhere(whole):
    text, _ = whole
    reader = Reader(text)
    for heading in SECTIONS.values():
        assert heading in reader.text, heading
    assert missing(text) == []
    assert "script" not in reader.tags and "link" not in reader.tags
    sources = [value for name, value in reader.attributes if name in ("src", "href")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "None" not in reader.text and not re.search(r"\bnan\b", reader.text)
    assert len(text) < 3_000_000


def test_the_tables_numbers_are_those_of_the_rows(whole):
    text, made = whole
    words = Reader(text).text
    mine = [r for r in made if r.key.seconds == 30.0]
    by_method = {m: [r for r in mine if r.key.method == m] for m in ("single", "stream-t1")}
    for column in COLUMNS:
        mean = {m: sum(r.scores[column] for r in its) / len(its) for m, its in by_method.items()}
        assert f"{mean['single']:.3f}" in words and f"{mean['stream-t1']:.3f}" in words
        assert f"{mean['stream-t1'] - mean['single']:+.3f}" in words
    right = sum(r.scores[RIGHT] for r in by_method["stream-t1"]) / len(by_method["stream-t1"])
    assert f"{right:.1%}" in words
    passes = sum(r.cost.passes for r in by_method["stream-t1"]) / len(by_method["stream-t1"])
    assert f" {passes:,.0f} " in words


def test_a_tables_words_and_colours_follow_the_comparison():
    clear = [
        row("single", p, scores={"Subject": 0.5, "Motion": 0.5, "Imaging": 0.5}) for p in range(9)
    ]
    clear += [
        row(
            "stream-t1", p, scores={"Subject": 0.6, "Motion": 0.4, "Imaging": 0.5 + 0.1 * (-1) ** p}
        )
        for p in range(9)
    ]
    (made,) = [t for t in tables.make(clear) if t.title == "Five seconds"]
    page = report_tables.outcome([made])
    assert '<span class="better">+0.100 +</span>' in page
    assert '<span class="worse">-0.100 -</span>' in page
    assert '<span class="same">+0.011 =</span>' in page
    assert "better in 1, worse in 1 of 3" in page


def test_a_difference_that_rounds_to_zero_is_not_written_as_zero():
    made = [row("single", p, scores={"Subject": 0.5, "Motion": 0.5}) for p in range(9)]
    made += [row("stream-t1", p, scores={"Subject": 0.50002, "Motion": 0.5}) for p in range(9)]
    (table,) = [t for t in tables.make(made) if t.title == "Five seconds"]
    page = report_tables.outcome([table])
    assert "+2e-05 +" in page and "+0.000 =" in page


def test_the_papers_differences_stand_above_ours_in_the_colour_of_their_agreement():
    ours = {"single": {"Subject": 0.5, "Motion": 0.5}, "stream-t1": {"Subject": 0.6, "Motion": 0.4}}
    made = [row(method, p, scores=scores) for method, scores in ours.items() for p in range(9)]
    page = report_paper.section({"sprites": tables.make(made)})
    # The paper's at five seconds: 97.25 against 97.00, 99.15 against 99.12.
    assert '+0.25<small class="better">+0.100 +</small>' in page
    assert '+0.03<small class="worse">-0.100 -</small>' in page
    assert report_paper.section({"sprites": tables.make(rows(["single", "beam"]))}) == ""


def test_a_charts_points_say_the_means_of_the_rows(whole):
    text, made = whole
    mine = [r for r in made if r.key.seconds == 5.0]
    for column in ("Subject", "TA"):
        for one in curves.scaling(mine, column):
            for point in one.points:
                title = f"{point.name}, K × M, candidates of a chunk (log) {point.x:g}: {point.mean:.4f}"
                assert html.escape(title) in text


@pytest.mark.parametrize(
    ("made", "lacking"),
    [
        (
            rows(["stream-t1"]),
            {"tables", "the paper's rows", "strips", "the scaling law", "sweeps", "diagnosis"},
        ),
        (
            rows(["single", "beam"]),
            {"the paper's rows", "strips", "route maps", "sweeps", "diagnosis"},
        ),
        (rows(["single", "stream-t1"], prompts=1, seeds=1), {"strips", "sweeps", "diagnosis"}),
        (
            [replace(r, over_time={}, routes=()) for r in rows(["single", "stream-t1"])],
            {"strips", "drift over time", "route maps", "sweeps", "diagnosis"},
        ),
    ],
    ids=["one method", "no sinking", "one prompt", "no spans"],
)
def test_what_is_missing_is_said_and_never_drawn(made, lacking, tmp_path):
    text = report.page(tmp_path, made, FACTS)
    assert set(missing(text)) == lacking
    words = Reader(text).text
    for part, heading in SECTIONS.items():
        assert (heading in words) == (part not in lacking), part


def test_scores_that_are_not_known_leave_gaps_and_no_nan(tmp_path):
    made = [
        replace(
            r, scores={c: math.nan if c in ("Motion", RIGHT) else v for c, v in r.scores.items()}
        )
        for r in rows(["single", "stream-t1"])
    ]
    words = Reader(report.page(tmp_path, made, {})).text
    assert "Subject" in words and "nan" not in words
    glance = words[words.index("What came out") : words.index("Five seconds")]
    assert "Imaging" in glance and "Motion" not in glance
    with pytest.raises(ValueError, match="want at least one row"):
        report.page(tmp_path, [], {})


def test_hostile_texts_and_names_stay_text(tmp_path):
    made = [
        replace(r, text=HOSTILE, seen={HOSTILE: HOSTILE}, routes=(HOSTILE, *r.routes[1:]))
        for r in rows(["single", "stream-t1"], prompts=2)
    ]
    made += [replace(row(HOSTILE), key=replace(row(HOSTILE).key, world=HOSTILE))]
    made[0] = replace(
        made[0], file=save_frames(tmp_path, made[0].key, torch.zeros(9, 3, 96, 96).byte())
    )
    spoiled = {**WHY, "siblings": {HOSTILE: WHY["siblings"]["short"]}}
    spoiled["oracle"] = [{**WHY["oracle"][0], "method": HOSTILE}]
    (tmp_path / "why.json").write_text(json.dumps(spoiled))
    text = report.page(
        tmp_path, made, {HOSTILE: HOSTILE, "made": {"command": HOSTILE, "commit": HOSTILE}}
    )
    assert "<script" not in text and HOSTILE not in text
    assert html.escape(HOSTILE) in text
    Reader(text)


def test_an_unknown_method_of_another_version_is_shown_by_its_name(tmp_path):
    text = report.page(tmp_path, rows(["single", "stream-t1[4x2]", "stream-t9[a b]"]), {})
    Reader(text)
    assert "2 seeds" in text  # a page is made, and closes what it opens


def test_a_diagnosis_of_another_version_is_said_to_be_unreadable_part_by_part(tmp_path):
    made = rows(["single", "stream-t1"], prompts=2)
    (tmp_path / "why.json").write_text(json.dumps({**WHY, "gates": [], "noise": {"Subject": 3}}))
    words = Reader(report.page(tmp_path, made, {})).text
    assert words.count("not readable") == 2
    assert "oracle 0.900 +0.011 (+0.001 to +0.020)" in words
    (tmp_path / "why.json").write_text("[1, 2]")
    assert "why.json is no diagnosis of this version" in report.page(tmp_path, made, {})


def test_frames_that_are_gone_are_said_where_the_strip_would_be(tmp_path):
    made = rows(["single", "stream-t1"], prompts=2)
    made[0] = replace(made[0], file="frames/gone.npz")
    words = Reader(report.page(tmp_path, made, {})).text
    assert "not drawn:" in words and "gone.npz" in words


def test_tuning_prompts_are_shown_in_sweeps_and_counted_in_no_result(tmp_path):
    held = rows(["single", "stream-t1"])
    tuned = [
        replace(r, key=replace(r.key, world="sprites-tuning"))
        for r in rows(["single", "stream-t1", "stream-t1[noise.beta=0.3]"])
    ]
    words = Reader(report.page(tmp_path, [*held, *tuned], {})).text
    assert "One setting at a time (5 s, sprites-tuning)" in words
    assert "Five seconds (5 s, sprites)" in words
    assert "Five seconds (5 s, sprites-tuning)" not in words
    assert "Drift over time (5 s, sprites-tuning)" not in words


def test_route_maps_count_every_video_and_draw_the_first_ones():
    made = [row("stream-t1", p, routes=("discard", "ema", "ema", "append")) for p in range(30)]
    made += [row("no-sinking", p, routes=("discard",) * 4) for p in range(3)]
    picture = report_routes.route_map(made)
    assert "30 videos, 24 drawn" in picture and "ema in 30 of 30" not in picture
    assert "chunk 2: merged into a sink in 30 of 30 videos" in picture
    assert "stream-t1: discard 25 %, ema 50 %, append 25 %" in picture
    cells = {c: d.count("M") for d, c in re.findall(r'<path d="([^"]+)" class="(\w+)"', picture)}
    assert cells == {"s0": 24, "s2": 48, "s3": 24}
    assert "without memory sinking" not in picture
    assert "without memory sinking" in report_routes.left_out(made)


def texts(picture: str) -> list[tuple[float, float, float, float, str]]:
    """(left, right, top, bottom, words) of every text of an SVG, with a generous width for its letters."""
    found = []
    pattern = r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)" class="[^"]*">([^<]*)</text>'
    for x, y, anchor, words in re.findall(pattern, picture):
        wide = 6.4 * len(html.unescape(words))
        left = float(x) - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        found.append((left, left + wide, float(y) - 9, float(y) + 2, words))
    return found


@pytest.mark.parametrize(
    "picture",
    [
        scaling_chart(everything(), "Subject"),
        drift_chart(rows(["single", "stream-t1", "no-sinking", "no-propagation", "no-pruning"], 2, 1), "TA"),
        chart(
            curves.drift(rows([*SCALING, "no-pruning", "beam", "released"], 2, 1), "Subject"),
            Frame("Subject", "s", tuple((i / 7, f"{i * 1111}") for i in range(30))),
        ),
        report_routes.route_map(rows(["stream-t1", "no-propagation", "stream-t1[noise.beta=0.3]"], 1, 1)),
    ],
    ids=["scaling", "drift", "many lines and ticks", "routes"],
)  # fmt: skip
def test_no_two_texts_of_a_picture_overlap(picture):
    placed = texts(picture)
    assert len(placed) > 8
    for place, (left, right, top, bottom, words) in enumerate(placed):
        assert left > -1, words
        for other in placed[place + 1 :]:
            apart = right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
            assert apart, (words, other[4])


def test_labels_keep_their_order_and_distance_and_stay_inside():
    assert spread([10, 12, 50], 13, 0, 60) == [10, 23, 50]
    low = spread([55, 57, 59], 13, 0, 60)
    assert low == [34, 47, 60]
    assert spread([5.0], 13, 0, 60) == [5.0]


def test_ticks_hold_the_values_and_tell_themselves_apart():
    for low, high in ((0.891, 0.913), (-0.4, 1.7), (0.5, 0.5), (-2.0, -1.99), (1000.0, 1001.0)):
        ticks = ticks_between(low, high)
        assert ticks[0] <= low and high <= ticks[-1] + 1e-9 and 3 <= len(ticks) <= 8
        said = [tick_text(tick, ticks) for tick in ticks]
        assert len(set(said)) == len(said) and "-0.0" not in said
        assert all(
            float(words) == pytest.approx(t, abs=1e-9) for words, t in zip(said, ticks, strict=True)
        )


def test_the_doors_write_a_page_and_pictures_from_a_folder(tmp_path, capsys):
    store = Store(tmp_path / "run", FACTS)
    store.add(rows(["single", "stream-t1", "no-sinking"], prompts=3, seeds=1))
    store.close()
    out = tmp_path / "page.html"
    assert report.main([str(tmp_path / "run"), "-o", str(out)]) == 0
    words = Reader(out.read_text(encoding="utf-8")).text
    assert "abc1234" in words and "9: 9 of 5 s (sprites); 3 prompts, 1 seed " in words
    assert report.main([str(tmp_path / "none"), "-o", str(out)]) == 2
    assert "error: " in capsys.readouterr().err


def test_pictures_for_documents_are_drawn_or_refused_with_a_reason(tmp_path):
    pytest.importorskip("matplotlib")
    made = rows(["single", "stream-t1", "no-sinking"], prompts=3, seeds=1)
    plots.scaling(made, ["Subject"], tmp_path / "scaling.png")
    plots.drift(made, ["Subject"], tmp_path / "drift.png")
    for name in ("scaling.png", "drift.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="Subject: no curve to draw"):
        plots.scaling(rows(["stream-t1"]), ["Subject"], tmp_path / "no.png")
    inks = plots.palette()
    assert inks["c2"] == "#2f65d9" and {"c0", "c8", "o0", "o2"} <= set(inks)


def test_an_unknown_length_is_refused_by_the_picture_door(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    store = Store(tmp_path, FACTS)
    store.add(rows(["single"], prompts=1, seeds=1))
    store.close()
    asked = [str(tmp_path), "--scaling", "Subject", "--seconds", "7", "-o", str(tmp_path / "x.png")]
    assert plots.main(asked) == 2
    assert "--seconds: want one of 5, got 7" in capsys.readouterr().err
