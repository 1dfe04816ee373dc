"""``python -m runtime.bench.aot``: compiles every shipped form of every Triton kernel without a GPU and judges the machine code.

A form fails when it spills registers or uses a stack, when it wants more shared memory than the chip has, or when it is
made of dot products and has no tensor-core instruction. Exit status 1 if any form fails.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import runtime.kernels
from runtime.kernels import triton_lang
from runtime.kernels.build import ARCHS, Build

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes a block may use
TENSOR_CORE = {  # what the chip's tensor-core instructions are called in SASS
    80: r"\bHMMA|\bIMMA",
    90: r"\bHGMMA|\bQGMMA|\bIGMMA",
    100: r"\bUTC\w*MMA",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What one form became on one chip."""

    kernel: str
    label: str
    arch: int
    registers: int
    stack_bytes: int
    local_accesses: int  # loads and stores of spilled values or of arrays in local memory
    shared_bytes: int
    tensor_core_instructions: int
    wide_loads: int  # 16-byte accesses to global memory
    dots: bool


def main() -> int:
    if (
        triton_lang.INTERPRETED
    ):  # compiling needs the real thing, which is chosen when Triton is imported
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "runtime.bench.aot", *sys.argv[1:]]
        return subprocess.run(command, env=env).returncode
    if not triton_lang.AVAILABLE:
        print("error: triton is not installed; `pip install triton`", file=sys.stderr)
        return 2
    args = _arguments()
    forms = list(shipped(args.kernels, args.arch, args.reduced))
    if not forms:
        print("error: no kernel with a builds() matches", file=sys.stderr)
        return 2
    bad, reports = 0, []
    with ProcessPoolExecutor(args.jobs) as pool:
        for report in pool.map(_report_at, *zip(*forms, strict=True)):
            faults = judge(report)
            bad += bool(faults)
            reports.append({**dataclasses.asdict(report), "faults": faults})
            print(line(report, faults), flush=True)
    print(f"{len(reports)} forms compiled, {bad} at fault")
    if args.json:
        args.json.write_text(json.dumps(reports, indent=1) + "\n")
    return 1 if bad else 0


def shipped(
    kernels: Sequence[str], archs: Sequence[int], reduced: bool
) -> Iterator[tuple[str, int, int]]:
    """(module, place of the form among the module's, arch) of everything to compile.

    Reduced: every form for one chip, sm_90, and the first form of every kernel function for the others.
    """
    for module in kernel_modules():
        if kernels and module.removesuffix("_triton") not in kernels:
            continue
        seen = set()
        for place, build in enumerate(forms_of(module)):
            first = build.kernel not in seen
            seen.add(build.kernel)
            for arch in archs:
                if arch in build.archs and (not reduced or arch == 90 or first):
                    yield module, place, arch


def kernel_modules() -> list[str]:
    """The names of the files in ``kernels/`` that have a ``builds()`` of their own, not an imported one."""
    names = [info.name for info in pkgutil.iter_modules(runtime.kernels.__path__)]
    found = {name: getattr(_module(name), "builds", None) for name in names}
    return [n for n, f in found.items() if f and f.__module__ == f"runtime.kernels.{n}"]


def forms_of(module: str) -> list[Build]:
    return list(_module(module).builds())


def _module(name: str) -> Any:
    return importlib.import_module(f"runtime.kernels.{name}")


def _report_at(module: str, place: int, arch: int) -> Report:
    return inspect(forms_of(module)[place], arch, module)


def compile_build(build: Build, arch: int) -> Any:
    """Triton's compiled kernel for sm_``arch``."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_triton

    names = build.kernel.arg_names
    signature = {name: build.signature.get(name, "constexpr") for name in names}
    missing = [n for n in names if n not in build.signature and n not in build.constants]
    if missing:
        raise ValueError(f"{build.label}: no type and no constant for arguments {missing}")
    if strange := sorted(build.aligned - set(build.signature)):
        raise ValueError(f"{build.label}: aligned names {strange}, which are no arguments")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(
        fn=build.kernel, signature=signature, constexprs=dict(build.constants), attrs=aligned
    )
    options = {
        "num_warps": build.num_warps,
        "num_stages": build.num_stages,
        "enable_fp_fusion": build.fused,
    }
    return compile_triton(source, target=GPUTarget("cuda", arch, 32), options=options)


def inspect(build: Build, arch: int, kernel: str = "") -> Report:
    """Compile one form and read the machine code."""
    compiled = compile_build(build, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    return Report(
        kernel=kernel,
        label=build.label,
        arch=arch,
        registers=_number(r"REG:(\d+)", usage),
        stack_bytes=_number(r"STACK:(\d+)", usage),
        local_accesses=len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        shared_bytes=compiled.metadata.shared,
        tensor_core_instructions=len(re.findall(TENSOR_CORE[arch], sass)),
        wide_loads=len(re.findall(r"\b(?:LDG|STG)\.\S*128", sass)),
        dots=build.dots,
    )


def _tool(name: str, *args: str) -> str:
    folder = Path(triton_lang.triton.__file__).parent / "backends" / "nvidia" / "bin"
    return subprocess.run(
        [str(folder / name), *args], capture_output=True, text=True, check=True
    ).stdout


def _number(pattern: str, text: str) -> int:
    """The largest match: a kernel and what it calls are listed one by one."""
    return max(map(int, re.findall(pattern, text)))


def judge(report: Report) -> list[str]:
    """Sentences on what is wrong; none for a form that may be shipped."""
    faults = []
    if report.local_accesses or report.stack_bytes:
        faults.append(
            f"uses {report.stack_bytes} bytes of stack, {report.local_accesses} local accesses"
        )
    if report.shared_bytes > SHARED_LIMIT[report.arch]:
        faults.append(
            f"wants {report.shared_bytes} bytes of shared memory, sm_{report.arch} has "
            f"{SHARED_LIMIT[report.arch]}"
        )
    if report.dots and not report.tensor_core_instructions:
        faults.append("multiplies matrices without tensor cores")
    return faults


def line(report: Report, faults: Sequence[str]) -> str:
    """One line of the table."""
    code = f", {report.tensor_core_instructions} tensor-core instructions" if report.dots else ""
    verdict = "  FAULT: " + "; ".join(faults) if faults else ""
    return (
        f"sm_{report.arch:<4}{report.label:<62}{report.registers:>4} registers, {report.stack_bytes} stack, "
        f"{report.local_accesses} spills, {report.shared_bytes:>6} shared, {report.wide_loads:>3} wide{code}{verdict}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.aot", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--arch", nargs="+", type=int, choices=ARCHS, default=list(ARCHS))
    parser.add_argument(
        "--kernels",
        nargs="+",
        choices=[module.removesuffix("_triton") for module in kernel_modules()],
        default=[],
        help="default: all",
    )
    parser.add_argument("--reduced", action="store_true", help=shipped.__doc__.split("\n\n")[1])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilations at once")
    parser.add_argument("--json", type=Path, help="write the reports here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
