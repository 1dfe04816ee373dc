"""The checker is right about ground truth, stays right when the picture is worn, and notices every kind of lie."""

import random
from dataclasses import replace

import pytest
import torch

from runtime.bench.sprites.checker import UNCLEAR, check_clip
from runtime.bench.sprites.corrupt import Defects, corrupt
from runtime.bench.sprites.motion_fit import unwrap
from runtime.bench.sprites.tracking import SIZES, fit_shapes, track
from runtime.bench.sprites.world import (
    MOTIONS,
    SHAPES,
    SIZE,
    SPEEDS,
    Caption,
    Scene,
    all_captions,
    render,
)

ATTRIBUTES = ("shape", "colour", "motion", "speed", "background")
WORN = Defects(wear=1.0, blur=0.15, noise=0.1)


def draw(seed, **words):
    rng = random.Random(seed)
    return Scene.draw(replace(rng.choice(all_captions()), **words), rng)


def mistakes(clips):
    return [
        (scene.caption.text, name, getattr(verdict.seen, name))
        for scene, frames in clips
        for verdict in [check_clip(frames, scene.caption)]
        for name in ATTRIBUTES
        if not verdict.right(name)
    ]


def test_ground_truth_is_right():
    kinds = [(motion, speed) for motion in MOTIONS for speed in SPEEDS]
    scenes = [draw(i, motion=motion, speed=speed) for i, (motion, speed) in enumerate(kinds * 2)]
    assert mistakes((scene, render(scene, 81)) for scene in scenes) == []


def test_worn_pictures_are_still_right():
    scenes = [draw(100 + i) for i in range(16)]
    assert mistakes((s, corrupt(s, WORN, 81, seed=i).frames) for i, s in enumerate(scenes)) == []


@pytest.mark.slow
@pytest.mark.parametrize("frames", [57, 81, 117])
def test_two_hundred_random_clips_are_right(frames):
    scenes = [draw(1000 + i) for i in range(200)]
    clean = mistakes((scene, render(scene, frames)) for scene in scenes)
    worn = mistakes((s, corrupt(s, WORN, frames, seed=i).frames) for i, s in enumerate(scenes))
    for name in ATTRIBUTES:
        for found in (clean, worn):
            assert sum(mistake[1] == name for mistake in found) <= 2, found


def test_metrics_of_ground_truth_are_near_one():
    scene = draw(3)
    verdict = check_clip(render(scene, 49), scene.caption)
    assert verdict.all_right and verdict.presence == 1
    assert verdict.subject_consistency > 0.93
    assert verdict.background_consistency > 0.99
    assert verdict.smoothness > 0.85
    assert verdict.imaging > 0.85


def test_a_short_clip_may_leave_the_motion_open():
    scene = Scene(
        Caption("square", "red", "bouncing sideways", "slowly", "gray"), 19.0, (30.0, 48.0)
    )
    frames = render(scene, 21)  # no wall is met: it could as well be moving right
    assert check_clip(frames, scene.caption).right("motion")
    assert check_clip(frames, replace(scene.caption, motion="moving right")).right("motion")
    assert not check_clip(frames, replace(scene.caption, motion="moving left")).right("motion")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_wrong_word_of_a_caption_is_noticed(name):
    scene = draw(5)
    other = next(c for c in all_captions() if getattr(c, name) != getattr(scene.caption, name))
    shown = replace(scene.caption, **{name: getattr(other, name)})
    verdict = check_clip(render(scene, 81), shown)
    assert [n for n in ATTRIBUTES if not verdict.right(n)] == [name]
    assert verdict.all_right == (name == "speed")


def splice(first, second, at=40):
    return torch.cat((first[:at], second[at:]))


@pytest.mark.parametrize(
    ("name", "word"),
    [("shape", "star"), ("colour", "green"), ("background", "forest")],
)
def test_a_change_half_way_is_wrong(name, word):
    scene = Scene(Caption("square", "red", "moving left", "slowly", "gray"), 19.0, (30.0, 48.0))
    changed = replace(scene, caption=replace(scene.caption, **{name: word}))
    frames = splice(render(scene, 81), render(changed, 81))
    for caption in (scene.caption, changed.caption):
        verdict = check_clip(frames, caption)
        assert getattr(verdict.seen, name) == UNCLEAR and not verdict.all_right
        assert verdict.right("motion")
    steadiness = (
        verdict.background_consistency if name == "background" else verdict.subject_consistency
    )
    assert steadiness < 0.85


