"""The diagnosis measures without disturbing: walks are plain streaming, probes share noise and change nothing."""

import json
import random
import sys

import pytest
import torch

from runtime.bench.quality import why
from runtime.bench.quality.prompts import held_out
from runtime.bench.quality.why_judge import MEASURES, TOTAL, Sight, judge, judge_chunk, tracked
from runtime.bench.quality.why_oracle import VIDEO_SCALE, with_oracle
from runtime.bench.quality.why_runs import Found, Plan
from runtime.bench.quality.why_text import page
from runtime.bench.quality.why_walks import is_probe, walking
from runtime.bench.sprites.world import Caption, Scene, render
from runtime.settings import Settings
from runtime.types import Branch, Candidate, ChunkRecord, Clip, Route, Scores, Trajectory
from tests.tiny import tiny_engine

CAPTION = Caption("circle", "red", "moving right", "slowly", "navy")
OTHER = Caption("star", "cyan", "moving right", "slowly", "navy")


def clip(caption, frames, start=0, seed=0):
    return render(Scene.draw(caption, random.Random(seed)), frames, start)


def watched(engine):
    records = []
    events = list(engine.stream("a red circle", watch=records.append))
    return torch.cat([event.frames for event in events]), records


def videos(records):
    """Of every walk, [walks, T, ...]."""
    return torch.cat([record.frames[list(record.kept)] for record in records], 1)


def test_walk_zero_is_plain_streaming_and_probes_change_no_walk():
    base = tiny_engine(7)
    single, _ = watched(tiny_engine(7, {"search.policy": "single"}))
    alone = videos(watched(walking(base.settings, base.parts, 3, 0, 0))[1])
    probed = videos(watched(walking(base.settings, base.parts, 3, 2, 2))[1])
    assert torch.allclose(alone[0], single, atol=1e-9)
    assert torch.allclose(alone, probed, atol=1e-9)
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_probes_try_the_same_noises_under_every_history_and_at_every_chunk():
    base = tiny_engine(4)
    _, records = watched(walking(base.settings, base.parts, 3, 2, 2))
    tried = {}
    for record in records:
        assert len(record.kept) == 3 and len(record.candidates) == (7 if record.index else 5)
        for candidate in record.candidates:
            if is_probe(candidate.branch):
                assert candidate.row not in record.kept
                tried.setdefault(candidate.branch.expansion, []).append(candidate.noise)
    first, second = tried.values()
    assert len(first) == len(second) == 1 + 3 * 2
    assert all(torch.equal(noise, first[0]) for noise in first)
    assert not torch.allclose(first[0], second[0])
    walks = [records[i].candidates[records[i].kept[0]].noise for i in range(4)]
    assert not any(torch.allclose(a, b) for a, b in zip(walks, walks[1:], strict=False))


def test_walks_judge_with_the_rewards_and_leave_no_block_behind():
    base = tiny_engine(8)
    engine = walking(base.settings, base.parts, 2, 1, 1)
    _, records = watched(engine)
    assert engine.pool.used == 0
    scores = [c.scores.fused for record in records for c in record.candidates]
    assert all(score == score for score in scores) and len(set(scores)) == len(scores)


def test_the_oracle_likes_what_the_caption_says_and_refuses_other_prompts():
    base = tiny_engine(2)
    video = with_oracle(base.parts).video
    frames = torch.stack([clip(CAPTION, 33), clip(OTHER, 33)])
    good, bad = video.score(Clip(frames, CAPTION.text, 16, 2)).tolist()
    assert good > bad + 0.5 and bad >= 0 and good <= VIDEO_SCALE
    assert good == pytest.approx(VIDEO_SCALE * judge(frames[0], CAPTION)[TOTAL], rel=1e-6)
    with pytest.raises(KeyError, match="a dog"):
        video.score(Clip(frames, "a dog", 16, 2))


def test_a_leap_between_chunks_is_the_new_chunks_fault():
    before, after = clip(CAPTION, 12), clip(CAPTION, 12, start=12)
    leapt = after.roll(30, 2)
    good, bad = (
        judge_chunk(None, tracked(before), tracked(chunk), CAPTION) for chunk in (after, leapt)
    )
    assert good["Motion"] > bad["Motion"] + 0.2
    assert judge(after, CAPTION)["Motion"] == pytest.approx(judge(leapt, CAPTION)["Motion"])


def test_drift_from_the_opening_costs_though_the_chunk_is_like_the_one_before():
    opening = tracked(clip(CAPTION, 21))
    darker = [0.8 * clip(CAPTION, 12, start) for start in (60, 72)]
    before, chunk = map(tracked, darker)
    same = judge_chunk(before, before, chunk, CAPTION)
    drifted = judge_chunk(opening, before, chunk, CAPTION)
    assert drifted["Subject"] < same["Subject"] - 0.1
    assert drifted["Background"] < same["Background"] - 0.05
    assert drifted["Motion"] == same["Motion"] and drifted["Imaging"] == same["Imaging"]


