"""A kernel's benchmark: no row without a green test, an error and a ceiling of the same run; files that can be read."""

import csv
import json
import math

import pytest
import torch

from runtime.bench import op
from runtime.bench.clock import Ceiling, Times
from runtime.bench.op import Case, rows_of

LIMIT = Ceiling(copy_gb_per_s=20.0, matmul_tflop_per_s=2.0)
CPU = torch.device("cpu")


def case(**changes) -> Case:
    runs = {"torch": lambda: None, "native": lambda: None}
    facts = {"errors": {"torch": 1e-6, "native": 2e-6}, "moved_bytes": 10_000_000, **changes}
    return Case("adaln", "B=1", torch.float32, runs, **facts)


def rows(**changes):
    times = {"torch": Times(2.0, 1.9, 2.2), "native": Times(0.5, 0.4, 0.7)}
    return rows_of(case(**changes), times, LIMIT, CPU)


def test_a_row_says_how_fast_against_what_and_how_wrong():
    plain, fast = rows()
    assert (plain.impl, plain.speedup, fast.impl, fast.speedup) == ("torch", 1.0, "native", 4.0)
    assert fast.gb_per_s == 20.0 and fast.share_of_ceiling == 1.0 and fast.tflop_per_s is None
    assert (fast.median_ms, fast.p20_ms, fast.p80_ms, fast.max_error) == (0.5, 0.4, 0.7, 2e-6)
    assert fast.threads == torch.get_num_threads() and fast.torch == torch.__version__


def test_what_multiplies_is_held_against_the_matmul():
    assert rows(flops=500_000_000)[1].share_of_ceiling == 0.5  # one TFLOP/s of two


def test_a_run_without_an_exact_value_has_no_error_and_the_file_is_json():
    assert rows(errors={"torch": math.nan, "native": 0.0})[0].max_error is None


def test_every_form_of_the_rows_holds_them_all(tmp_path):
    pytest.importorskip("matplotlib")
    made = rows() + rows(flops=1_000_000)
    paths = [tmp_path / name for name in ("rows.json", "rows.csv", "rows.png")]
    op.write(made, *paths)
    assert [row["speedup"] for row in json.loads(paths[0].read_text())] == [1.0, 4.0, 1.0, 4.0]
    with paths[1].open() as file:
        assert [row["impl"] for row in csv.DictReader(file)] == ["torch", "native"] * 2
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_nothing_is_timed_while_a_test_fails(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["adaln", "--device", "cpu"])
    monkeypatch.setattr(op, "run_tests", lambda name: 1)
    monkeypatch.setattr(op, "time_in_turns", lambda *args, **kwargs: pytest.fail("timed"))
    assert op.main("adaln", lambda device, size: iter([case()]), "") == 1
    said = capsys.readouterr()
    assert not said.out and said.err == "adaln: tests fail, so there is nothing to time\n"


def test_a_kernel_without_tests_is_an_error():
    with pytest.raises(
        RuntimeError, match="sorting: no tests under .*; benchmarks run in a checkout"
    ):
        op.run_tests("sorting")


def test_the_command_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["adaln", "--skip-tests", "--device", "cpu", "--threads", "1"])
    monkeypatch.setattr(op, "ceiling", lambda device, dtype: LIMIT)
    threads = torch.get_num_threads()
    try:
        assert op.main("adaln", lambda device, size: iter([case()]), "") == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 2 and "speed-up" in lines[1] and lines[3].split()[1] == "native"
