"""``python -m runtime.bench.golden CASE_DIR ...``: replay recorded cases; exit 1 when anything differs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from runtime.bench.golden import forward_case, search_case
from runtime.bench.golden.compare import Report
from runtime.bench.golden.parts import Case
from runtime.settings import OPS


def replay(folder: Path, dtype: torch.dtype, ops: str = "auto") -> Report:
    """One case of any kind."""
    case = Case.read(folder)
    return (forward_case if case.kind == "forward" else search_case).replay(case, dtype, ops)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.golden", description=__doc__)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--ops", choices=OPS, default="auto", help="implementation of the kernels")
    parser.add_argument("--json", type=Path, help="write the results here too")
    args = parser.parse_args()
    reports = []
    for folder in args.cases:
        try:
            reports.append(replay(folder, getattr(torch, args.dtype), args.ops))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(reports[-1].line(), flush=True)
    if args.json:
        rows = [
            {
                "case": r.name,
                "dtype": args.dtype,
                "ops": args.ops,
                "max_tensor_err": r.tensor_error,
                "max_score_err": r.score_error,
                "max_kv_err": r.kv_error,
                "decisions": r.differences or "identical",
                "compared": r.compared,
                "passed": r.passed,
            }
            for r in reports
        ]
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
