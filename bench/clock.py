"""The one clock of the benchmarks: implementations take turns within one run, so that a ratio is of like with like."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], object]
FLUSH_BYTES = 256 << 20  # more than the largest L2 cache


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one call."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def time_in_turns(
    runs: Mapping[str, Run],
    device: torch.device | str = "cpu",
    *,
    budget_ms: float = 600.0,
    samples: int = 30,
) -> dict[str, Times]:
    """Time every run: ``samples`` rounds, each run once a round, after two rounds that do not count.

    ``budget_ms`` bounds what one run may take in all; slow runs get fewer samples, at least five. A sample of a fast
    run on the CPU is a loop of calls that takes about a millisecond. On a GPU every sample starts with a cold L2.
    """
    device = torch.device(device)
    sample = _sample_cuda if device.type == "cuda" else _sample_cpu
    for run in runs.values():
        run()
    loops = {name: 1 if device.type == "cuda" else _loops(run) for name, run in runs.items()}
    once = {name: sample(run, loops[name], device) * loops[name] for name, run in runs.items()}
    rounds = {
        name: max(5, min(samples, int(budget_ms / max(spent, 1e-6))))
        for name, spent in once.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(max(rounds.values())):
        for name, run in runs.items():
            if number < rounds[name]:
                taken[name].append(sample(run, loops[name], device))
    return {name: _times(values) for name, values in taken.items()}


def _times(values: list[float]) -> Times:
    ordered = sorted(values)
    last = len(ordered) - 1
    return Times(*(ordered[round(share * last)] for share in (0.5, 0.2, 0.8)))


def _loops(run: Run) -> int:
    began = time.perf_counter()
    run()
    return max(1, int(1e-3 / max(time.perf_counter() - began, 1e-9)))


def _sample_cpu(run: Run, loops: int, device: torch.device) -> float:
    began = time.perf_counter()
    for _ in range(loops):
        run()
    return (time.perf_counter() - began) * 1e3 / loops


_flush: dict[torch.device, torch.Tensor] = {}


def _sample_cuda(run: Run, loops: int, device: torch.device) -> float:
    if device not in _flush:
        _flush[device] = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    _flush[device].zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What this machine reaches with nothing but copying, and with nothing but multiplying."""

    copy_gb_per_s: float
    matmul_tflop_per_s: float
    narrow_tflop_per_s: float | None = (
        None  # float8 products with a scale per row, where they were measured
    )


def ceiling(device: torch.device | str, dtype: torch.dtype) -> Ceiling:
    """Measured now: a copy far larger than the caches (read plus write), a square matmul in ``dtype``."""
    device = torch.device(device)
    gpu = device.type == "cuda"
    source = torch.zeros((2 << 30) if gpu else (256 << 20), dtype=torch.uint8, device=device)
    target, side = torch.empty_like(source), 8192 if gpu else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = time_in_turns(
        {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b, out=out)},
        device,
        samples=10,
    )
    return Ceiling(
        2 * source.nbytes / times["copy"].median_ms / 1e6,
        2 * side**3 / times["matmul"].median_ms / 1e9,
    )


def narrow_matmul(device: torch.device | str) -> float:
    """TFLOP/s of a square product in float8 (e4m3) with one scale per row, bfloat16 out. Needs a GPU that has it."""
    side, narrow = 8192, torch.float8_e4m3fn
    a, b = (torch.randn(side, side, device=device).to(narrow) for _ in range(2))
    scale = torch.ones(side, 1, device=device)

    def product() -> torch.Tensor:
        return torch._scaled_mm(
            a, b.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16
        )

    times = time_in_turns({"product": product}, device, samples=10)
    return 2 * side**3 / times["product"].median_ms / 1e9
