"""A folder is what its manifest says, or the file that is not is named."""

import json
from pathlib import Path

import pytest
import torch

from runtime import manifest
from runtime.shards import FolderWriter, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with FolderWriter(tmp_path / "out") as out:
        out.weights("net", {"a": torch.arange(10.0), "b": torch.ones(3, 2)})
        out.json("net", {"config": {"dim": 1}})
        out.text("words.txt", "red\n")
    return tmp_path / "out"


def test_a_whole_folder_is_verified(folder):
    verify(folder)
    table = json.loads((folder / "manifest.json").read_text())
    assert table["format"] == 1
    assert set(table["files"]) == {"net.safetensors", "net.json", "words.txt"}
    assert table["files"]["words.txt"] == {
        "bytes": 4,
        "sha256": manifest.sha256(folder / "words.txt"),
    }
    (folder / ".hidden").touch()
    (folder / "engines").mkdir()
    verify(folder)


def test_a_folder_without_a_manifest_has_nothing_to_be_compared_with(folder):
    (folder / "manifest.json").unlink()
    (folder / "words.txt").write_text("blue")
    verify(folder)


@pytest.mark.parametrize("name", ["net.safetensors", "net.json", "words.txt"])
def test_every_bit_counts(folder, name):
    path = folder / name
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=f"the bytes of {name} are not those of its manifest"):
            verify(folder)


def test_files_that_are_lost_added_or_cut_are_named(folder):
    (folder / "stray").touch()
    with pytest.raises(ValueError, match=r"manifest\.json: does not list stray"):
        verify(folder)
    (folder / "stray").unlink()
    (folder / "words.txt").write_text("re")
    with pytest.raises(ValueError, match=r"not of the length .*: words\.txt"):
        verify(folder)
    (folder / "words.txt").unlink()
    with pytest.raises(ValueError, match=r"lists files that are not there: words\.txt"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t["files"].update({"../x": {"bytes": 1, "sha256": "0"}}),
            "want plain file names",
        ),
        (lambda t: t["files"].update({"/x": {"bytes": 1, "sha256": "0"}}), "want plain file names"),
        (lambda t: t["files"].update(x={"bytes": "1", "sha256": "0"}), "x: want bytes and sha256"),
        (lambda t: t["files"].update(x=3), "x: want bytes and sha256, got 3"),
        (lambda t: t.update(format=2), 'want {"format": 1'),
        (lambda t: t.pop("files"), 'want {"format": 1'),
        (lambda t: t.update(pad="x" * manifest.MAX_BYTES), "want at most 1048576 bytes"),
    ],
    ids=["above", "absolute", "text", "number", "format", "no-files", "large"],
)
def test_a_manifest_that_cannot_be_is_named(folder, change, words):
    path = folder / "manifest.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=words) as caught:
        verify(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "[" * 100_000])
def test_a_manifest_that_is_no_object_is_named(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: (not a JSON file|want)"):
        verify(folder)


def test_a_listed_link_that_leaves_the_folder_is_not_followed(folder, tmp_path):
    (folder / "words.txt").rename(tmp_path / "words.txt")
    (folder / "words.txt").symlink_to(tmp_path / "words.txt")
    with pytest.raises(ValueError, match=r"words\.txt: is a link that leaves its folder"):
        verify(folder)
