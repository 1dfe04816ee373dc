"""Pickled modules are read as descriptions: whatever they name, nothing runs and only tensors come out."""

import contextlib
import io
import pickle
import random
import struct
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from runtime.rewards.inert_pickle import MAX_BYTES, Foreign, Made, Name, run
from runtime.rewards.pickled_modules import read_module
from tests.tiny import generator_of


class Ran:
    """Where an evil pickle would leave a mark."""

    marks: list[str] = []


def mark(*arguments):
    Ran.marks.append("ran")
    return {}


class Evil:
    """Pickles as a call of ``mark``."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return mark, self.arguments


class Shady(nn.Module):
    """Parameters, buffers, shared and strided tensors, nesting, and an evil attribute."""

    def __init__(self, secret=None):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.rest = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ModuleList([nn.Linear(1, 1)]))
        self.strided = nn.Parameter(torch.randn(9, generator=generator_of(1))[::2])
        self.tied = self.first.weight
        self.half = nn.Linear(2, 2).to(torch.bfloat16)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.secret = secret

    def __setstate__(self, state):
        Ran.marks.append("state")
        super().__setstate__(state)


@pytest.fixture(autouse=True)
def nothing_ran():
    Ran.marks.clear()
    yield
    assert Ran.marks == []


def saved(path: Path, module: nn.Module) -> Path:
    torch.save(module, path)
    return path


def repacked(source: Path, target: Path, change, compress=zipfile.ZIP_STORED) -> Path:
    """Copy an archive; ``change(name, content)`` may alter a record."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compress) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return target


def with_program(source: Path, target: Path, program: bytes) -> Path:
    return repacked(source, target, lambda name, old: program if name.endswith("data.pkl") else old)


def test_the_tensors_of_a_module_come_out_by_name_and_nothing_runs(tmp_path):
    module = Shady(Evil("touch"))
    found = read_module(saved(tmp_path / "m.pth", module))
    assert found.kind == f"{__name__}.Shady"
    assert found.tensors.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(found.tensors[name], tensor), name
        assert found.tensors[name].dtype == tensor.dtype


def test_a_module_whose_package_is_not_installed_is_read_all_the_same(tmp_path):
    package = types.ModuleType("somebody_elses")
    exec("from torch import nn\nclass Net(nn.Linear): pass", package.__dict__)
    package.Net.__module__ = "somebody_elses"
    sys.modules["somebody_elses"] = package
    try:
        path = saved(tmp_path / "m.pth", package.Net(2, 3))
    finally:
        del sys.modules["somebody_elses"]
    found = read_module(path)
    assert found.kind == "somebody_elses.Net" and found.tensors["weight"].shape == (3, 2)
    assert "somebody_elses" not in sys.modules


@pytest.mark.parametrize("protocol", range(6))
def test_no_protocol_runs_anything(protocol):
    """Evil inside evil, as a key's value, as an argument, in a list and as a state."""
    program = pickle.dumps({"a": [Evil(Evil(1), {"b": Evil(2)})], "c": (Evil(),)}, protocol)
    value = run(program)
    assert isinstance(value["a"][0], Made) and value["a"][0].what == Name(__name__, "mark")
    inner = value["a"][0].arguments
    assert isinstance(inner[0], Made) and isinstance(inner[1]["b"], Made)


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"cos\nsystem\n(S'true'\nt\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85}\x92.",
        b"c__builtin__\nexec\n(S'x = 1'\ntR}(S'__setstate__'\nN.ub.".replace(b"N.", b"N"),
    ],
    ids=["reduce", "inst", "obj", "newobj", "stack_global", "newobj_ex", "build"],
)
def test_every_way_to_call_something_leaves_a_note_of_it(program):
    value = run(program)
    assert isinstance(value, Made) and isinstance(value.what, Name)
    assert str(value.what) in ("os.system", "__builtin__.exec")


def test_a_name_taken_from_the_memo_and_called_twice_is_still_a_name():
    """The callee goes through the memo, the result is called again, and a state is set on what never was."""
    value = run(b"cos\nsystem\nq\x00(tRq\x01h\x00(h\x01tR}(X\x01\x00\x00\x00aK\x01ub.")
    assert value.what == Name("os", "system") and isinstance(value.arguments[0], Made)
    assert value.state == {"a": 1}


