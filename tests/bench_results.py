"""Made-up bench results for tests of what reads them. No figure here was measured on anything."""

from __future__ import annotations

import random
from typing import Any

STAGES = {  # ms, FLOP, bytes of one chunk
    "text": (2.0, None, None),
    "noise": (0.05, 1e7, 2e7),
    "denoise": (640.0, 430e12, 45e9),
    "decode": (210.0, 165e12, 60e9),
    "image reward": (610.0, 480e12, 90e9),
    "video reward": (95.0, 60e12, 12e9),
    "select": (0.08, None, None),
    "memory": (70.0, 55e12, 6e9),
    "emit": (9.0, None, 1.2e8),
}
PEAK, COPY = 790.0, 3000.0


def dist(
    middle: float, spread: float = 0.05, count: int = 60, keep: bool = False
) -> dict[str, Any]:
    """A distribution around ``middle``."""
    source = random.Random(round(middle * 1000))
    values = sorted(middle * (1 + spread * abs(source.gauss(0, 1))) for _ in range(count))
    found = {
        "median": values[count // 2],
        "p50": values[count // 2],
        "p95": values[int(0.95 * count)],
        "p99": values[int(0.99 * count)],
        "min": values[0],
        "max": values[-1],
        "count": count,
    }
    return found | ({"values": values} if keep else {})


def stages(slower: float = 1.0) -> dict[str, Any]:
    total = sum(ms for ms, _, _ in STAGES.values())
    table = {}
    for name, (ms, flops, moved) in STAGES.items():
        tflop = flops / ms / 1e9 / slower if flops else None
        gb = moved / ms / 1e6 / slower if moved else None
        roof = max(tflop / PEAK, gb / COPY) if tflop and gb else None
        table[name] = {
            "median_ms": ms * slower,
            "p50_ms": ms * slower,
            "p95_ms": ms * slower * 1.04,
            "p99_ms": ms * slower * 1.09,
            "share": ms / total,
            "flops": flops,
            "bytes": moved,
            "tflop_per_s": tflop,
            "gb_per_s": gb,
            "roofline_share": roof,
        }
    return table


def timeline() -> list[dict[str, Any]]:
    def span(stage: str, start: float, end: float, stream: str = "main") -> dict[str, Any]:
        return {"stage": stage, "start_ms": start, "end_ms": end, "stream": stream}

    return [
        span("memory", 0, 2),
        span("noise", 2, 2.05),
        span("denoise", 2.05, 642),
        span("decode", 642, 852),
        span("image reward", 852, 1462, "image reward"),
        span("video reward", 852, 947, "video reward"),
        span("select", 1462, 1462.1),
        span("memory", 1462.1, 1532),
        span("emit", 1532, 1541),
    ]


def sweep(xs: list[int], ms: Any) -> list[dict[str, Any]]:
    return [{"x": x, "chunk_ms": dist(ms(x)), "pixel_fps": 12e3 / ms(x)} for x in xs]


def full() -> dict[str, Any]:
    """Everything a result can hold, as if from a GPU."""
    base = {"first_chunk_ms": dist(5200), "inter_chunk_ms": dist(13100)}
    return {
        "speedup": {"released": 8.48, "eager": 2.31},
        "speedup_spread": {"released": [8.31, 8.6], "eager": [2.25, 2.4]},
        "pixel_fps": 7.78,
        "pixel_fps_baseline": {"released": 0.917, "eager": 3.37},
        "inside": "text, denoising, decoder, both rewards, search and writing (encoded to MP4)",
        "latency": {
            "first_chunk_ms": dist(1490, count=8),
            "inter_chunk_ms": dist(1536, keep=True),
            "settle_delay_chunks": dist(1.2, count=21),
            "video_seconds": dist(10.4, count=3),
        },
        "latency_baseline": {"released": base},
        "stages": stages(),
        "stages_baseline": {"released": stages(8.4), "eager": stages(2.3)},
        "timeline": timeline(),
        "host_ms": dist(1.9),
        "ceilings": {"matmul_tflop_per_s": PEAK, "copy_gb_per_s": COPY, "dtype": "bfloat16"},
        "memory": {
            "host_peak_mb": 5300.0,
            "gpu_peak_mb": 41200.0,
            "gpu_reserved_mb": 44000.0,
            "kv_bytes": 12 * 862617600,
            "kv_bytes_per_history": 862617600,
            "block_bytes": 862617600,
        },
        "power": {
            "available": True,
            "watts": dist(640),
            "sm_clock_mhz": dist(1755, 0.01),
            "temperature_c": dist(61),
            "throttle_reasons": ["sw_power_cap"],
            "joules_per_video_second": 1310.0,
        },
        "growth": {
            "candidates": sweep([1, 2, 4, 8], lambda n: 190 + 340 * n),
            "context": sweep([1, 2, 3, 4, 6, 8], lambda n: 1290 + 62 * n),
            "length": sweep(list(range(0, 40)), lambda n: 1400 + 20 * min(n, 8)),
            "prompts": sweep([1, 2, 4], lambda n: 1536 * n**0.94),
        },
        "quality": {"fvd": None, "note": "made up"},
        "videos": 3,
        "frames": 243,
        "chunks": 21,
        "settings": {
            "seconds": 5.0,
            "fidelity": "paper",
            "search": {"policy": "stream-t1", "histories": 2, "expansions": 2},
            "run": {"generator": "wan-1.3b", "weights": "random", "device": "cuda"},
        },
        "environment": {
            "runtime": "0.1.0",
            "commit": "0000000",
            "torch": "2.11.0",
            "triton": "3.6.0",
            "python": "3.12",
            "cpu": "a made-up CPU",
            "threads": 16,
            "gpu": "a made-up GPU (test fixture, nothing measured)",
            "cuda": "13.0",
            "driver": "580.0",
            "device": "cuda",
            "dtype": "bfloat16",
            "linears": "dense",
            "weights": "random",
            "output": "encoded to MP4",
            "implementations": {"attention": "triton", "noise": "triton", "adaln": "triton"},
            "seed": 42,
            "preset": "wan-1.3b",
            "command": "python -m runtime.bench --preset wan-1.3b --random-weights --against released",
        },
    }


def least() -> dict[str, Any]:
    """As little as a result may hold: a CPU run without sweeps, baselines or power."""
    stage = {"median_ms": 100.0, "p95_ms": 120.0, "share": 1.0, "flops": None, "bytes": None}
    return {
        "pixel_fps": 44.0,
        "stages": {"denoise": stage},
        "environment": {"device": "cpu", "cpu": "a made-up CPU", "gpu": None, "dtype": "float32"},
        "power": {"available": False, "watts": None, "reason": "no NVIDIA driver"},
    }
