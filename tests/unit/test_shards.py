"""Weights in folders: read from mapped memory, written whole or not at all."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runtime import shards
from runtime.shards import FolderWriter, Stored, find_shards, shard_name, verify
from runtime.tensorfile import DTYPES


def tensors(count: int = 5) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.float16)
    table = {}
    for number in range(count):
        value = torch.randn(3, number + 1, generator=source) * 10
        table[f"layer.{number}"] = value.to(kinds[number % len(kinds)])
    return table | {"empty": torch.empty(0, 4), "scalar": torch.tensor(2.5)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with FolderWriter(tmp_path / "out") as out:
        out.weights("net", tensors())
        out.json("net", {"config": {"é": 1}})
        out.text("words.txt", "red\n")
    return tmp_path / "out"


def same(got, want) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)


def test_what_is_written_is_what_safetensors_reads(folder):
    same(load_file(folder / "net.safetensors"), tensors())
    with safe_open(folder / "net.safetensors", "pt") as file:
        assert set(file.keys()) == set(tensors())
    assert json.loads((folder / "net.json").read_text(encoding="utf-8")) == {"config": {"é": 1}}


def test_what_safetensors_writes_is_read_without_a_copy(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(tensors(), path)
    stored = Stored(path)
    same(stored, tensors())
    assert stored.shapes == {name: tuple(value.shape) for name, value in tensors().items()}
    assert stored["layer.1"].data_ptr() == stored["layer.1"].data_ptr()
    stored["layer.0"].fill_(7)  # a private page, not the file's
    assert not (load_file(path)["layer.0"] == 7).any()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(DTYPES)),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        max_size=6,
    ),
    st.integers(1, 200),
)
def test_any_tensors_in_any_shards_come_back(tmp_path_factory, shapes, most):
    source = torch.Generator().manual_seed(len(shapes))
    table = {
        f"t{number}": (torch.randn(shape, generator=source) * 3).to(DTYPES[kind])
        for number, (kind, shape) in enumerate(shapes)
    }
    target = tmp_path_factory.mktemp("any") / "out"
    before, shards.SHARD_BYTES = shards.SHARD_BYTES, most
    try:
        with FolderWriter(target) as out:
            out.weights("net", table)
    finally:
        shards.SHARD_BYTES = before
    verify(target)
    got = Stored(target / "net.safetensors")
    assert set(got) == set(table)
    for name, tensor in table.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name].view(torch.uint8) if tensor.ndim else got[name], tensor.view(torch.uint8) if tensor.ndim else tensor)  # fmt: skip


def test_released_memory_is_read_again_when_it_is_used(tmp_path):
    save_file({"a": torch.arange(5000.0), "b": torch.ones(5000)}, tmp_path / "n.safetensors")
    stored = Stored(tmp_path / "n.safetensors")
    a = stored["a"]
    stored.release("a")
    assert torch.equal(a, torch.arange(5000.0)) and (stored["b"] == 1).all()


def test_floats_are_stored_in_the_dtype_that_is_asked_for_and_integers_are_not(tmp_path):
    with FolderWriter(tmp_path / "out", torch.bfloat16) as out:
        out.weights("net", tensors())
        out.weights("wide", tensors(), torch.float32)
        assert out.stored_bytes(tensors().values()) == 2 * (3 * (1 + 2 + 3 + 5) + 1) + 8 * 3 * 4
    kinds = {name: value.dtype for name, value in Stored(tmp_path / "out/net.safetensors").items()}
    assert kinds.pop("layer.3") == torch.int64 and set(kinds.values()) == {torch.bfloat16}
    wide = Stored(tmp_path / "out/wide.safetensors")
    assert wide["layer.1"].dtype == torch.float32 and wide["layer.3"].dtype == torch.int64


def test_numbers_lie_at_multiples_of_their_size(folder):
    stored = Stored(folder / "net.safetensors")
    assert all(stored[name].data_ptr() % tensors()[name].itemsize == 0 for name in tensors())


def test_numbers_that_lie_elsewhere_are_moved(tmp_path):
    """A header of odd length, as writers that do not pad leave it."""
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    header += b" " * (1 - len(header) % 2)
    values = torch.arange(3.0)
    content = len(header).to_bytes(8, "little") + header + values.numpy().tobytes()
    (tmp_path / "n.safetensors").write_bytes(content)
    assert len(header) % 4 and torch.equal(Stored(tmp_path / "n.safetensors")["a"], values)
    assert Stored(tmp_path / "n.safetensors")["a"].data_ptr() % 4 == 0


# Shards.


@pytest.fixture
def sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shards, "SHARD_BYTES", 40)
    with FolderWriter(tmp_path / "out") as out:
        out.weights("net", iter(tensors().items()))
        out.weights("net-2", {"x": torch.ones(2)})
    return tmp_path / "out"


def test_shards_are_read_as_one(sharded):
    names = sorted(path.name for path in sharded.glob("net-0*"))
    assert len(names) > 2 and names[0] == shard_name("net", 1, len(names))
    same(Stored(sharded / "net.safetensors"), tensors())
    assert set(Stored(sharded / "net-2.safetensors")) == {"x"}


def test_a_shard_that_is_missing_or_too_many_is_named(sharded):
    names = sorted(path.name for path in sharded.glob("net-0*"))
    (sharded / names[1]).rename(sharded / "away")
    with pytest.raises(ValueError, match=f"missing {names[1]}; copy or fetch it again"):
        Stored(sharded / "net.safetensors")
    (sharded / "away").rename(sharded / names[1])
    save_file({"y": torch.ones(1)}, sharded / shard_name("net", 1, 99))
    with pytest.raises(ValueError, match=f"want {len(names)} shards of net, got also net-00001-of"):
        Stored(sharded / "net.safetensors")


def indexed(folder: Path, places: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(2)}, folder / "x.safetensors")
    save_file({"b": torch.ones(3)}, folder / "y.safetensors")
    index = folder / "net.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return folder / "net.safetensors"


def test_an_index_says_which_files_belong_together(tmp_path):
    path = indexed(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})
    assert find_shards(path) == [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    assert set(Stored(path)) == set(Stored(tmp_path / "net.safetensors.index.json")) == {"a", "b"}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"a": "../x.safetensors"}, r"want plain file names, got '\.\./x"),
        ({"a": "/etc/passwd"}, "want plain file names, got '/etc/passwd'"),
        ({"a": "c:x"}, "want plain file names"),
        ({"a": ".."}, "want plain file names"),
        ({"a": 3}, "want file names under the key"),
        ({"a": ["x.safetensors"]}, "want file names under the key"),
        ({"a": "z.safetensors"}, "lists files that are not there: z.safetensors"),
        ([], "want file names under the key 'weight_map'"),
        ({}, "want file names under the key 'weight_map'"),
        ({f"k{n}": f"{n}.safetensors" for n in range(1001)}, "want at most 1000 files, got 1001"),
    ],
)
def test_an_index_that_cannot_be_is_named(tmp_path, places, words):
    path = indexed(tmp_path, places)
    with pytest.raises(ValueError, match=words) as caught:
        Stored(path)
    assert "net.safetensors.index.json" in str(caught.value)


def test_a_tensor_in_two_shards_is_named(tmp_path):
    path = indexed(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})
    save_file({"a": torch.ones(3)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match=r"y\.safetensors: a is in x\.safetensors too"):
        Stored(path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    path = indexed(tmp_path / "in", {"a": "x.safetensors", "b": "y.safetensors"})
    (tmp_path / "in" / "x.safetensors").rename(tmp_path / "secret.safetensors")
    (tmp_path / "in" / "x.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: is a link that leaves its folder"):
        Stored(path)


def test_a_download_of_links_into_one_cache_is_read(tmp_path):
    """As the hub's client keeps files: the index and the shards are links to one folder."""
    indexed(tmp_path / "blobs", {"a": "x.safetensors", "b": "y.safetensors"})
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert set(Stored(snapshot / "net.safetensors")) == {"a", "b"}


