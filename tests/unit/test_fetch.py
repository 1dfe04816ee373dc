"""Fetching from a fake hub: what is shown, what is pinned, what is downloaded and what becomes of it."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from runtime import catalogue, convert, fetch
from runtime.manifest import verify
from runtime.rewards import load_reward
from runtime.types import Clip
from tests.fake_hub import commit
from tests.fetching import (  # fmt: skip
    BACKBONE,
    FIRST,
    MAKER,
    NAME,
    SECOND,
    WEIGHTS,
    Bench,
    published,
    small_row,
)
from tests.tiny import generator_of


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def score(bench: Bench) -> torch.Tensor:
    frames = torch.rand(1, 1, 3, 60, 90, generator=generator_of(3))
    return load_reward(NAME, "cpu", str(bench.home)).score(Clip(frames, "a cat", 16, 0))


def test_what_is_fetched_is_checked_converted_and_scores(bench, capsys):
    assert bench.fetch() == 0
    assert torch.isfinite(score(bench)).all()
    verify(bench.target)
    facts = bench.manifest["facts"]
    assert facts["source"] == f"{MAKER}@{FIRST}, {BACKBONE}@{FIRST}"
    assert facts["licence"] == "CC BY-NC-SA 4.0, MIT"
    assert "ready in" in (out := capsys.readouterr().out) and "python -m runtime HERE" in out
    assert sorted(path.name for path in bench.home.iterdir()) == [NAME, "pins.json"]


def test_what_it_will_take_is_shown_before_anything_is_taken(bench, capsys, monkeypatch):
    assert bench.fetch(yes=False) == 2  # pytest's stdin is no terminal
    out, err = capsys.readouterr()
    assert bench.hub.downloads == []
    size = len(published()[WEIGHTS])
    assert f"{WEIGHTS}" in out and f"{size / 1000:.3g} kB" in out
    assert f"{MAKER} at {FIRST[:12]}, CC BY-NC-SA 4.0, NOT for commercial use" in out
    assert f"{BACKBONE} at {FIRST[:12]}, MIT\n" in out
    assert "to download:" in out and "free" in out and "to convert: at most" in out
    assert err.count("\n") == 1 and "--yes" in err


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("\n", 130), ("n\n", 130)])
def test_a_terminal_is_asked(bench, monkeypatch, answer, code):
    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert bench.fetch(yes=False) == code
    assert bool(bench.hub.downloads) == (code == 0)


def test_a_second_call_asks_the_hub_nothing(bench, capsys):
    bench.fetch()
    bench.hub.asked.clear()
    assert bench.fetch() == 0
    assert bench.hub.asked == []
    assert "already" in capsys.readouterr().out


def test_a_branch_that_moves_moves_nothing_until_asked(bench, capsys):
    bench.fetch()
    before = score(bench)
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    assert bench.fetch() == 0
    assert torch.equal(score(bench), before)
    assert bench.fetch("--update") == 0
    assert f"{MAKER}: pinned to {SECOND}" in capsys.readouterr().out
    assert not torch.equal(score(bench), before)
    assert bench.manifest["facts"]["source"].startswith(f"{MAKER}@{SECOND}")
    pins = json.loads((bench.home / "pins.json").read_text())["repositories"]
    assert pins[MAKER]["revision"] == SECOND and pins[BACKBONE]["revision"] == FIRST


def test_pins_outlive_what_was_converted(bench):
    bench.fetch("--no-convert")
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    bench.hub.asked.clear()
    assert bench.fetch() == 0
    assert bench.hub.asked == []  # files are here, sizes and digests are in the lock file
    assert bench.manifest["facts"]["source"].startswith(f"{MAKER}@{FIRST}")


def test_a_commit_of_the_catalogue_is_taken_and_its_digests_are_believed(bench, monkeypatch, capsys):  # fmt: skip
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    row = small_row(FIRST)
    monkeypatch.setitem(catalogue.CATALOGUE, NAME, row)
    assert bench.fetch() == 0
    assert ("resolve", MAKER, FIRST) in bench.hub.asked
    maker = row.parts[0]
    known = replace(maker.files[0], sha256="0" * 64)
    other = replace(row, parts=(replace(maker, files=(known, *maker.files[1:])), row.parts[1]))
    monkeypatch.setitem(catalogue.CATALOGUE, NAME, other)
    bench.home = bench.home.with_name("second")
    assert bench.fetch() == 1
    assert f"{MAKER}/{WEIGHTS}: known as {'0' * 64}" in capsys.readouterr().err
    assert not bench.target.exists()


def test_a_commit_may_be_chosen_and_stays(bench, capsys):
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    assert bench.fetch("--revision", f"{MAKER}={FIRST}") == 0
    assert bench.manifest["facts"]["source"].startswith(f"{MAKER}@{FIRST}")
    assert bench.fetch("--revision", f"{MAKER}={SECOND}") == 2
    assert "add --update to change the pin" in capsys.readouterr().err
    assert bench.fetch("--revision", f"{MAKER}={SECOND}", "--update") == 0
    assert bench.manifest["facts"]["source"].startswith(f"{MAKER}@{SECOND}")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (f"{MAKER}=main", "the 40 digits of a commit"),
        (f"{MAKER}={FIRST[:12]}", "the 40 digits of a commit"),
        (f"{MAKER}={FIRST.upper()}", "the 40 digits of a commit"),
        (f"HPSv3={FIRST}", "OWNER/NAME=COMMIT"),
        (f"else/where={FIRST}", "else/where is no part of this"),
    ],
)
def test_a_revision_that_could_move_or_belongs_to_nothing_is_refused(bench, capsys, pair, message):
    assert bench.fetch("--revision", pair) == 2
    assert message in capsys.readouterr().err
    assert bench.hub.asked == []


def test_rows_share_the_files_they_have_in_common(bench, monkeypatch):
    twin = replace(small_row(), name="twin", becomes=NAME)
    monkeypatch.setitem(catalogue.CATALOGUE, "twin", twin)
    assert bench.fetch("twin", "--no-convert") == 0
    assert sorted(bench.hub.downloads) == sorted([WEIGHTS, "rubric.txt", "config.json", "tokenizer.json"])  # fmt: skip
    assert [what for what in bench.hub.asked if what[0] == "resolve"] == [
        ("resolve", MAKER, ""),
        ("resolve", BACKBONE, ""),
    ]


def test_rows_that_make_one_folder_are_not_fetched_together(bench, monkeypatch, capsys):
    monkeypatch.setitem(catalogue.CATALOGUE, "twin", replace(small_row(), name="twin", becomes=NAME))  # fmt: skip
    assert bench.fetch("twin") == 2
    assert f"{NAME} and twin make one folder" in capsys.readouterr().err
    assert bench.hub.asked == []


def test_without_the_client_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert fetch.main(["longlive", "-o", str(tmp_path), "--yes"]) == 1
    assert "pip install huggingface_hub" in capsys.readouterr().err


def test_without_conversion_the_command_that_converts_is_said_and_works(bench, capsys):
    assert bench.fetch("--no-convert") == 0
    out = capsys.readouterr().out
    assert not bench.target.exists() and "to convert: at most" not in out
    command = out.strip().splitlines()[-1].partition("python -m runtime.convert ")[2].split()
    assert convert.main([*command, "--quiet"]) == 0
    assert torch.isfinite(score(bench)).all()


def test_a_rubric_that_was_put_there_outlives_an_update(bench):
    bench.fetch()
    text = "Rate {prompt} from one to ten. <|Reward|>"
    (bench.target / "rubric.txt").write_text(text)
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    assert bench.fetch("--update") == 0
    assert (bench.target / "rubric.txt").read_text() == text
    verify(bench.target)
    assert [path.name for path in bench.home.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("update", [(), ("--update",)])
def test_a_folder_that_was_not_fetched_is_never_replaced(bench, capsys, update):
    bench.target.mkdir(parents=True)
    (bench.target / "mine.txt").write_text("mine")
    assert bench.fetch(*update) == 2
    assert "will not be replaced" in capsys.readouterr().err
    assert (bench.target / "mine.txt").read_text() == "mine"
    assert bench.hub.downloads == []


def test_a_folder_made_of_another_commit_is_replaced_only_when_asked(bench, capsys):
    bench.fetch()
    (bench.home / "pins.json").unlink()
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    before = score(bench)
    assert bench.fetch() == 2
    assert f"was made of {MAKER}@{FIRST}" in capsys.readouterr().err
    assert torch.equal(score(bench), before)


def test_the_list_needs_no_hub_and_no_name(capsys):
    assert fetch.main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in ("longlive", "hpsv3", "videoalign", "imagereward", "causvid", "wan-1.3b-diffusers"):
        assert name in out
    assert out.count("NOT for commercial use") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to fetch"),
        (["longliv"], "did you mean longlive?"),
        (["longlive", "--revison=x"], "unrecognized arguments"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message, capsys):
    assert fetch.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_files_of_a_repository_that_a_later_row_needs_are_added_to_its_pin(bench, monkeypatch):
    bench.fetch()
    row = small_row()
    maker = row.parts[0]
    bench.hub.repositories[MAKER][FIRST]["extra.txt"] = b"more"
    more = replace(maker, files=(catalogue.HubFile("extra.txt", 4),))
    monkeypatch.setitem(catalogue.CATALOGUE, "more", replace(row, name="more", parts=(more,)))
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    assert fetch.main(["more", "-o", str(bench.home), "--yes", "--no-convert"], bench.hub) == 0
    pins = json.loads((bench.home / "pins.json").read_text())["repositories"][MAKER]
    assert pins["revision"] == FIRST and {WEIGHTS, "extra.txt"} <= pins["files"].keys()


def test_the_hubs_files_are_named_by_a_hash_of_their_content():
    assert commit("first") != commit("second")  # else the tests above would pass for nothing
