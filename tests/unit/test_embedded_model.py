"""The weights in the package: they load, they are what was trained, and they show what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import runtime
from runtime.bench.sprites.accept import accept
from runtime.bench.sprites.world import all_captions, held_out_captions, training_captions
from runtime.engine import Engine
from runtime.presets import preset

PACKAGE = Path(runtime.__file__).parent
BUDGET_BYTES = 24_000_000


def test_all_embedded_weights_together_stay_within_the_budget():
    files = [
        path for path in PACKAGE.rglob("sprites/*") if path.suffix in (".safetensors", ".json")
    ]
    assert len(files) >= 9
    assert sum(path.stat().st_size for path in files) < BUDGET_BYTES


def test_held_out_captions_are_not_trained_on():
    held_out = set(held_out_captions(128))
    assert not held_out & set(training_captions())
    assert held_out < set(all_captions())


@pytest.fixture(scope="module")
def plain():
    return Engine(preset("sprites").with_changes({"search.policy": "single"}))


def test_plain_streaming_shows_colours_backgrounds_and_motions_of_captions_it_never_saw(plain):
    result = accept(plain, held_out_captions(8, seed=1))
    assert result.rate("colour") >= 7 / 8
    assert result.rate("background") >= 7 / 8
    assert result.rate("motion") >= 4 / 8
    assert result.measure("presence") > 0.9


def test_the_tokeniser_names_words_it_does_not_know(plain):
    assert plain.unknown_words("a Red, CIRCLE moving right") == []
    assert plain.unknown_words("a mauve circle on a mauve zeppelin") == ["mauve", "zeppelin"]


def test_stream_t1_runs_every_part_and_settles_every_frame_once():
    engine = Engine(preset("sprites").with_changes({"seconds": 4.4}))
    records = []
    frames = [
        event.frames
        for event in engine.stream("a pink ring moving up slowly", watch=records.append)
    ]
    assert [len(part) for part in frames] == [9, 12, 12, 12, 12, 12]
    assert all(len(record.candidates) == 4 for record in records)
    scores = [c.scores.fused for record in records for c in record.candidates]
    assert all(torch.isfinite(torch.tensor(scores)))
    assert {"noise", "denoise", "decode", "image reward", "video reward", "memory"} <= set(
        records[1].stage_ms
    )
    engine.pool.check([])
