"""The machine that measures may lack what only videos need: everything else still runs there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_AV = "import sys; sys.modules['av'] = None; "


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_gpu_tests_are_found_without_pyav():
    code = WITHOUT_AV + "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    done = run(code, "-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_window_attention_gpu.py" in done.stdout


def test_the_bench_says_that_nothing_was_encoded():
    code = WITHOUT_AV + "from runtime.bench.__main__ import main; sys.exit(main())"
    done = run(code, "--seconds", "1", "--repeats", "1", "--warmups", "0", "--against", "none")
    assert done.returncode == 0, done.stderr
    assert "packed to yuv420, not encoded: PyAV is not installed" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run everything")
def test_the_gpu_script_says_what_it_lacks_and_stops():
    script = ["bash", str(ROOT / "bench" / "gpu.sh")]
    env = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OUT": "/dev/null/nowhere"}
    done = subprocess.run(script, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "sees no GPU" in done.stderr
