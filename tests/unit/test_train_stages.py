"""The recipe of the embedded model is in an order in which it can be run: nothing is read before it is written."""

import importlib
from pathlib import Path

import pytest

from runtime.bench.sprites import train

INPUTS = ("--vae", "--start", "--decoded", "--judged-by", "--corpus")


@pytest.fixture
def stages():
    return train.stages(Path("made"), "cpu")


def test_every_stage_writes_something_of_its_own(stages):
    results = [result for result, _ in stages]
    assert len(set(results)) == len(results)
    for name in (*train.GENERATOR, *train.REWARDS):
        if name != "text":  # written with the DiT
            assert Path("made", f"{name}.safetensors") in results


def test_every_stage_reads_what_an_earlier_one_wrote(stages):
    written: set[Path] = set()
    for result, words in stages:
        asked = zip(words, words[1:], strict=False)
        for path in (Path(value) for option, value in asked if option in INPUTS):
            # A checkpoint lies beside the weights it ended with, a corpus is a folder of shards.
            known = {p.with_suffix("") for p in written} | {p.parent for p in written}
            assert path.with_suffix("") in known, f"{words[0]} reads {path}"
        written.add(result)


def test_every_stage_is_a_module_that_takes_its_options(stages, monkeypatch, capsys):
    for _, (name, *options) in stages:
        module = importlib.import_module(f"runtime.bench.sprites.{name}")
        # An unknown last option makes argparse name it, after it has taken all the others.
        monkeypatch.setattr("sys.argv", [name, *options, "--no-such-option"])
        with pytest.raises(SystemExit):
            module.main()
        assert "unrecognized arguments: --no-such-option" in capsys.readouterr().err, name
