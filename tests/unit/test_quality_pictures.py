"""The pictures of the quality report: every video counted, no text on another, scales that tell values apart."""

import html
import re

import pytest

from runtime.bench.quality import curves, plots, report_routes
from runtime.bench.quality.methods import SCALING
from runtime.bench.quality.report_figures import drift_chart, scaling_chart
from runtime.bench.quality.report_lines import Frame, chart, spread, tick_text, ticks_between
from runtime.bench.quality.store import Store
from tests.quality_rows import everything, row, rows

FACTS = {"world": "sprites", "made": {"commit": "abc1234"}}


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