def record(index, parents, frames, kept):
    """A chunk whose rows extend ``parents``, and its survivors with noises of their own."""
    branches = [Branch(parent, 0, 0, 0, 0) for parent in parents]
    candidates = tuple(
        Candidate(b, row, torch.empty(0), torch.empty(0), Scores(0, 0, 0), Route.EMA)
        for row, b in enumerate(branches)
    )
    survivors = tuple(Trajectory(noise=torch.full((1,), row)) for row in kept)
    return ChunkRecord(index, 4, candidates, tuple(kept), survivors, torch.stack(frames), {})


def test_each_candidate_is_held_against_how_its_own_history_began():
    """Two histories that began in two colours swap ranks; a third chunk in the first colour fits one of them alone."""
    sight, root = Sight(CAPTION), Trajectory()
    red, blue = (clip(CAPTION, 9), clip(OTHER, 9))
    turn = record(0, [root, root], [red, blue], [1, 0])
    assert len(sight.look(turn)) == 2
    parents = [turn.survivors[1], turn.survivors[0]]  # red first
    for index in (1, 2):
        looks = [clip(CAPTION, 12, 12 * index), clip(OTHER, 12, 12 * index)]
        turn = record(index, parents, looks, [0, 1])
        sight.look(turn)
        parents = list(turn.survivors)
    last = record(3, parents, [clip(CAPTION, 12, 36)] * 2, [0])
    own, strange = sight.look(last)
    assert own["Subject"] > strange["Subject"] + 0.1
    assert len(sight.past) == 1, "what was not kept is forgotten"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One short video of each kind on the packaged weights, by the command itself."""
    folder = tmp_path_factory.mktemp("why")
    files = folder / "why.json", folder / "rows.jsonl"
    words = ["why", "--prompts", "1", "--seconds", "1.5", "--json", str(files[0])]
    words += ["--rows", str(files[1]), "--walks", "2", "--probed", "2"]
    before, sys.argv = sys.argv, words
    try:
        assert why.main() == 0
    finally:
        sys.argv = before
    return json.loads(files[0].read_text()), files[1].read_text().splitlines()


def test_the_command_writes_every_section_and_a_row_for_every_candidate(run):
    report, rows = run
    assert set(report) == {"about", "agreement", "regret", "oracle", "siblings", "routes", "gates", "noise", "drift"}  # fmt: skip
    assert len(rows) == report["about"]["candidates"]
    assert report["about"]["captions"][0] not in [c.text for c in held_out(128)]
    methods = [row["method"] for row in report["oracle"]]
    assert {"single", "stream-t1", "oracle", "best-of-n"} <= set(methods)
    assert all(0 <= row[name] <= 1 for row in report["oracle"] for name in MEASURES)
    later = [json.loads(row) for row in rows]
    assert {row["run"] for row in later} == {"search", "walk", "probe"}
    assert all(set(row["video"]) == set(MEASURES) for row in later if row["run"] == "walk")


def test_the_page_is_readable_with_a_single_prompt_too(run):
    text = page(run[0])
    assert "None" not in text and "nan" not in text
    assert "so few prompts cannot tell" in text
    assert max(map(len, text.splitlines())) < 170


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--prompts", "65"], "--prompts: want 1 to 64"),
        (["--set", "noise.bta=1"], "did you mean noise.beta"),
        (["--set", "search.policy=single"], "asks no rewards"),
        (["--walks", "1"], "--walks: want 2 to 49"),
        (["--rewards", "/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_wish_is_told_in_a_sentence(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["why", *words])
    assert why.main() == 2
    assert sentence in capsys.readouterr().err


class Impatient:
    """Runs whose second prompt is interrupted halfway."""

    def __init__(self, settings, plan):
        self.search = tiny_engine(1)

    def prompt(self, number, caption):
        if number:
            raise KeyboardInterrupt
        shows = dict.fromkeys(MEASURES, 0.5)
        return Found([], {"single": [shows], "oracle": [shows], "stream-t1": [shows]})


def test_an_interrupt_reports_the_prompts_that_are_finished(monkeypatch, capsys):
    monkeypatch.setattr(why, "Runs", Impatient)
    report, found = why.diagnose(Settings(), Plan(), 3)
    assert report["about"]["prompts"] == len(report["about"]["captions"]) == 1
    assert len(found.videos["oracle"]) == 1
    assert "1 of 3 prompts" in capsys.readouterr().err
