"""What a network, a hub, a disk and an impatient user do to a fetch; each is one line that says what to do."""

import collections
import errno
import json
import shutil

import pytest
from safetensors.torch import load, save

from runtime import fetch, order
from runtime.hub import HubError
from tests.fetching import BACKBONE, FIRST, MAKER, NAME, SECOND, WEIGHTS, Bench, published

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.endswith("\n"), err
    return err


def test_a_connection_that_is_cut_is_gone_on_with_by_the_same_command(bench, capsys):
    size = len(published()[WEIGHTS])
    bench.hub.cut_after = size // 2
    assert bench.fetch() == 1
    assert f"copy weights/{NAME} into {bench.home}" in one_line(capsys)
    assert not bench.target.exists()
    bench.hub.cut_after = -1
    assert bench.fetch() == 0
    begun = [what[4] for what in bench.hub.asked if what[0] == "download" and what[2] == WEIGHTS]
    assert begun == ["0", str(size // 2)]  # the second went on where the first had stopped
    assert [what for what in bench.hub.asked if what[0] == "resolve"] == [("resolve", MAKER, ""), ("resolve", BACKBONE, "")]  # fmt: skip


@pytest.mark.parametrize("name", [WEIGHTS, "rubric.txt"])  # a sha256 and git's blob id
def test_a_flipped_bit_is_found_named_and_fetched_again(bench, capsys, name):
    bench.hub.spoiled = name
    assert bench.fetch() == 1
    line = one_line(capsys)
    assert name in line and "the damaged file is removed" in line
    assert ("sha256" if name == WEIGHTS else "git's blob id") in line
    assert bench.hub.held(MAKER, name, FIRST) is None and not bench.target.exists()
    bench.hub.spoiled = ""
    assert bench.fetch() == 0


def test_a_file_damaged_after_it_was_downloaded_is_found(bench, capsys):
    bench.fetch("--no-convert")
    capsys.readouterr()
    path = bench.hub.held(MAKER, WEIGHTS, FIRST)
    path.write_bytes(path.read_bytes()[:-1])
    assert bench.fetch() == 1
    assert "want" in (line := one_line(capsys)) and "bytes, got" in line


def test_a_hub_that_changes_its_mind_about_a_commit_is_not_believed(bench, capsys):
    bench.fetch("--no-convert")
    capsys.readouterr()
    bench.hub.lying = WEIGHTS
    assert bench.fetch("--update") == 1
    assert f"{MAKER}/{WEIGHTS}: known as" in one_line(capsys)


def test_a_hub_that_answers_with_another_commit_is_not_believed(bench, capsys):
    resolve = bench.hub.resolve
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    bench.hub.resolve = lambda repo, revision: resolve(repo, SECOND if repo == MAKER else revision)
    assert bench.fetch("--revision", f"{MAKER}={FIRST}") == 1
    assert f"asked for {FIRST}, got {SECOND}" in one_line(capsys)
    assert bench.hub.downloads == []


def test_a_file_that_is_not_in_the_repository_is_named(bench, capsys):
    del bench.hub.repositories[MAKER][FIRST]["rubric.txt"]
    assert bench.fetch() == 1
    line = one_line(capsys)
    assert f"{MAKER} has no rubric.txt" in line and f"--revision {MAKER}=COMMIT" in line


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("offline", f"run `python -m runtime.fetch {NAME} -o weights`, then copy weights/{NAME} into"),
        ("gated", f"agree to the terms at huggingface.co/{MAKER}, then run `hf auth login`"),
        ("missing", f"--revision {MAKER}=COMMIT --update"),
        ("full", "make room, or set HF_HOME to another disk"),
        ("broken", "run the same command again"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(bench, capsys, kind, advice):
    bench.hub.refusal = HubError(kind, f"{MAKER}: no", MAKER)
    assert bench.fetch() == 1
    assert advice in one_line(capsys)
    assert not bench.home.exists() or not list(bench.home.iterdir())


def test_a_disk_that_is_too_small_is_told_before_anything_is_downloaded(bench, capsys, monkeypatch):
    monkeypatch.setattr(order.shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 1000))
    assert bench.fetch() == 1
    line = one_line(capsys)
    assert "of free disk, got 1 kB" in line and "-o DIR" in line
    assert bench.hub.downloads == []


def test_downloads_and_conversion_are_added_up_where_they_share_a_disk(bench, capsys, monkeypatch):
    total = sum(map(len, published().values()))
    enough_for_one = int(1.5 * total)
    monkeypatch.setattr(order.shutil, "disk_usage", lambda path: Usage(0, 0, enough_for_one))
    assert bench.fetch() == 1
    assert "of free disk" in one_line(capsys)
    assert bench.fetch("--no-convert") == 0


def test_a_disk_that_fills_up_while_it_is_converted_leaves_nothing_half_done(bench, capsys, monkeypatch):  # fmt: skip
    bench.fetch()
    before = bench.manifest
    bench.hub.repositories[MAKER][SECOND] = published(seed=1)
    capsys.readouterr()

    def full(self, name, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("runtime.shards.FolderWriter.text", full)
        assert bench.fetch("--update") == 1
    assert "the disk is full: make room" in one_line(capsys)
    assert bench.manifest == before  # the old folder stands
    assert [path.name for path in bench.home.iterdir() if path.name.startswith(".")] == []
    bench.hub.asked.clear()
    assert bench.fetch("--update") == 0
    assert bench.hub.downloads == []  # what had arrived was kept


def test_ctrl_c_stops_in_one_line_and_keeps_what_has_arrived(bench, capsys, monkeypatch):
    download = bench.hub.download

    def impatient(repo, path, revision):
        if path == "config.json":
            raise KeyboardInterrupt
        return download(repo, path, revision)

    bench.hub.download = impatient
    assert bench.fetch() == 130
    assert "the same command goes on from there" in one_line(capsys)
    assert not bench.target.exists()
    bench.hub.download = download
    assert bench.fetch() == 0
    assert bench.hub.downloads.count(WEIGHTS) == 1


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": 2, "repositories": {}}',
        '{"format": 1, "repositories": []}',
        '{"format": 1, "repositories": {"a/b": {"revision": "main", "files": {}}}}',
        json.dumps({"format": 1, "repositories": {MAKER: {"revision": FIRST, "files": {"x": {"bytes": -1, "digest": FIRST}}}}}),
        json.dumps({"format": 1, "repositories": {MAKER: {"revision": FIRST, "files": {"x": {"bytes": 1, "digest": "no"}}}}}),
        json.dumps({"format": 1, "repositories": {MAKER: {"revision": FIRST, "files": {"x": {"size": 1}}}}}),
    ],
)  # fmt: skip
def test_a_damaged_lock_file_is_named_and_left(bench, capsys, content):
    bench.home.mkdir()
    (bench.home / "pins.json").write_text(content)
    assert bench.fetch() == 2
    assert str(bench.home / "pins.json") in one_line(capsys)
    assert (bench.home / "pins.json").read_text() == content
    assert bench.hub.asked == []


def test_published_weights_that_do_not_fit_are_named_and_the_downloads_stay(bench, capsys):
    state = load(published()[WEIGHTS])
    del state["rm_head.3.bias"]
    bench.hub.repositories[MAKER][FIRST][WEIGHTS] = save(state)
    assert bench.fetch() == 2
    assert "missing rm_head.3.bias" in one_line(capsys)
    assert not bench.target.exists() and bench.hub.held(MAKER, WEIGHTS, FIRST)


def test_downloads_on_another_disk_are_reached_by_links(bench, monkeypatch):
    def elsewhere(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(fetch.os, "link", elsewhere)
    assert bench.fetch() == 0
    assert (bench.target / "model.safetensors").is_file()
    shutil.rmtree(bench.hub.folder)
    assert not (bench.target / "model.safetensors").is_symlink()
