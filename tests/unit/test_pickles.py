"""Tensors come out of torch's archives by name; whatever else such a file may hold is told and never run."""

import collections
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runtime import pickles
from runtime.pickles import read_checkpoint, read_pickle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pt"


def state() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=source).bfloat16(),
        "a.bias": torch.randn(5, generator=source),
        "steps": torch.arange(6).reshape(2, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }


def same(got, want) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)


def refused(path: Path, words: str, **how) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_pickle(path, **how)
    assert str(path) in str(caught.value)


def rewritten(path: Path, method: int = zipfile.ZIP_STORED, **records: bytes) -> None:
    """The archive again, compressed by ``method``, with records replaced or added."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    content |= {f"net/{name.replace('__', '.')}": value for name, value in records.items()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, value in content.items():
            new.writestr(name, value)


def test_a_state_dict_is_read_by_name(path):
    torch.save(state(), path)
    same(read_pickle(path), state())


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_modules_parameters_and_ordered_dictionaries_are_tensors_too(path, kind):
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.save(kind(module.state_dict()), path)
    same(read_pickle(path), module.state_dict())
    torch.save(kind(module.named_parameters()), path)
    got = read_pickle(path)
    same(got, dict(module.named_parameters()))
    assert not any(tensor.requires_grad for tensor in got.values())


def test_tensors_are_views_of_the_mapped_file(path):
    torch.save({"a": torch.zeros(100_000)}, path)
    tensor = read_pickle(path)["a"]
    tensor.fill_(1)  # of a private page: the file keeps what it has
    assert not read_pickle(path)["a"].any()


def test_shared_and_transposed_tensors_are_counted_once(path):
    one = torch.randn(30, 40)
    table = {"a": one, "b": one, "c": torch.randn(20, 30).t(), "d": one[3:5]}
    torch.save(table, path)
    same(read_pickle(path), table)


@pytest.mark.parametrize(
    ("top", "nested"),
    [
        ({"generator": state(), "step": 3}, ("generator",)),
        ({"generator_ema": state(), "generator": {}}, ("generator_ema", "generator")),
        ({"generator": state(), "args": {"x": [1, 2.5, "y"]}}, ("generator_ema", "generator")),
        (state(), ("generator",)),
    ],
)
def test_the_first_nested_key_that_is_there_is_taken(path, top, nested):
    torch.save(top, path)
    same(read_pickle(path, nested=nested), state())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"generator": state(), "step": 3},
            r"want a dictionary of tensors, got generator \(dict\), step",
        ),
        ({"a": torch.ones(1), 3: torch.ones(1)}, r"got 3 \(Tensor\)"),
        ({}, "want a dictionary of tensors, got an empty one"),
        ([torch.ones(1)], "want a dictionary of tensors, got list"),
        (torch.ones(1), "want a dictionary of tensors, got Tensor"),
    ],
)
def test_what_is_no_state_dict_is_told(path, table, words):
    torch.save(table, path)
    refused(path, words)


def test_a_nested_key_that_holds_no_tensors_is_told(path):
    torch.save({"generator": {"x": 3}}, path)
    refused(
        path,
        r"want a dictionary of tensors under 'generator', got x \(int\)",
        nested=("generator",),
    )
    torch.save({"other": state()}, path)
    words = r"want a dictionary of tensors or one of generator that holds one, got other \(dict\)"
    refused(path, words, nested=("generator",))


def test_safetensors_are_read_by_the_same_call(tmp_path, path):
    save_file(state(), tmp_path / "net.safetensors")
    same(read_checkpoint(tmp_path / "net.safetensors", ("generator",)), state())
    torch.save({"generator": state()}, path)
    same(read_checkpoint(path, ("generator",)), state())
    with pytest.raises(ValueError, match="nowhere.safetensors: no such file"):
        read_checkpoint(tmp_path / "nowhere.safetensors")


# Files that are no archive of tensors.


def test_a_missing_file_and_a_folder_are_named(path, tmp_path):
    refused(path, "no such file")
    refused(tmp_path, "no such file")


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -200])
def test_a_file_cut_short_is_named(path, kept):
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "not a whole .pt archive .*; fetch or copy it again")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\3\4" * 30, b"\0" * 99])
def test_garbage_is_named(path, content):
    path.write_bytes(content)
    refused(path, "not a whole .pt archive")


def test_a_pickle_of_old_is_refused_with_what_to_do(path):
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    refused(path, "a bare pickle, as torch wrote them before 1.6, .* weights_only=True and save it")


def test_an_archive_of_something_else_is_named(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "want one data.pkl in the archive, got 0")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", b"N.")
    refused(path, "want one data.pkl in the archive, got 2")


@pytest.mark.parametrize("name", ["../x", "/x", "net/../../x", "net\\x"])
def test_a_record_that_leaves_the_archive_is_named(path, name):
    torch.save(state(), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    refused(path, "a record's name leaves the archive")


def test_an_archive_with_something_before_it_is_refused(path):
    """Python's zip reader would look past it; torch's may see another archive in it."""
    torch.save(state(), path)
    path.write_bytes(b"before" * 20 + path.read_bytes())
    refused(path, "has something before its first record|not a whole .pt archive")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_not_a_state_dict(path):
    torch.jit.script(nn.Linear(2, 3)).save(str(path))
    refused(path, "a TorchScript archive, which is code to run; .* state dict alone")


# Sizes that are not true.


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records_are_refused_before_they_are_read(path, method):
    torch.save({"a": torch.zeros(1_000_000)}, path)
    rewritten(path, method)
    assert path.stat().st_size < 50_000
    refused(path, "is compressed, so it may become any size")


def test_records_that_overlap_claim_more_than_the_file(path):
    """Two names for the same bytes, as a bomb that does not compress would have it."""
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        twin = archive.getinfo("net/data/0")
        for number in range(3):
            fake = zipfile.ZipInfo(f"net/data/{number + 1}")
            fake.header_offset, fake.file_size, fake.compress_size, fake.CRC = (
                twin.header_offset,
                twin.file_size,
                twin.compress_size,
                twin.CRC,
            )
            archive.filelist.append(fake)
        archive._didModify = True
    refused(path, "claims .* bytes of records in a file of")


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: torch.zeros(1).expand(10**12),
        lambda: torch.zeros(4, 1).expand(4, 10**6),
        lambda: torch.zeros(8).as_strided((8, 8), (1, 0)),
        lambda: torch.zeros(100).as_strided((90, 11), (1, 1)),
    ],
    ids=["vast", "wide", "rows", "overlapping"],
)
def test_a_tensor_that_is_more_than_its_bytes_is_refused(path, bomb):
    torch.save({"a": torch.ones(3), "bomb": bomb()}, path)
    refused(path, r"bomb: claims \d+ bytes of shape \[.*\] in a storage of \d+")


def test_many_views_of_one_storage_are_counted_together(path):
    storage = torch.zeros(10_000)
    torch.save({f"v{n}": storage[n:] for n in range(50)}, path)
    refused(path, r"its tensors claim \d+ bytes in a file of \d+")


def test_a_long_pickle_and_many_records_are_refused(path, monkeypatch):
    torch.save(state(), path)
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 100)
    refused(path, "want a pickle of at most 100 bytes, got")
    monkeypatch.setattr(pickles, "MAX_RECORDS", 3)
    refused(path, "want at most 3 records, got")


@pytest.mark.parametrize(
    "foreign",
    [
        lambda: torch.zeros(3, dtype=torch.complex64),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.empty(3, device="meta"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(path, foreign):
    torch.save({"a": foreign()}, path)
    refused(path, "want plain numbers|holds a pickled torch")


# Code.


class Evil:
    def __init__(self, reduced) -> None:
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda s: (__import__("os").system, (f"touch {s}",)), "posix.system"),
        (lambda s: (eval, (f"open({str(s)!r}, 'w')",)), "eval"),
        (lambda s: (io.open, (str(s), "w")), "open"),
        (lambda s: (bytearray, (10**9,)), "bytearray"),
        (lambda s: (collections.Counter, ({"x": 1},)), "collections.Counter"),
    ],
    ids=["system", "eval", "open", "bytearray", "counter"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_named_and_does_not_run(path, tmp_path, function, named, protocol):
    sentinel = tmp_path / "it-ran"
    torch.save({"a": torch.ones(2), "x": Evil(function(sentinel))}, path, pickle_protocol=protocol)
    refused(
        path, f"holds a pickled .*{named}" if protocol == 2 else "looks names up by STACK_GLOBAL"
    )
    assert not sentinel.exists()


def test_code_beside_a_nested_state_dict_is_refused_too(path, tmp_path):
    torch.save({"generator": state(), "x": Evil((eval, ("1",)))}, path)
    refused(path, "holds a pickled .*eval", nested=("generator",))


def test_a_pickled_module_is_named_with_what_to_do(path):
    torch.save(nn.Linear(2, 3), path)
    words = (
        "holds a pickled torch.nn.modules.linear.Linear, which is code to run; .* state dict alone"
    )
    refused(path, words)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", pickle.dumps({"a": 1}, 2)[:-3], b"c\xff\xff\n."]
)
def test_a_damaged_pickle_is_named(path, content):
    torch.save(state(), path)
    rewritten(path, data__pkl=content)
    refused(path, "its pickle is damaged|torch cannot read it|holds a pickled")
