"""The machine that measures may lack what only videos need: everything else still runs there."""

import subprocess
import sys
import tarfile
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


def gpu_sh(
    *groups: str, python: str = sys.executable, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs the script as a rehearsal: the same steps on the CPU."""
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), *groups]
    env = {"PATH": "/usr/bin:/bin", "REHEARSE": "1", "PYTHON": python, "OMP_NUM_THREADS": "1"} | env
    return subprocess.run(command, env=env, capture_output=True, text=True)


def steps_in(folder: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in (folder / "steps.tsv").read_text().splitlines()]
    return {name: outcome for name, outcome, _ in rows}


def test_the_gpu_script_refuses_a_group_it_does_not_know():
    done = gpu_sh("tests", "kernel")
    assert done.returncode == 2 and "no group 'kernel'; known: build tests line" in done.stderr


def test_what_no_longer_fits_is_skipped_and_said_to_be(tmp_path):
    done = gpu_sh("tests", OUT=str(tmp_path), LIMIT="20")
    assert done.returncode == 3, done.stderr
    assert steps_in(tmp_path)["tests"].startswith("skipped: ") and "skipped: tests" in done.stdout
    assert "not measured" in (tmp_path / "summary.md").read_text()


PYTHON = """#!/bin/sh
case "$*" in
  *bench.slerp_noise*) echo broken >&2; exit 7 ;;
  *bench.ema_merge*) exit 124 ;;
  *--shapes*) for last; do :; done; echo '[{"op": "x", "impl": "y", "shape": "z", "median_ms": 1.5}]' >"$last"; exit ;;
esac
exec %s "$@"
"""


def test_a_step_that_fails_stops_no_other_and_its_results_come_back(tmp_path):
    out, python = tmp_path / "out", tmp_path / "python"
    python.write_text(PYTHON % sys.executable)
    python.chmod(0o755)
    done = gpu_sh("kernels", python=str(python), OUT=str(out))
    assert done.returncode == 1, done.stderr
    steps = steps_in(out)
    assert len(steps) == 8 and list(steps.values()).count("ok") == 6
    assert steps["kernel: slerp_noise"] == "failed, status 7"
    assert steps["kernel: ema_merge"].startswith("stopped after ")
    assert "failed: kernel: ema_merge" in done.stdout and "broken" in (out / "log.txt").read_text()
    assert "| x  | z" in (out / "summary.md").read_text()
    assert len(list(out.iterdir())) <= 8
    with tarfile.open(out / "results.tar.gz") as packed:
        names = {Path(name).name for name in packed.getnames()}
    assert {"kernel-adaln.json", "kernel-slerp_noise.log", "summary.md", "steps.tsv"} <= names


@pytest.mark.slow
def test_a_rehearsal_of_everything_goes_well(tmp_path):
    done = gpu_sh(OUT=str(tmp_path), LIMIT="1500")
    assert done.returncode == 3, done.stdout[-4000:]  # the build and 8-bit products are a GPU's
    assert [
        o for o in steps_in(tmp_path).values() if o != "ok" and not o.startswith("skipped: ")
    ] == []
    summary = (tmp_path / "summary.md").read_text()
    for name in ("line.json", "single.json", "realtime.json", "sprites.json", "sprites-wide.json"):
        assert f"{name} (sprites)" in summary, name
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert len(list(tmp_path.iterdir())) <= 8
