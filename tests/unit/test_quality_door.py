"""``python -m runtime.bench.quality`` from the outside: goes on where it stopped, and says what is wrong in one line."""

import importlib
import json

import pytest

from runtime.bench.quality import run as running
from runtime.bench.quality import worlds
from runtime.bench.quality.options import QUICK, parse, workers
from runtime.bench.quality.store import ROWS, read, tuning_rows
from tests.quality_world import MeanWorld

main = importlib.import_module("runtime.bench.quality.__main__").main
SHORT = ["--world", "mean", "--seconds", "0.5", "--prompts", "2", "--workers", "1", "--keep", "0"]


@pytest.fixture(autouse=True)
def world(monkeypatch):
    monkeypatch.setitem(worlds.WORLDS, "mean", "tests.quality_world:MeanWorld")
    monkeypatch.setattr(MeanWorld, "load", staticmethod(lambda wishes: MeanWorld()))


def test_a_run_makes_tables_and_a_second_one_makes_nothing(tmp_path, capsys, monkeypatch):
    command = [*SHORT, "--methods", "single", "best-of-n", "--out", str(tmp_path)]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "Ways to spend the same candidates" in first.out and "4/4 videos" in first.err
    assert len((tmp_path / ROWS).read_text().splitlines()) == 1 + 4
    assert "Best-of-N" in (tmp_path / "tables.md").read_text()
    monkeypatch.setattr(running.Maker, "make", None)
    assert main(command) == 0
    assert capsys.readouterr().out == first.out
    assert main([*SHORT, "--tables-only", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == first.out


def test_a_run_that_is_stopped_goes_on(tmp_path, capsys, monkeypatch):
    command = [*SHORT, "--methods", "single", "--batch", "1", "--out", str(tmp_path)]
    make, made = running.Maker.make, []

    def stopped(maker, job):
        if made:
            raise KeyboardInterrupt
        made.append(job)
        return make(maker, job)

    monkeypatch.setattr(running.Maker, "make", stopped)
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(
        running.Maker, "make", lambda maker, job: made.append(job) or make(maker, job)
    )
    assert main(command) == 0
    assert [job.prompts for job in made] == [(0,), (1,)]


def test_rows_of_other_settings_or_prompts_are_refused(tmp_path, capsys, monkeypatch):
    command = [*SHORT, "--methods", "single", "--out", str(tmp_path)]
    assert main(command) == 0
    assert main([*command, "--set", "noise.beta=0.3"]) == 2
    assert (
        "other settings: want noise.beta = 0.3, found noise.beta = -0.1" in capsys.readouterr().err
    )
    monkeypatch.setattr(MeanWorld, "version", "2")
    assert main(command) == 2
    assert "other measures: want version = '2', found version = '1'" in capsys.readouterr().err
    monkeypatch.setattr(MeanWorld, "version", "1")
    monkeypatch.setattr(MeanWorld, "texts", lambda self, count: ["a cat", "a dog"][:count])
    assert main(command) == 2
    assert "prompt 0 was 'a red circle' there and is 'a cat' now" in capsys.readouterr().err


def test_rows_of_tuning_prompts_are_of_a_world_of_their_own(tmp_path):
    command = [*SHORT, "--methods", "single", "--split", "tuning", "--out", str(tmp_path)]
    assert main(command) == 0
    assert not (tmp_path / ROWS).exists()
    assert {row.key.world for row in tuning_rows(tmp_path)} == {"mean-tuning"}
    assert read(tmp_path / "tuning")[0]["prompts"] == "tuning"


def test_layout_may_change_between_two_starts(tmp_path):
    command = [*SHORT, "--methods", "single", "--out", str(tmp_path)]
    assert main([*command, "--batch", "1"]) == 0
    assert main([*command, "--batch", "2", "--set", "run.overlap=false"]) == 0


def test_the_header_says_what_made_the_rows(tmp_path):
    assert main([*SHORT, "--methods", "single", "--out", str(tmp_path)]) == 0
    header = json.loads((tmp_path / ROWS).read_text().splitlines()[0])
    assert set(header["weights"]) == {"sprites", "sprites-image", "sprites-video"}
    assert all(len(digest) == 12 for digest in header["weights"].values())
    assert header["world"] == "mean" and header["made"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world", "sprite"], "--world: want one of sprites, vbench, moviegen, mean, got 'sprite'; did you mean 'sprites'?"),
        (["--methods", "beem"], "method: want one of single"),
        ([*SHORT, "--methods", "stream-t1[noise.bet=1]"], "noise.bet: no such setting; did you mean noise.beta?"),
        (["--prompts", "0"], "--prompts: want at least 1, got 0"),
        (["--seconds", "0"], "--seconds: want lengths above 0"),
        ([*SHORT, "--set", "search.seed=3"], "search.seed is what --seconds, --seeds"),
        ([*SHORT, "--set", "noise.beta"], "--set: want NAME=VALUE"),
        (["--sweep", "nothing"], "--sweep: want all or one of"),
        (["--tables-only"], "no rows there"),
        (["--report", "nowhere/at/all.html"], "--report: there is no folder"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told_in_one_line(arguments, message, tmp_path, capsys):
    if "--sweep" in arguments:
        pytest.importorskip("runtime.bench.quality.sweeps")
    assert main(["--out", str(tmp_path), *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_defaults_are_the_whole_comparison_and_quick_is_less():
    usual, quick = parse([]), parse(["--quick"])
    assert usual.prompts == 128 and usual.seconds == (5.0,) and len(usual.methods) == 8
    assert quick.prompts == QUICK["prompts"] and quick.methods == usual.methods
    assert parse(["--quick", "--prompts", "3"]).prompts == 3


def test_sweeps_are_made_on_the_tuning_prompts():
    pytest.importorskip("runtime.bench.quality.sweeps")
    swept = parse(["--sweep", "noise.beta", "--out", "o"])
    assert swept.split == "tuning" and swept.prompts == 64 and swept.out.name == "tuning"
    assert "stream-t1" in swept.methods and "stream-t1[noise.beta=0.3]" in swept.methods
    assert "single" not in swept.methods


def test_the_scaling_law_compares_search_with_best_of_n():
    asked = parse(["--scaling"]).methods
    assert {"single", "stream-t1[4x4]", "best-of-n[4x4]"} <= set(
        asked
    ) and "no-sinking" not in asked


def test_a_gpu_has_one_worker_unless_asked():
    assert workers(None, "cuda") == 1 and workers(3, "cuda") == 3 and workers(None, "cpu") >= 1
