"""The command line's budget: one video after another at a pace, told in the report and in the trace."""

import json
import re

import pytest
import torch

from runtime.__main__ import main
from runtime.paced import PacedEngine, described
from tests.tiny import Echo, tiny_engine

CHUNKS = 6
MANY = {"search.histories": 3, "search.expansions": 3}


class Coloured(Echo):
    """Three channels, as a video has."""

    def decode(self, latents, state):
        frames, state = super().decode(latents, state)
        return frames[:, :, :3], state


def test_an_easy_pace_is_the_video_as_it_is_without():
    paced = PacedEngine(tiny_engine(CHUNKS), 1e-3)
    records = []
    got = list(paced.stream_many(["words", "other words"], watch=records.append))
    plain = tiny_engine(CHUNKS)
    want = [(n, e) for n, words in enumerate(("words", "other words")) for e in plain.stream(words)]
    assert [n for n, _ in got] == [n for n, _ in want]
    assert all(torch.equal(a.frames, b.frames) for (_, a), (_, b) in zip(got, want, strict=True))
    assert [r.prompt for r in records] == [0] * CHUNKS + [1] * CHUNKS
    assert paced.engine.pool.used == 0


def test_an_impossible_pace_ends_at_one_candidate_and_the_next_video_knows_at_once():
    paced = PacedEngine(tiny_engine(CHUNKS, MANY), 1e9)
    list(paced.stream_many(["words", "words"]))
    rows = [[spent.rows for spent in paced.budgets[number].history] for number in (0, 1)]
    assert rows[0][0] == 9 and rows[0][-1] == 1, "before anything is measured: as asked for"
    assert rows[1] == [1] * CHUNKS
    notes = described(paced.budgets[0])
    assert notes[0]["predicted_ms"] is None and not notes[-1]["fits"]
    json.dumps(notes, allow_nan=False)


def test_closing_it_early_gives_the_memory_back():
    paced = PacedEngine(tiny_engine(CHUNKS), 16)
    events = paced.stream_many(["words"])
    next(events)
    events.close()
    assert paced.engine.pool.used == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search.policy": "single"}, "wants a search that selects, got policy 'single'"),
        ({"search.policy": "best-of-n"}, "wants a search that selects"),
        ({"run.speculate": True}, "wants run.speculate off"),
    ],
)
def test_what_leaves_nothing_to_choose_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        PacedEngine(tiny_engine(CHUNKS, changes), 16)


def test_the_command_reports_what_was_chosen_and_kept(tmp_path, capsys):
    video, trace = tmp_path / "a.mp4", tmp_path / "a.json"
    command = ["words", "-o", str(video), "--trace", str(trace), "--budget-fps", "1e9"]
    command += ["--scale", "16"]
    engine = tiny_engine(CHUNKS, MANY, decoder=Coloured())
    assert main(command, lambda settings: engine) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("budget")]
    assert re.match(
        r"budget  1e\+09 FPS: K 1 M 1 stride \d for \d chunks, .*; kept [\d.]+; the pace", line
    )
    notes = json.loads(trace.read_text())["budget"]
    assert [note["histories"] for note in notes][-1] == 1 and len(notes) == CHUNKS


@pytest.mark.parametrize("pace", ["0", "-3", "nan", "inf", "fast"])
def test_the_command_wants_a_pace_above_0(pace, capsys):
    assert main(["words", "--budget-fps", pace]) == 2
    assert "--budget-fps" in capsys.readouterr().err