# Writing.


def test_an_error_leaves_nothing(tmp_path):
    for error in (KeyboardInterrupt, ValueError("x"), OSError(28, "full")):
        with pytest.raises((KeyboardInterrupt, ValueError, OSError)), FolderWriter(tmp_path / "out") as out:  # fmt: skip
            out.weights("net", tensors())
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_in_its_place_only_when_it_is_whole(tmp_path):
    with FolderWriter(tmp_path / "out") as out:
        out.text("words.txt", "red")
        assert not (tmp_path / "out").exists() and (tmp_path / "out.part" / "words.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_manifest_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), FolderWriter(tmp_path / "out") as out:
        out.text("words.txt", "red")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda out: out.text("../x", ""), r"want plain file names, got '\.\./x'"),
        (lambda out: out.json("manifest", {}), "manifest.json is there already"),
        (lambda out: [out.text("a", ""), out.text("a", "")], "a is there already"),
        (
            lambda out: [out.weights("n", {}), out.weights("n", {})],
            "n.safetensors is there already",
        ),
        (lambda out: out.copy("x", Path("/nowhere")), "/nowhere: no such file"),
        (lambda out: out.weights("n", [("a", torch.ones(1))] * 2), "n: a: comes twice"),
        (lambda out: out.weights("n", {"a": torch.ones(1) * 1j}), "cannot be stored as torch.comp"),
        (lambda out: out.weights("n", {"a": torch.tensor([1, torch.inf])}), "n: a is not finite"),
        (
            lambda out: out.weights("n", {"a": torch.tensor([1e39]).double() * 10}, torch.float32),
            "n: a is not finite",
        ),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, write, words):
    with pytest.raises(ValueError, match=words), FolderWriter(tmp_path / "out") as out:
        write(out)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_every_byte_of_the_weights(tmp_path):
    told: list[int] = []
    with FolderWriter(tmp_path / "out", progress=told.append) as out:
        expected = []
        out.planned = expected.append
        out.reserve(out.stored_bytes(tensors().values()))
        out.weights("net", tensors())
    assert sum(told) == expected[0] == sum(t.numel() * t.itemsize for t in tensors().values())
