"""Each measure says 1 of a clean clip, falls with its own defect, hardly moves with another's, and sees no more than it should."""

import ast
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from runtime.bench.quality.row import MEASURED, SPAN
from runtime.bench.quality.sprites_measures import CONTRAST, measure, spans
from runtime.bench.sprites.checker import lab
from runtime.bench.sprites.corrupt import Defects, corrupt
from runtime.bench.sprites.wander import Wander, render_wandering
from runtime.bench.sprites.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SIZE,
    Caption,
    Scene,
    render,
)

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 49
STAR = Scene(Caption("star", "yellow", "moving left", "slowly", "navy"), 20.3, (30.4, 48.8))
RING = Scene(Caption("ring", "pink", "bouncing sideways", "quickly", "gray"), 19.6, (41.2, 50.1))


@cache
def broken(defect="", level=0.0):
    """Means over two clips of what each column says."""
    defects = replace(Defects(), **({defect: level} if defect else {}))
    found = [
        measure(corrupt(s, defects, FRAMES, seed=3).frames, s.caption).scores()
        for s in (STAR, RING)
    ]
    return {name: (found[0][name] + found[1][name]) / 2 for name in MEASURED}


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_clean_clip_scores_one(motion):
    rng = random.Random(motion)
    scene = Scene.draw(replace(STAR.caption, motion=motion, shape="square", speed="quickly"), rng)
    scores = measure(render(scene, 40), scene.caption).scores()
    assert tuple(scores) == MEASURED
    assert scores["Subject"] > 0.94 and scores["Background"] > 0.999
    assert scores["Motion"] > 0.92 and scores["Imaging"] > 0.95
    ink, paper = COLOURS[scene.caption.colour], BACKGROUNDS[scene.caption.background]
    apart = (lab(torch.tensor(ink)) - lab(torch.tensor(paper))).norm() / CONTRAST
    assert scores["Aesthetic"] == pytest.approx(1 - torch.exp(-apart).item(), abs=0.04)


@pytest.mark.parametrize(
    ("column", "defect", "levels"),
    [
        ("Subject", "ink_drift", (0.15, 0.4, 1.0)),
        ("Subject", "morph", (0.3, 0.6, 1.0)),
        ("Background", "paper_drift", (0.05, 0.2, 0.8)),
        ("Background", "noise", (0.05, 0.2, 0.6)),
        ("Motion", "jitter", (0.1, 0.3, 1.0)),
        ("Motion", "stall", (0.1, 0.4, 1.0)),
        ("Imaging", "blur", (0.2, 0.5, 1.0)),
        ("Imaging", "blocks", (0.2, 0.5, 1.0)),
        ("Aesthetic", "fade", (0.1, 0.2, 0.35)),
        ("Aesthetic", "crumble", (0.1, 0.2, 0.4)),
    ],
)
def test_a_measure_falls_with_its_own_defect(column, defect, levels):
    values = [broken()[column], *(broken(defect, level)[column] for level in levels)]
    falls = [before - after for before, after in zip(values, values[1:], strict=False)]
    assert min(falls) > 0.02, values
    assert values[-1] > 0.02, "a bad clip can still be told from a worse one"


@pytest.mark.parametrize(
    ("defect", "level", "others"),
    [
        ("ink_drift", 0.6, ("Background", "Motion", "Imaging")),
        ("paper_drift", 0.4, ("Subject", "Motion", "Imaging")),
        ("jitter", 0.6, ("Subject", "Background", "Imaging", "Aesthetic")),
        ("stall", 0.6, ("Subject", "Background", "Imaging", "Aesthetic")),
        ("jump", 0.6, ("Subject", "Background", "Imaging", "Aesthetic")),
        ("blur", 0.5, ("Subject", "Background", "Motion")),
        ("fade", 0.2, ("Subject", "Background", "Motion", "Imaging")),
    ],
)
def test_a_measure_hardly_moves_with_the_defects_of_others(defect, level, others):
    moved = {name: abs(broken(defect, level)[name] - broken()[name]) for name in others}
    assert max(moved.values()) < 0.04, moved


@pytest.mark.parametrize(
    ("column", "defect", "level"),
    [
        ("Subject", "morph", 0.4),
        ("Background", "noise", 0.1),
        ("Motion", "jitter", 0.2),
        ("Imaging", "blur", 0.3),
        ("Aesthetic", "fade", 0.2),
    ],
)
def test_a_slightly_worse_sibling_scores_slightly_less(column, defect, level):
    good, bad = broken(defect, level)[column], broken(defect, level * 1.1)[column]
    assert 0.001 < good - bad < 0.05


@cache
def walks():
    """Four clips of thirty seconds that wander."""
    captions = [STAR.caption, RING.caption] * 2
    shown = [Scene.draw(caption, random.Random(i)) for i, caption in enumerate(captions)]
    return [
        measure(render_wandering(s, Wander.draw(s, 477, 0, random.Random(i))), s.caption)
        for i, s in enumerate(shown)
    ]


@pytest.mark.parametrize("column", ["Subject", "Background", "Motion", "Imaging"])
def test_a_clip_that_wanders_loses_over_thirty_seconds(column):
    means = torch.tensor([walk.over_time()[column] for walk in walks()]).mean(0)
    assert len(means) == 10
    assert means[0] - means[-3:].mean() > 0.05, means