@pytest.mark.parametrize("motion", MOTIONS)
def test_bad_physics_is_wrong(motion):
    scene = draw(11, motion=motion)
    frames = render(scene, 81)
    still = frames[:1].expand_as(frames)
    half_still = torch.cat((frames[:40], frames[40:41].expand(41, -1, -1, -1)))
    leap = splice(frames, frames.roll(30, dims=2 if "left" in motion or "right" in motion else 3))
    for broken in (still, half_still, leap):
        verdict = check_clip(broken, scene.caption)
        assert verdict.seen.motion == UNCLEAR and not verdict.all_right
    assert verdict.smoothness < 0.75  # of the leap; standing still is smooth


def test_running_backwards_is_wrong():
    scene = draw(12, motion="moving down")
    frames = render(scene, 81)
    assert check_clip(frames.flip(0), scene.caption).seen.motion == "moving up"
    there_and_back = torch.cat((frames[:41], frames[:40].flip(0)))
    assert not check_clip(there_and_back, scene.caption).right("motion")


def test_a_bounce_in_mid_air_is_wrong():
    caption = Caption("cross", "cyan", "bouncing sideways", "slowly", "black")
    frames = render(Scene(caption, 19.0, (20.0, 40.0)), 61)
    there_and_back = torch.cat((frames[:30], frames[:29].flip(0)))  # turns at x = 49
    assert check_clip(there_and_back, caption).seen.motion == UNCLEAR


def test_an_object_that_vanishes_is_wrong():
    scene = draw(13)
    frames = render(scene, 81)
    paper = frames.flatten(2).median(2).values[..., None, None].expand_as(frames)
    verdict = check_clip(splice(frames, paper), scene.caption)
    assert not any(verdict.right(name) for name in ("shape", "colour", "motion", "speed"))
    assert verdict.right("background") and verdict.presence == pytest.approx(40 / 81)
    empty = check_clip(paper, scene.caption)
    assert empty.presence == 0 and empty.seen.shape == UNCLEAR


def test_bad_first_frames_are_outvoted():
    scene = draw(14)
    frames = render(scene, 81).clone()
    frames[:5] = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    verdict = check_clip(frames, scene.caption)
    assert verdict.right("shape") and verdict.right("colour") and verdict.right("background")


@pytest.mark.parametrize("shape", SHAPES)
def test_tracking_finds_place_and_size_across_the_edge(shape):
    caption = Caption(shape, "yellow", "moving right", "quickly", "navy")
    scene = Scene(caption, 19.0, (70.0, 93.0))
    found = track(render(scene, 24))
    overlaps, sizes = fit_shapes(found.masks)
    kind = list(SHAPES).index(shape)
    assert (overlaps.argmax(1) == kind).all() and overlaps[:, kind].min() > 0.93
    assert (SIZES[sizes[:, kind]] - 19.0).abs().max() <= 0.5
    path = unwrap(found.centroid, found.present)
    assert torch.allclose(path.diff(dim=0)[:, 0], torch.full((23,), 2.5).double(), atol=0.1)
    assert path.diff(dim=0)[:, 1].abs().max() < 0.1


def test_unwrap_bridges_frames_without_an_object():
    time = torch.arange(30.0)
    places = torch.stack((80 + 2.5 * time, torch.full((30,), 20.0)), 1) % SIZE
    present = torch.ones(30, dtype=torch.bool)
    present[5:27] = False
    present[0] = False
    path = unwrap(places, present)
    assert torch.allclose(path[1:, 0] - path[1, 0], 2.5 * (time[1:] - 1).double(), atol=1e-4)


def test_the_checker_says_what_it_wants():
    with pytest.raises(ValueError, match=r"frames: want \[T, 3, 96, 96\], got \[2, 3, 48, 48\]"):
        check_clip(torch.zeros(2, 3, 48, 48), all_captions()[0])
