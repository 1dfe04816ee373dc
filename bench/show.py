"""The result of a benchmark for a terminal: compact tables that say their units, what is inside and where it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime.bench.options import BASELINES
from runtime.bench.sweep import HELD, SHORT_CHUNKS

WIDTH = 100
BUSY = 0.25  # other people's share of the cores from which on it is said
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show(result: dict[str, Any]) -> str:
    """All tables, one below the other."""
    parts = [head(result), stages(result), summary(result), machine(result)]
    parts += [growth(axis, points) for axis, points in result["growth"].items()]
    return "\n\n".join("\n".join(part) for part in parts)


def head(result: dict[str, Any]) -> Iterator[str]:
    """What was measured, where."""
    settings, place = result["settings"], result["environment"]
    search, run = settings["search"], settings["run"]
    prompts = f", {run['prompts']} prompts a batch" if run["prompts"] > 1 else ""
    yield (
        f"{place['preset']}: {search['policy']}, K={search['histories']} M={search['expansions']}{prompts}, "
        f"{result['videos']} videos of {settings['seconds']:g} s ({result['chunks']} chunks in all), seed {place['seed']}"
    )
    where = place["gpu"] if str(place["device"]).startswith("cuda") else place["cpu"]
    threads = "" if place["gpu"] else f", {place['threads']} threads, no GPU"
    linears = "" if place["linears"] == "dense" else f", DiT products {place['linears']}"
    versions = [f"torch {place['torch']}"]
    versions += [f"CUDA {place['cuda']}, driver {place['driver']}"] if place["gpu"] else []
    yield f"{place['dtype']}{linears} on {where}{threads}; {', '.join(versions)}; commit {place['commit']}"
    cores, load = place["cores"], place["load"]
    if load is not None and load > BUSY * cores:
        yield from wrapped(
            f"This machine was busy before the start (load {load:.1f} on {cores} cores): times are longer and wider than "
            f"on a quiet one; ratios of neighbours suffer less."
        )
    ops = ", ".join(f"{op} {impl}" for op, impl in place["implementations"].items())
    yield from wrapped(f"{ops}; weights {place['weights']}")


def stages(result: dict[str, Any]) -> Iterator[str]:
    """Where a chunk's time goes."""
    baselines = result["stages_baseline"]
    columns = "".join(f"{name[:10]:>11}" for name in baselines)
    yield (
        f"{'stage':<13}{'median':>9}{'p95':>9}{'p99':>9}{'share':>7}{columns}"
        f"{'work':>11}{'speed':>13}{'traffic':>11}{'roofline':>9}"
    )
    for name, row in result["stages"].items():
        others = "".join(
            f"{milliseconds(other[name]['median_ms']) if name in other else '-':>11}"
            for other in baselines.values()
        )
        share = "-" if row["roofline_share"] is None else f"{row['roofline_share']:.0%}"
        speed = None if row["tflop_per_s"] is None else row["tflop_per_s"] * 1e12
        traffic = None if row["gb_per_s"] is None else row["gb_per_s"] * 1e9
        yield (
            f"{name:<13}{milliseconds(row['median_ms']):>9}{milliseconds(row['p95_ms']):>9}"
            f"{milliseconds(row['p99_ms']):>9}{row['share']:>7.1%}{others}"
            f"{scaled(row['flops'], 'FLOP'):>11}{scaled(speed, 'FLOP/s'):>13}"
            f"{scaled(traffic, 'B/s'):>11}{share:>9}"
        )
    limit = result["ceilings"]
    narrow = limit["narrow_tflop_per_s"]
    more = f", {scaled(narrow * 1e12, 'FLOP/s')} float8" if narrow else ""
    yield from wrapped(
        f"ms per chunk, of the chunks in which the stage ran (text: once a video); memory is the clean pass and "
        f"the merges; write is each video's mean; between is wall time in which no stage ran. Work and traffic are "
        f"counted by formula; roofline is the least time for them over the time taken, with this machine's "
        f"{scaled(limit['matmul_tflop_per_s'] * 1e12, 'FLOP/s')} {limit['dtype']} product{more} and "
        f"{scaled(limit['copy_gb_per_s'] * 1e9, 'B/s')} copy, measured in this run."
    )


