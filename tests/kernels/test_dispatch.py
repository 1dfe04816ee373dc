"""Which implementation runs is decided by one rule; a name asked for is never replaced by another."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.kernels import check, dispatch, native, triton_lang
from runtime.kernels.dispatch import NARROW, implementation

ROOT = Path(__file__).resolve().parents[2]
EVERY = {"native": NARROW, "triton": NARROW, "cuda": NARROW}


SOMETHING = object()


def built(monkeypatch, module=SOMETHING):
    monkeypatch.setattr(native, "find", lambda: (module, "" if module else "is not built"))


def test_auto_takes_native_on_the_cpu_and_triton_on_a_gpu(monkeypatch):
    built(monkeypatch)
    monkeypatch.setattr(triton_lang, "AVAILABLE", True)
    assert implementation("auto", "cpu") == "native"
    assert implementation("auto", "cuda:1") == "triton"


def test_auto_is_torch_where_nothing_else_fits(monkeypatch):
    built(monkeypatch)
    assert implementation("auto", "cpu", torch.float64) == "torch"
    assert implementation("auto", "cpu", torch.float32, {"triton": NARROW}) == "torch"
    assert implementation("auto", "meta") == "torch"
    built(monkeypatch, None)
    monkeypatch.setattr(triton_lang, "AVAILABLE", False)
    assert implementation("auto", "cpu") == implementation("auto", "cuda") == "torch"


def test_auto_never_takes_the_interpreter(monkeypatch):
    built(monkeypatch, None)
    monkeypatch.setattr(triton_lang, "INTERPRETED", True)
    assert implementation("auto", "cpu") == "torch"
    assert implementation("triton", "cpu") == "triton"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("cpp", "cpu"), "impl: want one of auto, native, triton, cuda, torch, got 'cpp'"),
        (("native", "cuda"), "impl='native' runs on the CPU, got device cuda; use impl='triton'"),
        (("triton", "cpu"), "impl='triton' runs on a GPU, got device cpu; use impl='native', or"),
        (("cuda", "cpu"), "impl='cuda' runs on a GPU, got device cpu; use impl='native'"),
        (("native", "cpu", torch.float64), r"impl='native' takes bfloat16, float16, float32, got"),
        (("cuda", "cuda", torch.float32, {"native": NARROW}), "kernel has torch, native, got"),
    ],
)
def test_a_wrong_wish_is_a_value_error(monkeypatch, asked, message):
    built(monkeypatch)
    monkeypatch.setattr(triton_lang, "AVAILABLE", True)
    monkeypatch.setattr(triton_lang, "INTERPRETED", False)
    offers = asked[3] if len(asked) > 3 else EVERY
    with pytest.raises(ValueError, match=message):
        implementation(*asked[:2], *(asked[2:3] or (torch.float32,)), offers)


def test_what_is_missing_is_a_runtime_error(monkeypatch):
    built(monkeypatch, None)
    monkeypatch.setattr(triton_lang, "AVAILABLE", False)
    with pytest.raises(RuntimeError, match="impl='native': runtime._C is not built; build it with"):
        implementation("native")
    with pytest.raises(RuntimeError, match="impl='triton': triton is not installed; `pip install"):
        implementation("triton", "cuda")
    built(monkeypatch)
    with pytest.raises(RuntimeError, match="impl='cuda': runtime._C was built without nvcc; build"):
        implementation("cuda", "cuda", offers=EVERY)


def test_every_kernel_file_imports_without_triton():
    """The package must work where Triton has no wheel."""
    code = """
import importlib, pkgutil, sys
sys.modules["triton"] = None
import runtime.kernels
for info in pkgutil.iter_modules(runtime.kernels.__path__):
    importlib.import_module(f"runtime.kernels.{info.name}")
from runtime.kernels import triton_lang
assert not triton_lang.AVAILABLE
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_checks_say_what_wanted_got():
    x = torch.zeros(2, 3, 4)
    check.shape("x", x, [2, "S", 4])
    with pytest.raises(ValueError, match=r"x: want shape \[2, S, 5\], got \[2, 3, 4\]"):
        check.shape("x", x, [2, "S", 5])
    with pytest.raises(ValueError, match=r"x: want shape \[2, 3\], got \[2, 3, 4\]"):
        check.shape("x", x, [2, 3])
    with pytest.raises(ValueError, match=r"x: want dtype torch.int32, got torch.float32"):
        check.dtype("x", x, torch.int32)
    with pytest.raises(ValueError, match=r"x: want a contiguous tensor, got strides \[12, 1, 4\]"):
        check.contiguous("x", x.transpose(1, 2))
    with pytest.raises(ValueError, match="x: want device meta, got cpu"):
        check.same_device("x", x, torch.empty(0, device="meta"))


def test_dense_rows_may_lie_apart_but_not_inside():
    x = torch.zeros(4, 6, 8)
    check.dense_rows("x", x[::2], 2)
    check.dense_rows("x", x[:, ::3], 1)
    check.dense_rows("x", x[:, :1, :5], 1)
    with pytest.raises(ValueError, match="x: want its last 2 axes dense"):
        check.dense_rows("x", x[:, ::3], 2)
    with pytest.raises(ValueError, match="x: want its last 1 axes dense"):
        check.dense_rows("x", x[..., ::2], 1)


def test_only_the_reference_has_a_gradient():
    x = torch.zeros(1, requires_grad=True)
    check.no_gradient("torch", x)
    with torch.no_grad():
        check.no_gradient("native", x)
    with pytest.raises(ValueError, match="impl='native' has no gradient; use impl='torch'"):
        check.no_gradient("native", x)


def test_offers_hold_what_dispatch_knows():
    assert set(dispatch.OFFERS) <= set(dispatch.IMPLEMENTATIONS)
