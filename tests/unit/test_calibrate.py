"""The bench that measures the scale of rewards: its sums, what it listens to, and the file it writes."""

import json
import statistics
import sys

import pytest
import torch

from runtime.bench import calibrate
from runtime.bench.calibrate import Listener, Spread, measure, report
from runtime.rewards import load_reward
from runtime.settings import Settings
from runtime.types import Clip
from tests.tiny import Likes, motion, prettiness, tiny_engine


class Noted:
    """Scores by counting, and keeps what it saw."""

    def __init__(self, horizon):
        self.horizon, self.clips, self.said = horizon, [], []

    def score(self, clip):
        self.clips.append(clip)
        values = [float(len(self.said) + number) for number in range(len(clip.frames))]
        self.said += values
        return torch.tensor(values)


def test_the_sums_are_those_of_the_textbook_far_from_zero_too():
    values = [1e9 + x for x in (4.0, 7.0, 13.0, 16.0)]
    spread = Spread()
    for value in (*values, float("nan"), float("inf")):
        spread.add(value)
    assert spread.mean == pytest.approx(statistics.mean(values), abs=1e-6)
    assert spread.std == pytest.approx(statistics.stdev(values), rel=1e-9)
    assert spread.table() == {"mean": spread.mean, "std": spread.std, "samples": 4, "not_finite": 2}


def test_a_listener_answers_as_the_reward_it_stands_for():
    asked, other = Noted(1), Noted(1)
    clip = Clip(torch.zeros(2, 1, 3, 4, 4), "x", 16, 0)
    listener = Listener(asked, {"other": other})
    assert listener.score(clip).tolist() == [0.0, 1.0] and listener.horizon == 1
    assert other.clips[0] is clip and listener.found["other"].count == 2


def test_each_model_hears_its_own_role_and_the_search_is_not_disturbed():
    """Two videos of two prompts, three chunks, four candidates: the image role sees one chunk, the video role more."""
    near, far = Noted(1), Noted(10)
    engine = tiny_engine(3, image=Likes(prettiness), video=Likes(motion))
    calm = []
    list(engine.stream("a red circle", watch=calm.append))
    found = measure(engine.settings, {"near": near, "far": far}, ["a red circle", "x"], 2, engine.parts)  # fmt: skip
    assert {name: spread.count for name, spread in found.items()} == {"near": 48, "far": 48}
    assert found["near"].mean == pytest.approx(statistics.mean(near.said))
    assert found["far"].std == pytest.approx(statistics.stdev(far.said))
    lengths = [{clip.frames.shape[1] for clip in model.clips} for model in (near, far)]
    assert max(lengths[0]) < max(lengths[1])
    assert {clip.prompt for clip in near.clips} == {"a red circle", "x"}
    first = [candidate.latents for candidate in calm[-1].candidates]
    again = []
    list(tiny_engine(3, image=Likes(prettiness), video=Likes(motion)).stream("a red circle", watch=again.append))  # fmt: skip
    assert all(torch.equal(a, c.latents) for a, c in zip(first, again[-1].candidates, strict=True))


def test_a_search_that_never_asks_is_refused():
    settings = Settings().with_changes({"search.policy": "single"})
    with pytest.raises(RuntimeError, match="asks no rewards|about whole videos only"):
        measure(settings, {"stub": load_reward("stub")}, ["x"], 1)
    settings = Settings().with_changes({"search.policy": "best-of-n", "seconds": 0.5})
    with pytest.raises(RuntimeError, match="about whole videos only"):
        measure(settings, {"stub": load_reward("stub")}, ["x"], 1)


def test_a_reward_that_tells_nothing_apart_is_refused():
    same = Spread()
    for _ in range(5):
        same.add(2.0)
    with pytest.raises(ValueError, match="flat: gave 5 finite scores that differ by 0.0"):
        report({"flat": same}, {})


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["calibrate", *map(str, arguments)])
    return calibrate.main()


def test_the_file_it_writes_is_one_that_ensembles_read(tmp_path, monkeypatch, capsys):
    path, prompts = tmp_path / "statistics.json", tmp_path / "prompts.txt"
    prompts.write_text("a red circle moving left\n")
    assert run(monkeypatch, "sprites-image*0.5+stub*0.5", "sprites-video", "-o", path, "--prompts-file", prompts, "--set", "seconds=0.7") == 0  # fmt: skip
    table = json.loads(path.read_text())
    assert table.keys() == {"about", "sprites-image", "sprites-video", "stub"}
    assert table["stub"]["samples"] == table["sprites-video"]["samples"] >= 4
    assert table["about"]["prompts"] == 1 and table["about"]["generator"] == "sprites"
    assert "sprites-video" in capsys.readouterr().out
    load_reward("stub*0.5+sprites-video", statistics=str(path))


def test_what_cannot_be_measured_is_one_line_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "statistics.json"
    for arguments, sentence in (
        (["hpsv9"], "unknown reward 'hpsv9'"),
        (["stub", "--preset", "longlive"], "--prompts-file: give prompts"),
        (["stub", "--set", "seconds"], "--set: want NAME=VALUE"),
        (["stub", "--prompts-file", str(tmp_path / "none.txt")], ""),
        (["stub", "--preset", "short"], "argument --preset: invalid choice"),
        (["stub", "--set", "run.device=cuda:99"], "run.device: 'cuda:99' cannot be used here"),
    ):
        assert run(monkeypatch, *arguments, "-o", path) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {sentence}") and said.count("\n") == 1
    assert not path.exists()
