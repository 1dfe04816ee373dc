"""Whatever happens to a snapshot's files they are refused by name, and the one before is still there."""

import hashlib
import io
import json
import os
import pickle
import zipfile

import pytest
import torch

from runtime import snapshot
from runtime.snapshot import TENSOR_FILE, TREE_FILE, Packed, newest, read, write
from runtime.tensorfile import header_of

CONFIG = '{"weights": "abc"}'
SMALL = Packed({"chunk": 1, "list": [1.5, None]}, {"a": torch.arange(3.0), "b": torch.ones(2)})


@pytest.fixture
def saved(tmp_path):
    return write(tmp_path, SMALL, CONFIG, "chunk-000002")


def refusal(path) -> str:
    with pytest.raises(ValueError) as refused:
        read(path, CONFIG, limit_bytes=1 << 20)
    assert str(refused.value).startswith(str(path))
    return str(refused.value).removeprefix(str(path)).lstrip("/")


def sealed(raw: bytes) -> bytes:
    """``raw`` as a snapshot.json whose digest is right."""
    rest = raw.lstrip()[1:]
    return f'{{"sha256": "{hashlib.sha256(rest).hexdigest()}",\n'.encode() + rest


def content_of(path) -> dict:
    return {k: v for k, v in json.loads((path / TREE_FILE).read_bytes()).items() if k != "sha256"}


def with_tensors(path, raw: bytes) -> None:
    """Other bytes as the tensors' file, with everything that snapshot.json says of them put right."""
    (path / TENSOR_FILE).write_bytes(raw)
    digest = hashlib.sha256(raw).hexdigest()
    told = content_of(path) | {"tensors_bytes": len(raw), "tensors_sha256": digest}
    (path / TREE_FILE).write_bytes(sealed(json.dumps(told).encode()))


# Bytes that are not what was written.


@pytest.mark.parametrize("name", [TREE_FILE, TENSOR_FILE])
def test_a_flipped_bit_anywhere_is_refused(saved, name):
    whole = (saved / name).read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            (saved / name).write_bytes(flipped)
            assert refusal(saved).startswith(name), (place, bit)
    (saved / name).write_bytes(whole)
    assert read(saved, CONFIG).tree == SMALL.tree


@pytest.mark.parametrize("name", [TREE_FILE, TENSOR_FILE])
def test_a_file_cut_short_anywhere_is_refused(saved, name):
    whole = (saved / name).read_bytes()
    for length in range(len(whole)):
        (saved / name).write_bytes(whole[:length])
        assert refusal(saved).startswith(name), length
    (saved / name).write_bytes(whole + b"\0")
    assert refusal(saved).startswith(name)


@pytest.mark.parametrize("name", [TREE_FILE, TENSOR_FILE])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert refusal(saved) == f"{name}: there is no such file"


def test_a_missing_snapshot_is_named(tmp_path):
    assert refusal(tmp_path / "chunk-000009") == ": there is no such snapshot"


def as_pickle() -> bytes:
    class Bomb:
        def __reduce__(self):
            return os._exit, (3,)

    return pickle.dumps(Bomb())


def as_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 1_000_000)
    return file.getvalue()


@pytest.mark.parametrize("name", [TREE_FILE, TENSOR_FILE])
@pytest.mark.parametrize(("make", "kind"), [(as_pickle, "a pickle"), (as_zip, "a zip archive")])
def test_what_could_run_or_inflate_is_never_opened(saved, name, make, kind):
    (saved / name).write_bytes(make())
    assert refusal(saved) == f"{name}: is {kind}, which is never opened"


