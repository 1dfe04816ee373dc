"""Ensembles: how they are written, that every member counts in its own deviations, and where the numbers come from."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from runtime.engine import Engine
from runtime.presets import preset
from runtime.rewards import PUBLISHED, REFUSED, REWARDS, load_reward
from runtime.rewards.ensemble import (
    MAX_MEMBERS,
    PACKAGED,
    Ensemble,
    Member,
    Statistics,
    Term,
    is_ensemble,
    joined,
    members_of,
    parse,
    read_statistics,
)
from runtime.settings import Settings
from runtime.sizing import plan_memory, reward_bytes
from runtime.types import Clip
from tests.tiny import generator_of

CLIP = Clip(torch.rand(3, 6, 3, 96, 96, generator=generator_of(7)), "a red circle", 16, 2, (0, 0, 1), 4)  # fmt: skip


@dataclass
class Fixed:
    """Says what it was told to, and remembers what it saw."""

    scores: list[float]
    horizon: int = 1
    nbytes: int = 5
    seen: list[Clip] = field(default_factory=list)

    def score(self, clip):
        self.seen.append(clip)
        return torch.tensor(self.scores)

    def flops(self, frames, height, width, fps):
        return frames * 10


def member(weight, model, mean=0.0, std=1.0):
    return Member("fixed", weight, model, Statistics(mean, std, 9))


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("hpsv3", [("hpsv3", None)]),
        ("hpsv3*0.5+imagereward*0.5", [("hpsv3", 0.5), ("imagereward", 0.5)]),
        (" sprites-image * 2 + stub ", [("sprites-image", 2.0), ("stub", None)]),
        ("a*.5", [("a", 0.5)]),
    ],
)
def test_an_expression_is_names_and_weights(text, terms):
    assert parse(text) == tuple(Term(*term) for term in terms)
    assert members_of(text) == tuple(name for name, _ in terms)
    assert is_ensemble(parse(text)) == (text != "hpsv3")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot read ''"),
        ("a+", "cannot read ''"),
        ("a*", r"cannot read 'a\*'"),
        ("a**2", "cannot read"),
        ("0.5*a", "want NAME or NAME"),
        ("a*-1", "plain number above 0"),
        ("a*1e3", "plain number"),
        ("a*nan", "plain number"),
        ("a*0+b", "want a weight above 0"),
        ("a*1001", "at most 1000"),
        ("a*2+a*3", "names 'a' twice"),
        ("+".join("abcdefghi"), f"want at most {MAX_MEMBERS} models, got 9"),
        ("a" * 401, "want at most 400 characters, got 401"),
        ("a;import os", "cannot read"),
    ],
)
def test_an_expression_without_sense_is_told_so(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(text)


def test_members_add_up_in_their_own_deviations():
    """By hand: (3 - 1) / 2 * 0.5 + (10 - 30) / 10 * 2 = 0.5 - 4; a member that cannot judge spoils its clip alone."""
    one, two = Fixed([3.0, 1.0, 5.0]), Fixed([10.0, 40.0, float("nan")], horizon=10)
    ensemble = joined([member(0.5, one, 1.0, 2.0), member(2.0, two, 30.0, 10.0)])
    scores = ensemble.score(CLIP)
    assert scores.dtype == torch.float32 and scores[:2].tolist() == [0.5 - 4, 2.0]
    assert scores.isnan().tolist() == [False, False, True]
    assert ensemble.detail(CLIP)[:2].tolist() == [[1.0, -2.0], [0.0, 1.0]]
    assert ensemble.horizon == 10 and ensemble.nbytes == 10
    assert ensemble.flops(4, 96, 96, 16) == 80


def test_every_member_sees_the_whole_clip_families_and_all():
    one, two = Fixed([0.0] * 3), Fixed([0.0] * 3)
    Ensemble([member(1.0, one), member(1.0, two)]).score(CLIP)
    assert all(model.seen[0] is CLIP for model in (one, two))


def test_an_ensemble_counts_its_work_only_where_all_members_do():
    """Half a sum would pass for the whole in the bench."""
    stub = load_reward("stub")
    ensemble = joined([member(1.0, stub), member(1.0, Fixed([0.0]))])
    assert ensemble.nbytes == 5 and not hasattr(ensemble, "flops")


def test_the_embedded_rewards_make_an_ensemble_out_of_the_box():
    both = load_reward("sprites-image*0.7+stub*0.3")
    assert isinstance(both, Ensemble) and both.names == ("sprites-image", "stub")
    table = json.loads(PACKAGED.read_text())
    parts = [
        (load_reward(name).score(CLIP) - table[name]["mean"]) / table[name]["std"] * weight
        for name, weight in (("sprites-image", 0.7), ("stub", 0.3))
    ]
    assert torch.allclose(both.score(CLIP), sum(parts), atol=1e-5)


def test_the_packaged_numbers_are_those_of_every_embedded_reward_and_say_where_from():
    names = sorted(REWARDS.keys() - PUBLISHED.keys())
    found = read_statistics(PACKAGED, names)
    assert all(found[name].samples >= 400 for name in names)
    about = json.loads(PACKAGED.read_text())["about"]
    assert about["generator"] == "sprites" and len(about["prompts_sha256"]) == 64


def test_numbers_of_the_callers_are_used_and_only_those(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"stub": {"mean": 1.0, "std": 4.0, "samples": 5}}))
    got = load_reward("stub*2", statistics=str(path)).score(CLIP)
    assert torch.allclose(got, (load_reward("stub").score(CLIP) - 1.0) / 4.0 * 2)
    with pytest.raises(ValueError, match=r"mine.json: has no statistics of 'sprites-image', only of: stub;.*bench.calibrate"):  # fmt: skip
        load_reward("stub+sprites-image", statistics=str(path))
    with pytest.raises(ValueError, match="none.json: no such file"):
        load_reward("stub*2", statistics=str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (3, "stub: want an object, got int"),
        ({}, "stub: mean: want a finite number, got None"),
        ({"mean": float("inf"), "std": 1.0, "samples": 5}, "mean: want a finite number, got inf"),
        ({"mean": True, "std": 1.0, "samples": 5}, "mean: want a finite number, got True"),
        ({"mean": 0, "std": 0, "samples": 5}, "std: want more than 0"),
        ({"mean": 0, "std": 1, "samples": 1}, "samples: want a whole number of at least 2"),
        ({"mean": 0, "std": 1, "samples": 2.5}, "samples: want a whole number"),
    ],
)
def test_a_file_with_wrong_numbers_is_told_so(tmp_path, entry, sentence):
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps({"stub": entry}))
    with pytest.raises(ValueError, match=sentence) as caught:
        load_reward("stub*2", statistics=str(path))
    assert str(path) in str(caught.value)


def test_a_member_that_is_unknown_or_refused_is_named_before_any_is_loaded():
    with pytest.raises(ValueError, match="unknown reward 'hpsv4'.*did you mean 'hpsv3'"):
        load_reward("stub*0.5+hpsv4*0.5")
    with pytest.raises(ValueError, match="'visionreward'.*CogVLM2.*use 'videollama3'"):
        load_reward("visionreward")
    assert not REFUSED.keys() & REWARDS.keys()


def test_the_memory_plan_counts_every_member():
    assert reward_bytes("sprites-image*0.7+stub*0.3") == reward_bytes("sprites-image") > 0
    assert reward_bytes("hpsv3*0.5+imagereward") == reward_bytes("hpsv3") + reward_bytes("imagereward")  # fmt: skip
    plan = plan_memory(preset("sprites").with_changes({"reward.image": "hpsv3*0.5+mps*0.5"}))
    weights = [item.nbytes for item in plan.items if item.name.startswith("reward hpsv3*0.5+mps")]
    assert weights == [2 * (PUBLISHED["hpsv3"][0] + PUBLISHED["mps"][0])]


def test_an_engine_searches_with_an_ensemble_for_either_role():
    changes = {
        "seconds": 1.2,
        "reward.image": "sprites-image*0.7+stub*0.3",
        "reward.video": "sprites-video*0.5+stub*0.5",
        "reward.stride": 2,
    }
    engine = Engine(Settings().with_changes(changes))
    records = []
    list(engine.stream("a red circle moving left", watch=records.append))
    scores = [candidate.scores for record in records for candidate in record.candidates]
    assert isinstance(engine.parts.image, Ensemble) and isinstance(engine.parts.video, Ensemble)
    assert len({score.short for score in scores}) == len(scores) > 3