def test_a_slow_change_costs_though_no_frame_differs_from_the_one_before():
    scene = replace(STAR, caption=replace(STAR.caption, colour="red"))
    first, last = render(scene, 200), render(STAR, 200)
    frames = torch.lerp(first, last, torch.linspace(0, 1, 200)[:, None, None, None])
    start, end = (measure(frames, STAR.caption).scores(*part) for part in ((0, 20), (180, 200)))
    assert start["Subject"] > 0.9
    assert end["Subject"] < 0.65
    assert abs(start["Background"] - end["Background"]) < 0.01


def test_it_does_not_matter_where_on_the_torus_an_object_is():
    middle, corner = (
        measure(render(replace(STAR, start=start), FRAMES), STAR.caption).scores()
        for start in ((70.5, 48.5), (10.5, 0.5))
    )
    assert middle == pytest.approx(corner, abs=0.01)


def test_frames_without_an_object_score_nothing_but_the_paper():
    frames = render(STAR, FRAMES)
    empty = torch.tensor(BACKGROUNDS["navy"])[:, None, None]
    frames[20:30] = empty
    found = measure(frames, STAR.caption)
    gone, later = found.scores(20, 30), found.scores(31)
    assert gone.pop("Background") > 0.99 and set(gone.values()) == {0.0}
    whole = measure(render(STAR, FRAMES), STAR.caption).scores(31)
    assert later == pytest.approx(whole, abs=0.02)
    nothing = measure(empty.expand(FRAMES, 3, SIZE, SIZE), STAR.caption).scores()
    assert nothing == {name: float(name == "Background") for name in MEASURED}


def test_a_bad_beginning_costs_its_own_frames_alone():
    clean = render(STAR, FRAMES)
    frames = clean.clone()
    other = replace(STAR, caption=replace(STAR.caption, shape="circle", colour="green"))
    frames[:9] = render(other, 9)
    whole, bad = (measure(clip, STAR.caption) for clip in (clean, frames))
    assert bad.scores(10) == pytest.approx(whole.scores(10), abs=0.01)
    assert bad.scores(0, 9)["Subject"] < whole.scores(0, 9)["Subject"] - 0.2


@pytest.mark.parametrize(
    "other",
    [{"motion": "moving right"}, {"motion": "moving up"}, {"speed": "quickly"}],
    ids=str,
)
def test_motion_is_that_of_the_caption(other):
    frames = render(STAR, FRAMES)
    right, wrong = (measure(frames, c) for c in (STAR.caption, replace(STAR.caption, **other)))
    assert wrong.scores()["Motion"] < 0.4 < 0.9 < right.scores()["Motion"]
    still = [name for name in MEASURED if name != "Motion"]
    assert all(torch.equal(wrong.values[name], right.values[name]) for name in still)


def test_a_bounce_needs_a_wall():
    scene = replace(RING, start=(30.0, 50.0))
    part = render(scene, 12)  # on its way to the right wall, which it would meet after 18 frames
    turned = torch.cat((part, part.flip(0), part, part.flip(0)))
    whole = measure(render(scene, 48), scene.caption).scores()["Motion"]
    assert measure(turned, scene.caption).scores()["Motion"] < whole - 0.2


def test_words_that_can_be_seen_in_a_still_do_not_matter():
    other = Caption("circle", "red", STAR.caption.motion, STAR.caption.speed, "gray")
    frames = render(STAR, 25)
    assert measure(frames, other).scores() == measure(frames, STAR.caption).scores()


def test_bytes_score_as_floats_do():
    frames = render(STAR, 25)
    shown = (frames * 255).round().to(torch.uint8)
    assert measure(shown, STAR.caption).scores() == pytest.approx(
        measure(frames, STAR.caption).scores(), abs=0.01
    )


def test_one_frame_can_be_measured():
    assert all(
        0 <= value <= 1 for value in measure(render(STAR, 1), STAR.caption).scores().values()
    )


def test_scores_of_no_frames_are_refused():
    found = measure(render(STAR, 5), STAR.caption)
    with pytest.raises(ValueError, match="frames: want some among 5, got 5:None"):
        found.scores(5)


@pytest.mark.parametrize(
    ("frames", "lengths"),
    [(1, [1]), (47, [47]), (71, [71]), (72, [48, 24]), (81, [48, 33]), (477, [48] * 9 + [45])],
)
def test_spans_cover_a_clip_and_leave_no_short_rest(frames, lengths):
    found = spans(frames)
    assert [span.stop - span.start for span in found] == lengths
    assert [span.start for span in found] == [SPAN * i for i in range(len(lengths))]


def imported(module):
    """Modules of this repository that ``module`` imports, and those that they import."""
    seen, open_ = set(), {module}
    while open_:
        name = open_.pop()
        seen.add(name)
        parts = name.split(".")[1:]
        path = ROOT.joinpath(*(parts if parts[0] == "bench" else ["runtime", *parts]))
        source = (
            path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        )
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            open_ |= {found for found in names if found.startswith("runtime.")} - seen
    return seen


def test_measures_share_nothing_with_what_steers_a_search_nor_with_what_rewards_learned_from():
    seen = imported("runtime.bench.quality.sprites_measures")
    assert "runtime.bench.sprites.tracking" in seen
    strange = [
        name
        for name in seen
        if name.startswith("runtime.rewards")
        or name in ("runtime.bench.sprites.corrupt", "runtime.bench.sprites.wander")
    ]
    assert strange == []
