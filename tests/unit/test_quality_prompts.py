"""The prompts of the comparison: held out, disjoint, and the same ones for ever."""

import hashlib
import re

import pytest

from runtime.bench.quality import prompts
from runtime.bench.quality.prompts import held_out, seeds, tuning
from runtime.bench.sprites.world import training_captions


@pytest.mark.parametrize(
    ("name", "digest"),
    [("sprites_held_out.txt", "d863c53c51956911"), ("sprites_tuning.txt", "68dce480511fc011")],
)
def test_the_lists_have_not_changed(name, digest):
    assert hashlib.sha256((prompts.FOLDER / name).read_bytes()).hexdigest()[:16] == digest


def test_training_never_sees_a_prompt():
    asked = {*held_out(128), *tuning(64)}
    assert all(caption.held_out for caption in asked)
    assert not asked & set(training_captions())


def test_what_is_tuned_on_is_not_tested_on():
    assert len({*held_out(128), *tuning(64)}) == 128 + 64


def test_fewer_prompts_are_the_first_of_more():
    assert held_out(5) == held_out(128)[:5] and tuning(5) == tuning(64)[:5]


def test_every_word_of_the_world_is_asked_for():
    for caption in ("shape", "colour", "motion", "speed", "background"):
        of_all = {getattr(one, caption) for one in training_captions()}
        assert {getattr(one, caption) for one in held_out(128)} == of_all


@pytest.mark.parametrize("count", [0, 129])
def test_a_list_of_another_length_is_refused(count):
    with pytest.raises(
        ValueError, match=re.escape(f"want 1 to 128 of the held-out list, got {count}")
    ):
        held_out(count)


def test_seeds_are_fixed_and_no_video_reaches_the_next_ones():
    # A video's seeds are seed + 1000 n + 100 b + i; ten minutes have 800 chunks.
    assert seeds(3) == (42, 1_000_042, 2_000_042)
    assert seeds(2)[1] - seeds(2)[0] > 1000 * 800
