"""The ahead-of-time gate: it sees what it should, and every shipped form passes it."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from runtime.bench.aot import Report, judge, line

ROOT = Path(__file__).resolve().parents[2]
GOOD = Report("k", "k bf16", 90, 168, 0, 0, 98_304, 16, 8, True)

# Compiled in a process of its own: this one may have Triton's interpreter.
PROBE = """
import torch
from runtime.bench.aot import compile_build, inspect, judge
from runtime.kernels.build import Build
from runtime.kernels.triton_lang import jit, tl


@jit
def multiply(a, b, out, SIDE: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


@jit
def hoard(a, out, SIDE: tl.constexpr):
    at = tl.arange(0, SIDE)
    x = tl.load(a + at)
    tl.store(out + at, x / tl.sum(x))


def build(side, dtype="*fp16", precision="tf32", **more):
    signature = {"a": dtype, "b": dtype, "out": "*fp32"}
    return Build("multiply", multiply, signature, {"SIDE": side, "PRECISION": precision}, dots=True, **more)


for arch in (80, 90, 100):
    assert judge(inspect(build(64), arch)) == [], arch
print(judge(inspect(build(32, "*fp32", "ieee"), 90)))
greedy = {"num_warps": 1, "num_stages": 1}
print(judge(inspect(Build("hoard", hoard, {"a": "*fp32", "out": "*fp32"}, {"SIDE": 16384}, **greedy), 90)))
try:
    compile_build(Build("short", multiply, {"a": "*fp16"}, {}), 90)
except ValueError as error:
    print(error)
"""


def without_interpreter() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"local_accesses": 4}, "4 local accesses"),
        ({"stack_bytes": 32}, "32 bytes of stack"),
        ({"shared_bytes": 232_449}, "wants 232449 bytes of shared memory, sm_90 has 232448"),
        ({"shared_bytes": 170_000, "arch": 80}, "sm_80 has 166912"),
        ({"tensor_core_instructions": 0}, "without tensor cores"),
        ({"tensor_core_instructions": 0, "dots": False}, None),
    ],
)
def test_the_gate_says_what_is_wrong(change, words):
    report = dataclasses.replace(GOOD, **change)
    faults = judge(report)
    assert len(faults) == (words is not None)
    if words:
        assert words in faults[0] and words in line(report, faults)


def test_machine_code_is_read_right(tmp_path):
    probe = tmp_path / "probe.py"  # Triton reads a kernel's source from its file
    probe.write_text(PROBE)
    done = subprocess.run(
        [sys.executable, str(probe)],
        cwd=ROOT,
        env=without_interpreter() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    plain, spilling, missing = done.stdout.splitlines()
    assert plain == "['multiplies matrices without tensor cores']"
    assert "bytes of stack" in spilling and "local accesses" in spilling
    assert (
        missing == "short: no type and no constant for arguments ['b', 'out', 'SIDE', 'PRECISION']"
    )


def test_every_shipped_form_passes():
    done = subprocess.run(
        [sys.executable, "-m", "runtime.bench.aot", "--reduced"],
        cwd=ROOT,
        env=without_interpreter(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