def summary(result: dict[str, Any]) -> Iterator[str]:
    """How fast a caller gets what."""
    latency = result["latency"]
    yield line(
        "pixel FPS",
        f"{result['pixel_fps']:.1f}",
        "frames over wall time; inside: " + result["inside"],
    )
    for label, key, unit, text in (
        ("first chunk", "first_chunk_ms", "ms", "made and judged, text inside"),
        ("first frames", "first_shown_ms", "ms", "settled: nothing can change them any more"),
        ("next chunk", "inter_chunk_ms", "ms", "from chunk to chunk"),
        (
            "settles after",
            "settle_delay_chunks",
            "later",
            "chunks made before all histories agree on one",
        ),
    ):
        d = latency[key]
        if d["count"]:
            spread = f"p95 {d['p95']:.4g}, p99 {d['p99']:.4g}, most {d['max']:.4g}"
            yield line(label, f"{d['median']:.4g} {unit}", f"{spread}; {text}")
    if result["host_ms"]:
        host = result["host_ms"]
        text = "host time inside the stages but select, where it waits for the scores; a full launch queue counts"
        yield line("host issues", f"{host['median']:.4g} ms", f"p95 {host['p95']:.4g}; {text}")
    for name, ratio in result["speedup"].items():
        low, high = result["speedup_spread"][name]
        pairs = result["videos_baseline"][name] // result["settings"]["run"]["prompts"]
        slow = result["pixel_fps_baseline"][name]
        spread = f"{low:.2f} to {high:.2f} over {pairs} pairs" if pairs > 1 else "1 pair, no spread"
        if not result["in_turns"]:
            spread += ", one engine after the other: there was no memory for both"
        yield line(f"vs {name}", f"{ratio:.2f}x", f"{spread}; {slow:.1f} FPS: {BASELINES[name][0]}")
    for name, reason in result["baselines_missing"].items():
        yield line(f"vs {name}", "-", f"not measured: {reason}")


def machine(result: dict[str, Any]) -> Iterator[str]:
    """Memory and power."""
    memory, power = result["memory"], result["power"]
    gpu = memory["gpu_peak_mb"]
    parts = [f"host peak {memory['host_peak_mb']:.0f} MB"]
    parts += [f"GPU peak {gpu:.0f} MB, {memory['gpu_reserved_mb']:.0f} MB reserved"] if gpu else []
    parts.append(
        f"KV pool {scaled(memory['kv_bytes'], 'B')} in {memory['pool_blocks']} blocks, "
        f"{scaled(memory['kv_bytes_per_history'], 'B')} a history ({memory['history_blocks']} blocks)"
    )
    yield line("memory", "", "; ".join(parts))
    if not power["available"]:
        yield line("power", "", f"not available: {power['reason']}")
        return
    numbers = [
        f"{power[key]['median']:.0f} {unit} (most {power[key]['max']:.0f})"
        for key, unit in (("watts", "W"), ("sm_clock_mhz", "MHz"), ("temperature_c", "C"))
        if power[key]["count"]
    ]
    if power["joules_per_video_second"] is not None:
        numbers.append(f"{power['joules_per_video_second']:.0f} J per second of video")
    held = ", ".join(power["throttle_reasons"]) or "nothing"
    yield line("power", "", f"{', '.join(numbers)}; clocks held back by: {held}")


def growth(axis: str, points: list[dict[str, Any]]) -> Iterator[str]:
    """One sweep as a table with bars."""
    yield f"{axis:<13}{'median':>9}{'p95':>9}{'min':>9}{'max':>9}{'chunks':>8}{'FPS':>8}"
    most = max((p["chunk_ms"]["median"] or 0.0 for p in points), default=0.0)
    for point in points:
        d = point["chunk_ms"]
        if not d["count"]:
            yield f"{point['x']:<13}  not measured: {point.get('error', 'no chunks')}"
            continue
        numbers = "".join(f"{milliseconds(d[key]):>9}" for key in ("median", "p95", "min", "max"))
        bar = "#" * max(1, round(20 * d["median"] / most))
        yield f"{point['x']:<13}{numbers}{d['count']:>8}{point['pixel_fps']:>8.1f}  {bar}{beside(point)}"
    yield from wrapped(f"ms per chunk; {HELD[axis].format(chunks=SHORT_CHUNKS)}")


def beside(point: dict[str, Any]) -> str:
    """What else a point of the length axis knows."""
    if "context_blocks" not in point:
        return ""
    words = [f"{point['context_blocks']:.1f} blocks"]
    if point["ratio_to_control"] is not None:
        fresh = milliseconds(point["control_ms"]["median"])
        words.insert(0, f"{point['ratio_to_control']:.2f}x of fresh {fresh}")
    return f"  {', '.join(words)}"


def line(label: str, value: str, text: str) -> str:
    """A label, a number, and what it means, continued below itself where it is long."""
    indent = 27
    rows = list(wrapped(text, WIDTH - indent))
    first = f"{label:<14}{value:>11}  {rows[0]}"
    return "\n".join([first, *(" " * indent + row for row in rows[1:])])


def wrapped(text: str, width: int = WIDTH) -> Iterator[str]:
    """``text`` in lines of at most ``width``, broken at spaces."""
    row = ""
    for word in text.split(" "):
        if row and len(row) + 1 + len(word) > width:
            yield row
            row = word
        else:
            row = f"{row} {word}" if row else word
    yield row


def milliseconds(value: float | None) -> str:
    """Three digits or more: 0.123, 4.56, 78.9, 1234."""
    if value is None:
        return "-"
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:.{digits}f}"


def scaled(value: float | None, unit: str) -> str:
    """A number with its unit in thousands: 11.7 TFLOP."""
    if value is None:
        return "-"
    for size, prefix in UNITS:
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
