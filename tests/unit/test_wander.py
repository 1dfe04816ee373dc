"""Clips that wander begin as their caption says, drift without a jump, and their truth falls as they go."""

import random

import pytest
import torch

from runtime.bench.sprites import wander
from runtime.bench.sprites.checker import check_clip
from runtime.bench.sprites.corpus import Corpus
from runtime.bench.sprites.corrupt import WORDS
from runtime.bench.sprites.decoded import Decoded, sample_of, truth_of
from runtime.bench.sprites.wander import CHUNK, OPENING, Wander, render_wandering
from runtime.bench.sprites.world import Caption, Scene, render

CAPTION = Caption("cross", "blue", "moving right", "slowly", "black")
SCENE = Scene(CAPTION, 20.0, (40.0, 50.0))


def walk(frames=81, age=0, seed=0):
    return Wander.draw(SCENE, frames, age, random.Random(seed))


def test_the_first_chunk_is_the_captions():
    clip = render_wandering(SCENE, walk(seed=3))
    assert torch.allclose(clip[:OPENING], render(SCENE, OPENING), atol=1e-4)
    assert not torch.allclose(clip[-1], render(SCENE, 81)[-1], atol=0.02)


def test_a_clip_that_stands_still_in_its_look_is_the_plain_render():
    assert torch.allclose(render_wandering(SCENE, walk().still()), render(SCENE, 81), atol=1e-4)


def test_the_look_changes_a_little_from_frame_to_frame_and_a_lot_over_half_a_minute():
    long = walk(frames=477, seed=5)
    steps = long.ink.diff(dim=0).norm(dim=1)
    assert steps.max() < 5 * wander.INK_STEP * 3**0.5 / CHUNK
    assert long.ink[-1].norm() > 10 * steps.median()


def test_the_further_the_age_the_further_the_second_chunk():
    gaps = {
        age: torch.stack([walk(age=age, seed=s).ink[OPENING] for s in range(60)]).std().item()
        for age in (4, 36)
    }
    # A random walk: nine times the time, three times the way.
    assert gaps[36] / gaps[4] == pytest.approx((37 / 5) ** 0.5, rel=0.3)
    assert walk(age=20).ink[OPENING - 1].abs().max() == 0


def test_nothing_leaves_its_limits():
    wild = walk(frames=2000, seed=1)
    assert wild.morph.min() >= 0 and wild.morph.max() <= wander.FULL_MORPH
    assert wild.blur.max() <= wander.MOST_BLUR
    assert wander.SIZES[0] <= wild.size.min() and wild.size.max() <= wander.SIZES[1]
    clip = render_wandering(SCENE, wild.at(list(range(1900, 1912))))
    assert clip.min() >= 0 and clip.max() <= 1


def test_five_seconds_hold_the_caption_and_thirty_often_do_not():
    seeds = range(12)
    short = sum(
        check_clip(render_wandering(SCENE, walk(81, 0, s)), CAPTION).all_right for s in seeds
    )
    late = [render_wandering(SCENE, walk(477, 0, s))[-81:] for s in seeds]
    long = sum(check_clip(clip, CAPTION).all_right for clip in late)
    assert short >= 11
    assert long <= 8


def test_truth_is_whole_for_a_still_walk_and_goes_to_the_other_word():
    still = walk().still()
    truth = truth_of(CAPTION, still)
    for word in ("cross", "blue", "black", "moving right", "slowly"):
        assert torch.all(truth[:, WORDS.index(word)] == 1), word
    gone = still.worse(blur=0.0, morph=0.7)
    truth = truth_of(CAPTION, gone)
    assert truth[0, WORDS.index("cross")] == pytest.approx(0.3)
    assert truth[0, WORDS.index(gone.other)] == pytest.approx(0.7)


def test_targets_point_the_way_rewards_do():
    frames, centres = torch.zeros(81, 3, 96, 96), torch.zeros(81, 2)

    def sample(walk, told=CAPTION):
        return sample_of(frames, centres, CAPTION, told, walk)

    still, soft, far = walk().still(), walk().still().worse(2.0, 0.0), walk(477, 0, 2)
    assert sample(still).visual == 1 and sample(still).motion == 1 and sample(still).aligned == 1
    assert sample(soft).visual < 0.6 and sample(soft).motion == 1
    assert sample(far).motion < 0.8 and sample(far).aligned < 1
    wrong = Caption("ring", "pink", "moving right", "slowly", "black")
    assert sample(still, wrong).aligned == pytest.approx(3 / 5, abs=0.06)


def test_decoded_clips_come_back_with_the_truth_of_the_frames_that_were_picked(tmp_path):
    torch.manual_seed(0)
    whole = walk(59, seed=7)
    stored = {
        "frames": torch.randint(0, 255, (1, 59, 3, 96, 96), dtype=torch.uint8),
        "centres": torch.rand(1, 59, 2),
        "captions": [[getattr(CAPTION, name) for name in Caption.__slots__]],
        "walks": [whole.table()],
    }
    torch.save(stored, tmp_path / "decoded.pt")
    sample = Decoded.load(tmp_path / "decoded.pt").draw(random.Random(0), [50, 52], ())
    assert torch.equal((sample.frames * 255).round().to(torch.uint8), stored["frames"][0, [50, 52]])
    expected = truth_of(CAPTION, whole.at([50, 52]))
    assert torch.equal(sample.truth, expected.mean(0))


def test_a_corpus_mixes_clean_and_wandering_shards(tmp_path):
    def shard(value, count, **more):
        latents = torch.full((count, 21, 12, 8, 8), value, dtype=torch.float16)
        return {"latents": latents, "captions": [CAPTION.text] * count, **more}

    torch.save(shard(0.0, 3), tmp_path / "shard_000.pt")
    torch.save(shard(1.0, 2, ages=[5, 5]), tmp_path / "wandering_000.pt")
    corpus = Corpus(tmp_path, wandering=0.5)
    corpus.refresh()
    batch = corpus.batch(200, step=1)
    drifting = batch.latents[:, 0, 0, 0, 0] == 1
    assert 70 < drifting.sum() < 130
    assert all(age == 5 for age, yes in zip(batch.ages, drifting, strict=True) if yes)
    torch.save(shard(1.0, 1, ages=[9]), tmp_path / "wandering_001.pt")
    corpus.refresh()
    assert corpus.drifting.ages == [5, 5, 9]