@pytest.mark.parametrize("name", [TREE_FILE, TENSOR_FILE])
def test_a_link_is_not_followed(saved, name, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (saved / name).rename(elsewhere)
    (saved / name).symlink_to(elsewhere)
    assert refusal(saved) == f"{name}: is a link; want the snapshot's own file"


def test_a_linked_folder_is_not_followed(saved):
    link = saved.with_name("chunk-000003")
    link.symlink_to(saved, target_is_directory=True)
    assert refusal(link) == ": is a link; want the snapshot's own folder"
    told = []
    assert newest(saved.parent, CONFIG, tell=told.append)[0] == saved
    assert len(told) == 1 and "is a link" in told[0]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_a_files_place_is_refused_at_once(saved, make):
    (saved / TREE_FILE).unlink()
    make(saved / TREE_FILE)
    assert refusal(saved) == f"{TREE_FILE}: want a file, got something else"


# Files that somebody wrote with care: their digests are right.


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"tree": NaN}', "is no JSON that this program writes (want a finite number, got NaN)"),
        (b'{"tree": -Infinity}', "(want a finite number, got -Infinity)"),
        (b'{"tree": 1e999}', "(want a finite number, got 1e999)"),
        (b'{"tree": ' + b"9" * 10_000 + b"}", "(want an integer of at most 40 digits, got 10000)"),
        (b'{"tree": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is no JSON that this program"),
        (b'{"tree": ' + b'{"a":' * 200_000, "is no JSON that this program writes"),
        (b'{"tree": {}, "tree": {}}', "(an object has a name twice)"),
        (b'{"tree": \xff}', "is no JSON that this program writes ('utf-8' codec"),
        (b'{"tree": {}', "is no JSON that this program writes"),
        (b"{}", "want stream-t1-snapshot version 1, got None version None; make it again"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_json_that_we_never_write_is_refused(saved, raw, told):
    (saved / TREE_FILE).write_bytes(sealed(raw))
    sentence = refusal(saved)
    assert sentence.startswith(TREE_FILE) and told in sentence and len(sentence) < 300


def test_a_giant_of_json_is_refused_before_it_is_read(saved):
    with (saved / TREE_FILE).open("r+b") as file:
        file.truncate(1 << 40)
    assert refusal(saved) == f"{TREE_FILE}: want at most 16777216 bytes, got 1099511627776"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("version", 7, "want stream-t1-snapshot version 1, got stream-t1-snapshot version 7"),
        ("version", True, "tensors_bytes: want int, got bool"),
        ("format", "other", "want stream-t1-snapshot version 1, got other version 1"),
        ("tree", [], "tree: want dict, got list"),
        ("tensors", None, "tensors: want dict, got NoneType"),
        ("tensors_bytes", True, "tensors_bytes: want int, got bool"),
        ("config", "{}", "made with other settings or weights: weights None, now abc"),
    ],
)
def test_wrong_content_is_named(saved, key, value, told):
    changed = content_of(saved) | {key: value}
    if (key, value) == ("version", True):  # equal to 1, so what is wrong comes next
        changed["tensors_bytes"] = True
    (saved / TREE_FILE).write_bytes(sealed(json.dumps(changed).encode()))
    assert refusal(saved).startswith(f"{TREE_FILE}: {told}")


def header(table: dict, rest: int = 0) -> bytes:
    raw = json.dumps(table).encode()
    return len(raw).to_bytes(8, "little") + raw + b"\0" * rest


GIANT = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
HUGE_SHAPE = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}
ENDLESS = (1 << 62).to_bytes(8, "little") + b"{}"
UNKNOWN = {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
OTHER = header_of({"c": torch.ones(2)}, {"c": torch.float32})[1] + torch.ones(2).numpy().tobytes()


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (header(GIANT, 4), "not a whole safetensors file"),
        (header(HUGE_SHAPE, 4), "not a whole safetensors file"),
        (ENDLESS, "not a whole safetensors file"),
        (b"", "not a whole safetensors file"),
        (header(UNKNOWN, 2), ""),
        (OTHER, f"its header and {TREE_FILE} name different tensors"),
    ],
    ids=["giant", "shape", "endless", "empty", "unknown dtype", "other tensors"],
)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(saved, raw, told, monkeypatch):
    with_tensors(saved, raw)
    monkeypatch.setattr(snapshot.torch, "empty", None)  # what would allocate
    sentence = refusal(saved)
    assert sentence.startswith(TENSOR_FILE) and told in sentence


def test_a_file_of_more_than_the_limit_is_refused_by_its_size(saved):
    with (saved / TENSOR_FILE).open("r+b") as file:
        file.truncate(1 << 40)  # sparse: no room on the disk, and hours to read
    assert refusal(saved) == f"{TENSOR_FILE}: want at most 1048576 bytes, got 1099511627776"