def test_what_lies_outside_is_an_identity_and_never_fetched():
    assert run(b"\x80\x02(U\x07storageK\x01tQ.").identity == ("storage", 1)
    assert isinstance(run(b"\x80\x02K\x01Q."), Foreign)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (b"", "not a whole|exhausted|ends without"),
        (b"\x80\x02", "exhausted|ends without"),
        (b"R.", "takes what is not there"),
        (b"h\x05.", "takes what is not there"),
        (b"(t(ttR.", "takes what is not there|ends"),
        (b"K\x01K\x02\x86s.", "takes what is not there"),
        (b"K\x01K\x02K\x03s.", "cannot assign into int"),
        (b"K\x01K\x02a.", "cannot add to int"),
        (b"}(K\x01u.", "a key without a value"),
        (b"\x82\x01.", "EXT1 is none that torch writes"),
        (b"P0\n.", "PERSID is none that torch writes"),
        (b"\x80\x05\x97.", "NEXT_BUFFER is none that torch writes"),
        (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x8e" + struct.pack("<Q", 1 << 60) + b"abc.", "expected 1152921504606846976 bytes"),
        (b"\x8b\xff\xff\xff\x7fab.", "expected|not enough"),
    ],
    ids=str,
)
def test_a_broken_program_is_told_in_a_sentence(program, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(program)


def test_a_huge_memo_index_takes_no_memory_and_no_long_program_is_read():
    assert run(b"K\x01r\xff\xff\xff\xff.") == 1
    with pytest.raises(ValueError, match=f"at most {MAX_BYTES} bytes"):
        run(bytes(MAX_BYTES + 1))


def test_deep_nesting_as_a_key_does_not_overflow_the_stack():
    """A tuple of a tuple of ... is hashed to its bottom by a dictionary; such a key is dropped."""
    deep = b"}N" + b"\x85" * 200_000 + b"K\x01s."
    assert run(deep) == {}
    assert run(b"\x80\x04\x8f(N" + b"\x85" * 200_000 + b"\x90.") == set()


def test_a_module_that_holds_itself_is_refused(tmp_path):
    module = nn.Sequential(nn.Linear(1, 1))
    module._modules["again"] = module
    with pytest.raises(ValueError, match="holds itself"):
        read_module(saved(tmp_path / "m.pth", module))


def test_modules_that_stand_in_two_places_each_do_not_multiply_without_end(tmp_path):
    module = nn.Sequential(nn.Linear(1, 1))
    for _ in range(40):
        module = nn.ModuleDict({"a": module, "b": module})
    with pytest.raises(ValueError, match="want at most 100000 modules|tensors"):
        read_module(saved(tmp_path / "m.pth", module))


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_programs_with_flipped_bytes_are_read_or_refused():
    """Nothing but a ValueError comes out of three thousand damaged pickles."""
    source = random.Random(0)
    whole = [
        pickle.dumps({"a": [1, 2.5, b"y", {1}], "e": Evil(), "t": (1, 2, 3)}, p) for p in range(6)
    ]
    for _ in range(3000):
        program = bytearray(source.choice(whole))
        for _ in range(source.randint(1, 5)):
            program[source.randrange(len(program))] = source.randrange(256)
        with contextlib.suppress(ValueError):
            run(bytes(program))


def test_archives_that_torch_would_not_write_are_refused(tmp_path):
    good = saved(tmp_path / "m.pth", Shady())

    def short(name, old):
        return old[:-2] if name.endswith("/data/0") else old

    def big(name, old):
        return b"big" + b" " * 3 if name.endswith("byteorder") else old

    same, packed = (lambda name, old: old), zipfile.ZIP_DEFLATED
    cases = [
        (repacked(good, tmp_path / "1", same, packed), "is compressed or encrypted"),
        (repacked(good, tmp_path / "2", short), "want 9 elements of torch.float32, got 34 bytes"),
        (repacked(good, tmp_path / "3", big), "big-endian"),
        (with_program(good, tmp_path / "4", b"}."), "want a pickled module, got dict"),
        (with_program(good, tmp_path / "5", b"cos\nsystem\n(tR."), "os.system holds no parameters"),
        (with_program(good, tmp_path / "6", b"cos\nsystem\n(tR}(X\x0b\x00\x00\x00_parametersK\x01ub."), "want a dictionary, got int"),
    ]  # fmt: skip
    cut = tmp_path / "7"
    cut.write_bytes(good.read_bytes()[:-300])
    for path, sentence in [*cases, (cut, "not a whole zip archive"), (tmp_path / "8", "no such")]:
        with pytest.raises(ValueError, match=sentence) as caught:
            read_module(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "stride", "offset", "sentence"),
    [
        ((3,), (1,), 10, "reaches outside"),
        ((1 << 40,), (0,), 0, "reaches outside"),  # one element, a terabyte of them
        ((2, 2), (1 << 62, 1), 0, "reaches outside"),
        ((-1,), (1,), 0, "make no tensor"),
        ((2, 2), (1,), 0, "make no tensor"),
        ((True,), (1,), 0, "whole numbers"),
    ],
    ids=str,
)
def test_a_tensor_cannot_reach_outside_its_storage(tmp_path, size, stride, offset, sentence):
    good = saved(tmp_path / "m.pth", Shady())

    class Note:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, {})

    class Storage:
        pass

    class Module:
        def __reduce__(self):
            return object, (), {"_parameters": {"w": Note()}}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", 9)
            return None

    content = io.BytesIO()
    Pickler(content, 2).dump(Module())
    path = with_program(good, tmp_path / "evil.pth", content.getvalue())
    with pytest.raises(ValueError, match=sentence):
        read_module(path)
