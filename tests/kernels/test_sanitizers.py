"""The C++ kernels under the address and undefined-behaviour sanitizers: the same tests, a build that stops at a fault."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitized"
OPS = (
    "adaln",
    "ema_merge",
    "frame_pack",
    "philox",
    "qk_norm_rope_store",
    "reward_patches",
    "slerp_noise",
)

# Puts the sanitized module where the kernels look for theirs, then runs the tests that use it.
RUNNER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("runtime._C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["runtime._C"] = module
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "(native or emulated) and not triton", *sys.argv[2:]]))
"""


def tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")


def library(name: str) -> str | None:
    """Where the compiler keeps a sanitizer's run-time library."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
    return found.stdout.strip() if os.path.isabs(found.stdout.strip()) else None


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """The module, built again only when its sources have changed."""
    pybind11 = pytest.importorskip("pybind11")
    if not (tool("cmake") and tool("g++") and library("libasan.so")):
        pytest.skip("needs cmake, g++ and its sanitizer libraries")
    ninja = tool("ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    configure = [tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), *generator]
    configure += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    configure += [f"-DSTREAMT1_OUTPUT_DIR={BUILD}", "-DSTREAMT1_SANITIZE=ON", "-DSTREAMT1_CUDA=OFF"]
    for command in (configure, [tool("cmake"), "--build", str(BUILD)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return next(BUILD.glob("_C.*.so"))


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    preload = ":".join(filter(None, (library("libasan.so"), library("libubsan.so"))))
    env = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself frees nothing at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_the_native_kernels_touch_only_their_memory(sanitized):
    tests = [str(p) for op in OPS for p in sorted((ROOT / "tests/kernels").glob(f"test_{op}*.py"))]
    done = run(RUNNER, str(sanitized), *tests)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


def test_a_write_past_the_end_would_stop_the_process(sanitized):
    """The other test means something: one element too many is found."""
    code = """
import array, ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
streams = array.array("q", [1, 2, 3])
module.philox_normal(malloc(4 * 100), "float32", streams.buffer_info()[0], (1, 101), 1)
"""
    done = run(code, str(sanitized))
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
