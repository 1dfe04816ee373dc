"""A kernel's benchmark from its cases: tests first, then rows that carry their proof, as a table, JSON, CSV and a plot.

``bench/<kernel>.py`` yields ``Case`` values and calls ``main``; everything that all kernels share is here.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import runtime
from runtime.bench.clock import Ceiling, Run, Times, ceiling, time_in_turns
from runtime.bench.environment import commit, cpu_name
from runtime.kernels import native, triton_lang

ROOT = Path(runtime.__file__).parent.parent
SHAPES = ("embedded", "full")


@dataclass(frozen=True)
class Case:
    """One shape: every implementation on the same inputs. Build tensors lazily, in the generator that yields cases."""

    op: str
    shape: str  # "B=4 S=4680 H=12 D=128"
    dtype: torch.dtype
    runs: Mapping[str, Run]  # implementation -> one call; an in-place op works on a scratch copy
    errors: Mapping[
        str, float
    ]  # implementation -> largest absolute error against the float64 reference
    moved_bytes: int = 0  # that any implementation has to read and write
    flops: int = 0  # that any implementation has to do


Cases = Callable[[torch.device, str], Iterator[Case]]  # (device, "embedded" or "full")


@dataclass(frozen=True)
class Row:
    op: str
    impl: str
    shape: str
    dtype: str
    threads: int
    median_ms: float
    p20_ms: float
    p80_ms: float
    gb_per_s: float | None
    tflop_per_s: float | None
    share_of_ceiling: float  # of the copy's GB/s or the matmul's TFLOP/s, measured in the same run
    max_error: float | None  # None where a run draws values of its own, which nothing is exact for
    speedup: float  # over the first implementation of the case, in the same run
    device: str
    torch: str
    triton: str | None
    commit: str | None


def main(op: str, cases: Cases, description: str) -> int:
    """Parse arguments, run the op's tests, time, print and write. Returns the exit status."""
    args = _arguments(op, description)
    device = torch.device(args.device)
    if not args.skip_tests and run_tests(op) != 0:
        print(f"{op}: tests fail, so there is nothing to time", file=sys.stderr)
        return 1
    rows: list[Row] = []
    for threads in args.threads if device.type == "cpu" else [0]:
        if threads:
            torch.set_num_threads(threads)
        limits: dict[torch.dtype, Ceiling] = {}
        for size in args.shapes:
            for case in cases(device, size):
                limit = limits.setdefault(case.dtype, ceiling(device, case.dtype))
                times = time_in_turns(case.runs, device, samples=args.samples)
                new = rows_of(case, times, limit, device)
                _print(new, header=not rows)
                rows += new
    write(rows, args.json, args.csv, args.plot)
    return 0


def implementations(device: torch.device) -> list[str]:
    """What runs on ``device`` of a kernel that has every implementation, the baseline first."""
    module, _ = native.find()
    if device.type == "cpu":
        return ["torch", *(["native"] if module else [])]
    cuda = module is not None and module.CUDA
    return ["torch", *(["triton"] if triton_lang.AVAILABLE else []), *(["cuda"] if cuda else [])]


def run_tests(op: str) -> int:
    """The op's tests, in a process of their own. RuntimeError outside a checkout, where there are none."""
    import subprocess

    tests = sorted((ROOT / "tests").glob(f"*/test_{op}*.py"))
    if not tests:
        raise RuntimeError(f"{op}: no tests under {ROOT}; benchmarks run in a checkout")
    marks = "gpu or not gpu" if torch.cuda.is_available() else "not gpu"
    run = [sys.executable, "-m", "pytest", "-q", "-m", f"({marks}) and not slow and not weights"]
    return subprocess.run([*run, *map(str, tests)], cwd=ROOT, env=os.environ.copy()).returncode


def rows_of(
    case: Case, times: Mapping[str, Times], limit: Ceiling, device: torch.device
) -> list[Row]:
    """One row per implementation; the first one is what the others are compared with."""
    baseline = times[next(iter(case.runs))].median_ms
    return [
        _row(case, impl, spent, baseline / spent.median_ms, limit, device)
        for impl, spent in times.items()
    ]


def _row(
    case: Case, impl: str, spent: Times, speedup: float, limit: Ceiling, device: torch.device
) -> Row:
    gb = case.moved_bytes / spent.median_ms / 1e6
    tflop = case.flops / spent.median_ms / 1e9
    by_matmul = tflop / limit.matmul_tflop_per_s
    return Row(
        case.op,
        impl,
        case.shape,
        str(case.dtype).removeprefix("torch."),
        0 if device.type == "cuda" else torch.get_num_threads(),
        *dataclasses.astuple(spent),
        gb if case.moved_bytes else None,
        tflop if case.flops else None,
        by_matmul if case.flops else gb / limit.copy_gb_per_s,
        None if math.isnan(case.errors[impl]) else case.errors[impl],
        speedup,
        torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        torch.__version__,
        getattr(triton_lang.triton, "__version__", None),
        commit(),
    )


def _print(rows: list[Row], header: bool) -> None:
    if header:
        print(f"on {rows[0].device}, torch {rows[0].torch}, commit {rows[0].commit}")
        print(
            f"{'op':<22}{'impl':<17}{'dtype':<10}{'threads':>7}{'median ms':>11}{'p20':>10}{'p80':>10}"
            f"{'GB/s':>8}{'TFLOP/s':>9}{'ceiling':>9}{'error':>10}{'speed-up':>10}  shape"
        )
    for row in rows:
        gb = f"{row.gb_per_s:.1f}" if row.gb_per_s is not None else "-"
        error = f"{row.max_error:.1e}" if row.max_error is not None else "-"
        tflop = f"{row.tflop_per_s:.2f}" if row.tflop_per_s is not None else "-"
        print(
            f"{row.op:<22}{row.impl:<17}{row.dtype:<10}{row.threads or '-':>7}{row.median_ms:>11.4f}"
            f"{row.p20_ms:>10.4f}{row.p80_ms:>10.4f}{gb:>8}{tflop:>9}{row.share_of_ceiling:>9.0%}"
            f"{error:>10}{row.speedup:>9.2f}x  {row.shape}",
            flush=True,
        )


def write(
    rows: list[Row], json_path: Path | None, csv_path: Path | None, plot: Path | None
) -> None:
    """The rows in whichever forms were asked for."""
    table: list[dict[str, Any]] = [dataclasses.asdict(row) for row in rows]
    if json_path:
        json_path.write_text(json.dumps(table, indent=1) + "\n")
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
            writer.writeheader()
            writer.writerows(table)
    if plot:
        from runtime.bench.op_plot import draw

        draw(rows, plot)


def _arguments(op: str, description: str) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog=f"python -m runtime.bench.{op}", description=description, allow_abbrev=False
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="CPU threads, one table each"
    )
    parser.add_argument("--samples", type=int, default=30, help="most samples per row")
    parser.add_argument(
        "--skip-tests", action="store_true", help="time although nothing was tested"
    )
    for kind in ("json", "csv", "plot"):
        parser.add_argument(f"--{kind}", type=Path, help=f"write the rows as {kind} here")
    args = parser.parse_args()
    if min(args.threads) < 1 or args.samples < 1:
        parser.error("--threads and --samples: want at least 1")
    if args.device == "cuda" and not cuda:
        parser.error("--device cuda: this machine has no usable GPU")
    return args
