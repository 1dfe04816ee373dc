"""The search tree as a picture: everything in it, no line across another, and errors in one line."""

import json
import math
from itertools import pairwise

import pytest

pytest.importorskip("matplotlib", reason="drawing is an extra")

from runtime.bench.tree import ACCENT, INK, draw, main, plan_layout, planar
from runtime.settings import Settings
from runtime.trace import TraceWriter, read_trace
from tests.fake_engine import FakeEngine

PROMPT = "a red disc for $5 and a $10 bill"


def traced(path, *, size=24, **changes):
    """A trace of a fake video under dotted settings with ``_`` for the dot."""
    settings = Settings().with_changes({k.replace("_", ".", 1): v for k, v in changes.items()})
    engine = FakeEngine(settings, size=size)
    with TraceWriter(path) as trace:
        trace.begin(PROMPT, settings, engine.fps, engine.chunks, engine.implementations)
        for event in engine.stream(PROMPT, watch=trace):
            trace.settled(event)
    return read_trace(path)


def words(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def colours(patches):
    from matplotlib.colors import to_hex

    return [to_hex(patch.get_edgecolor()) for patch in patches]


def test_every_candidate_is_there_with_score_and_seed(tmp_path):
    trace = traced(tmp_path / "t.json")
    figure = draw(trace)
    candidates = [c for chunk in trace.chunks for c in chunk.candidates]
    assert len(figure.axes[0].images) == len(candidates) == 28
    said = words(figure)
    assert PROMPT in said
    assert {f"chunk {n}" for n in range(7)} <= set(said)
    for candidate in candidates:
        assert f"{candidate.fused:.3f}" in said
        assert f"seed {candidate.seed}" in said


def test_survivors_are_framed_and_the_video_stands_out(tmp_path):
    from matplotlib.patches import PathPatch, Rectangle

    trace = traced(tmp_path / "t.json")
    patches = draw(trace).axes[0].patches
    frames = colours([p for p in patches if isinstance(p, Rectangle) and not p.get_fill()])
    lines = colours([p for p in patches if isinstance(p, PathPatch)])
    assert (frames.count(ACCENT), frames.count(INK)) == (7, 7)
    assert (len(lines), lines.count(ACCENT)) == (24, 6)


@pytest.mark.parametrize("policy", ["single", "best-of-n", "beam", "stream-t1"])
def test_no_two_lines_cross(tmp_path, policy):
    trace = traced(
        tmp_path / "t.json", search_policy=policy, search_histories=3, search_expansions=4
    )
    for parents, children in pairwise(planar(trace.chunks)):
        places = {c.rank: row for row, c in enumerate(parents) if c.rank is not None}
        starts = [places[child.parent] for child in children]
        assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("columns", "rows", "aspect"), [(7, 4, 1.0), (1, 1, 0.58), (40, 16, 1.0), (60, 128, 1.8)]
)
def test_everything_stays_inside_and_nothing_overlaps(columns, rows, aspect):
    layout = plan_layout(columns, rows, aspect)
    width, height = layout.picture
    for column in (0, columns - 1):
        for row in (0, rows - 1):
            x, y = layout.place(column, row, rows)
            assert layout.margin <= x + 1e-9
            assert x + width <= layout.size[0] - layout.margin + 1e-9
            assert layout.bottom - 0.1 <= y and y + height <= layout.size[1] - layout.top + 0.15
    assert layout.pitch[0] > width and layout.pitch[1] > height
    assert layout.text == (columns == 7 or columns == 1)


def test_a_large_search_is_drawn_without_words(tmp_path):
    trace = traced(tmp_path / "t.json", size=8, seconds=16.0)
    figure = draw(trace)
    assert len(figure.axes[0].images) == 22 * 4
    assert not any("seed " in text and "·" not in text for text in words(figure))
    assert "5" in words(figure) and "6" not in words(figure)


def change(path, edit):
    whole = json.loads(path.read_text())
    edit(whole)
    path.write_text(json.dumps(whole))


def test_what_is_missing_is_left_out(tmp_path):
    traced(tmp_path / "t.json")

    def spoil(whole):
        whole.update(path=[], outcome="interrupted", settings={})
        for candidate in whole["chunks"][0]["candidates"]:
            candidate.update(fused=None, thumbnail="bm8ganBlZw==")

    change(tmp_path / "t.json", spoil)
    trace = read_trace(tmp_path / "t.json")
    assert math.isnan(trace.chunks[0].candidates[0].fused)
    figure = draw(trace)
    assert "no score" in words(figure)
    assert any("interrupted after 7 of 7 chunks" in text for text in words(figure))
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "kept" in legend and "the video" not in legend


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_command_writes_a_picture(tmp_path, capsys, suffix):
    traced(tmp_path / "t.json", search_seed=10**14)
    assert main([str(tmp_path / "t.json"), "-o", str(tmp_path / f"tree{suffix}")]) == 0
    content = (tmp_path / f"tree{suffix}").read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert capsys.readouterr().out == f"{tmp_path.resolve()}/tree{suffix}: 7 of 7 chunks\n"


def test_part_of_a_video_can_be_drawn(tmp_path, capsys):
    traced(tmp_path / "t.json")
    assert main([str(tmp_path / "t.json"), "--first", "5", "--count", "9"]) == 0
    assert "t.png: 2 of 7 chunks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "none.json: cannot be read: No such file"),
        (["t.json", "-o", "t.gif"], "output: want a name that ends in .png, .svg, .pdf, got t.gif"),
        (["t.json", "-o", "missing/t.png"], "output: there is no folder missing"),
        (["t.json", "--first", "7"], "want a chunk to draw, but the trace has 7"),
        (["t.json", "--first", "-1"], "want --first of at least 0"),
        (["t.json", "--count", "61"], "--count of 1 to 60"),
        (["broken.json"], "broken.json: not valid JSON"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    traced(tmp_path / "t.json", size=8)
    (tmp_path / "broken.json").write_text((tmp_path / "t.json").read_text()[:999])
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
