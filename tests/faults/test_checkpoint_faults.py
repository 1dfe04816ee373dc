"""Damaged, hostile and half-written weights, end to end: the file is named, nothing runs, and nothing is left or taken."""

import io
import os
import random
import signal
import subprocess
import sys
import time
import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime.generators import load_generator
from runtime.pickles import read_checkpoint
from runtime.shards import FolderWriter, Stored
from tests.published_folder import prefixed, small_row, tiny_models, wan_folder

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture
def converted(tmp_path, models) -> Path:
    with FolderWriter(tmp_path / "out") as out:
        small_row("wan-1.3b", tmp_path / "sizes")(wan_folder(tmp_path / "wan", models), out)
    return tmp_path / "out"


def loaded(folder: Path):
    return load_generator(str(folder), CPU, torch.float32)


def broken(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "a bit":
        middle = len(content) - 40  # of the numbers, not of the header
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "cut":
        path.write_bytes(content[:-7])
    elif how == "gone":
        path.unlink()
    elif how == "a link":
        path.rename(path.parents[1] / "elsewhere")
        path.symlink_to(path.parents[1] / "elsewhere")


@pytest.mark.parametrize("how", ["a bit", "cut", "gone", "a link"])
@pytest.mark.parametrize("name", ["dit.safetensors", "vae.safetensors", "text.safetensors"])
def test_a_converted_folder_that_is_no_longer_itself_is_named(converted, name, how):
    assert loaded(converted).fps == 8
    broken(converted / name, how)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        loaded(converted)


def test_a_file_that_nobody_listed_is_not_merged(converted, models):
    """An adapter laid beside the weights would be merged; the manifest knows that it is a stranger."""
    save_file({"x": torch.ones(1)}, converted / "lora.safetensors")
    with pytest.raises(ValueError, match=r"manifest\.json: does not list lora\.safetensors"):
        loaded(converted)


def test_an_evil_checkpoint_is_not_run_by_its_conversion(tmp_path, models):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/it-ran",)

    wan = wan_folder(tmp_path / "wan", models)
    state = prefixed(models.dit.state_dict(), "model.")
    torch.save({"generator": state, "args": Evil()}, wan / "self_forcing_dmd.pt")
    with (
        pytest.raises(ValueError, match=r"self_forcing_dmd\.pt: holds a pickled posix\.system"),
        FolderWriter(tmp_path / "out") as out,
    ):
        small_row("self-forcing", tmp_path / "sizes")(wan, out)
    assert not (tmp_path / "it-ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_conversion_that_is_stopped_leaves_nothing(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from runtime import convert
from runtime.generators import published

def slow(source, out):
    out.text("begun.txt", "x")
    print("begun", flush=True)
    time.sleep(60)

published.CONVERSIONS["slow"] = slow
sys.exit(convert.main(["slow", "{tmp_path}", "-o", "{tmp_path}/out"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        assert (tmp_path / "out.part" / "begun.txt").exists()
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(20) == 143 and time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


# Bytes that changed anywhere: told by name or harmless, never another error and never a crash.


def changed(content: bytes, source: random.Random) -> bytes:
    """Some bytes other, gone or doubled."""
    data = bytearray(content)
    for _ in range(source.randint(1, 3)):
        place, count = source.randrange(len(data)), source.randint(1, 12)
        kind = source.choice(("other", "other", "gone", "doubled"))
        if kind == "other":
            data[place] = source.randrange(256)
        elif kind == "gone" and len(data) > count:
            del data[place : place + count]
        else:
            data[place:place] = data[place : place + count]
    return bytes(data)


@pytest.mark.parametrize("part", ["pickle", "archive", "safetensors"])
def test_bytes_that_changed_are_told_or_harmless(tmp_path, part):
    source, path = random.Random(0), tmp_path / "net.pt"
    table = {"a": torch.randn(3, 4), "b": torch.ones(2).bfloat16(), "c": torch.arange(3)}
    if part == "safetensors":
        path = tmp_path / "net.safetensors"
        save_file(table, path)
    else:
        torch.save({"generator": table, "step": 3}, path)
    whole = path.read_bytes()
    told = 0
    for _ in range(300):
        if part == "pickle":
            with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as new:
                for name in old.namelist():
                    record = old.read(name)
                    new.writestr(name, changed(record, source) if name.endswith(".pkl") else record)
        else:
            head, tail = (whole[:300], whole[300:]) if part == "safetensors" else (whole, b"")
            path.write_bytes(changed(head, source) + tail)
        try:
            for tensor in read_checkpoint(path, ("generator",)).values():
                assert tensor.sum().numel() == 1  # every byte of it can be read
        except ValueError as error:
            assert str(path) in str(error)
            told += 1
    assert told > 150


# Memory. A file of 160 MiB in tensors of 10 MiB, loaded in a process of its own.

MEASURE = """
import re, sys, threading, torch
from pathlib import Path
from torch import nn
from runtime.weights import load_weights_

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+) kB", text)[1]) / 1024

torch.set_num_threads(1)
with torch.device("meta"):
    module = nn.ModuleList(nn.Linear(1024, 2560, bias=False) for _ in range(16))
    warm = nn.Linear(4, 4)
load_weights_(warm, Path(sys.argv[1]).with_name("warm.safetensors"), dtype=torch.bfloat16)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before, anonymous = status("VmRSS"), status("RssAnon")
load_weights_(module, Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
print(status("VmHWM") - before, status("RssAnon") - anonymous)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "peak", "kept"),
    [
        # What stays is half the file; beside it one tensor of the file and one on its way.
        ("bfloat16", 80 + 2 * 10 + 12, 80 + 12),
        # What stays is the mapped file itself.
        ("float32", 160 + 12, 12),
    ],
)
def test_loading_takes_what_stays_and_one_tensor(tmp_path, dtype, peak, kept):
    table = {f"{n}.weight": torch.randn(2560, 1024) for n in range(16)}
    save_file(table, tmp_path / "net.safetensors")
    save_file({"weight": torch.ones(4, 4), "bias": torch.ones(4)}, tmp_path / "warm.safetensors")
    assert sum(t.numel() * t.itemsize for t in table.values()) == 160 * MIB
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "net.safetensors"), dtype]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    at_most, held = map(float, output.split())
    assert at_most <= peak and held <= kept, (at_most, held)


def test_conversion_holds_no_second_copy_of_the_model(tmp_path, monkeypatch):
    """Tensors are turned into what they will be one at a time, whatever a shard holds."""
    alive, most = [0], [0]
    make = torch.Tensor.to

    def counted(self, *args, **kwargs):
        made = make(self, *args, **kwargs)
        if made.data_ptr() != self.data_ptr():
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            weakref.finalize(made, lambda: alive.__setitem__(0, alive[0] - 1))
        return made

    save_file({f"w{n}": torch.randn(50, 50) for n in range(20)}, tmp_path / "n.safetensors")
    monkeypatch.setattr(torch.Tensor, "to", counted)
    with FolderWriter(tmp_path / "out", torch.bfloat16) as out:
        out.weights("net", Stored(tmp_path / "n.safetensors"))
    assert 1 <= most[0] <= 2
