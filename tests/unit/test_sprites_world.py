"""The procedural world keeps its promises: captions, physics, pixels."""

import math
import random

import pytest
import torch

from runtime.bench.sprites.world import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZE,
    SPEEDS,
    Caption,
    Scene,
    all_captions,
    coverage,
    held_out_captions,
    render,
    shape_distance,
    training_captions,
)


def scene(motion="moving right", speed="slowly", shape="circle", start=(40.0, 50.0), signs=(1, 1)):
    return Scene(Caption(shape, "orange", motion, speed, "navy"), 16.0, start, signs)


def test_captions_are_all_different_and_split_once():
    captions = all_captions()
    assert len(captions) == len(SHAPES) * len(COLOURS) * len(MOTIONS) * len(SPEEDS) * len(
        BACKGROUNDS
    )
    assert len({caption.text for caption in captions}) == len(captions)
    training = training_captions()
    held_out = [caption for caption in captions if caption.held_out]
    assert not set(training) & set(held_out)
    assert len(training) + len(held_out) == len(captions)
    assert 0.06 < len(held_out) / len(captions) < 0.11


def test_a_caption_reads_as_a_sentence():
    assert scene().caption.text == "an orange circle moving right slowly on a navy background"
    red = Caption("star", "red", "bouncing diagonally", "quickly", "gray")
    assert red.text == "a red star bouncing diagonally quickly on a gray background"


def test_held_out_captions_are_a_seeded_sample():
    assert held_out_captions(5, seed=3) == held_out_captions(5, seed=3)
    assert held_out_captions(5, seed=3) != held_out_captions(5, seed=4)
    with pytest.raises(ValueError, match="held-out captions: want at most"):
        held_out_captions(10_000)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("speed", SPEEDS)
def test_the_object_keeps_its_speed(motion, speed):
    subject = Scene.draw(Caption("square", "red", motion, speed, "gray"), random.Random(1))
    places = torch.tensor([subject.position(frame) for frame in range(200)])
    steps = (places.diff(dim=0) + SIZE / 2) % SIZE - SIZE / 2
    lengths = steps.norm(dim=1)
    assert lengths.max() <= SPEEDS[speed] + 1e-4
    # Only the frames in which it meets a wall are shorter.
    assert (lengths < SPEEDS[speed] - 1e-3).float().mean() < 0.12


@pytest.mark.parametrize("motion", [name for name in MOTIONS if name.startswith("bouncing")])
def test_a_bouncing_object_stays_within_the_walls(motion):
    subject = Scene.draw(Caption("star", "red", motion, "quickly", "gray"), random.Random(2))
    places = torch.tensor([subject.position(frame) for frame in range(300)])
    assert places.min() >= subject.radius - 1e-4
    assert places.max() <= SIZE - subject.radius + 1e-4
    moved = [axis for axis in (0, 1) if MOTIONS[motion][axis]]
    for axis in moved:  # it turns at both walls
        assert places[:, axis].min() < subject.radius + 2.5
        assert places[:, axis].max() > SIZE - subject.radius - 2.5


def test_a_moving_object_returns_after_one_round_of_the_torus():
    first, again = render(scene(), 1), render(scene(), 1, start=SIZE)
    assert torch.allclose(first, again, atol=1e-5)


def test_a_clip_may_begin_anywhere():
    assert torch.equal(render(scene(), 8)[3:], render(scene(), 5, start=3))


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_have_exactly_the_colours_of_the_caption(shape):
    subject = scene(shape=shape, start=(48.0, 48.0))
    frame = render(subject, 1)[0]
    probe = (48, 60) if shape == "ring" else (48, 48)  # a ring is empty in its middle
    assert torch.allclose(frame[:, probe[0], probe[1]], torch.tensor(COLOURS["orange"]), atol=1e-6)
    assert torch.allclose(frame[:, 2, 2], torch.tensor(BACKGROUNDS["navy"]), atol=1e-6)
    assert frame.min() >= 0 and frame.max() <= 1


def test_coverage_is_the_area_of_the_shape():
    areas = {
        "circle": math.pi * 16**2,
        "square": (2 * 0.86 * 16) ** 2,
        "ring": math.pi * (16**2 - (0.48 * 16) ** 2),
        "triangle": 0.5 * 32 * 1.8 * 16,
    }
    for shape, area in areas.items():
        for start in ((48.0, 48.0), (95.3, 50.2)):  # inside, and across the edge of the frame
            got = coverage(scene(shape=shape, start=start), [0]).sum().item()
            assert got == pytest.approx(area, rel=0.01), shape


def test_a_smaller_picture_shows_the_same():
    small = render(scene(shape="square"), 3, size=SIZE // 2)
    pooled = torch.nn.functional.avg_pool2d(render(scene(shape="square"), 3), 2)
    assert (small - pooled).abs().mean() < 0.01


def test_an_unknown_shape_is_an_error():
    with pytest.raises(ValueError, match="shape: want one of circle, .*got 'blob'"):
        shape_distance("blob", torch.zeros(1), torch.zeros(1), 10.0)
