"""What a result says in plain words: the headline figures, what was measured and how, and what was not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.bench.report_result import Result
from runtime.bench.report_svg import count, figure, share, size_of, work_of

SWEEPS = ("candidates", "context", "length", "prompts")


@dataclass(frozen=True, slots=True)
class Headline:
    """One large figure, its unit and what it is."""

    value: str
    unit: str
    meaning: str


def headlines(result: Result) -> list[Headline]:
    """The figures that a reader wants first; only those that were measured."""
    found = [Headline(figure(result.number("pixel_fps")), "FPS", "pixel frames over wall time")]
    between = result.dist("latency", "inter_chunk_ms")
    first = result.dist("latency", "first_chunk_ms")
    if between:
        found.append(Headline(figure(between.median), "ms", "from chunk to chunk, median"))
    if first:
        found.append(Headline(figure(first.median), "ms", "to the first chunk, median"))
    for name in result.names("speedup"):
        ratio = result.number("speedup", name)
        if ratio is not None:
            found.append(Headline(figure(ratio), "×", f"{_baseline(name)}{_spread(result, name)}"))
    gpu = result.number("memory", "gpu_peak_mb")
    if gpu is not None:
        found.append(Headline(*_split(size_of(gpu * 1e6)), "GPU memory at its peak"))
    energy = result.number("power", "joules_per_video_second")
    if energy is not None:
        found.append(Headline(figure(energy), "J", "for a second of video"))
    return found


def title(result: Result) -> str:
    """What was run, in a line."""
    preset = result.text("environment", "preset") or result.text("settings", "run", "generator")
    return f"{preset or 'Stream-T1'} on {result.device}"


def facts(result: Result) -> Iterator[tuple[str, str]]:
    """(question, answer) for what was measured, on what, and what the frame rate holds."""
    yield "What ran", _what_ran(result)
    yield "On what", _on_what(result)
    inside = result.text("inside")
    yield (
        "Inside the FPS",
        f"{inside}. FPS is finished pixel frames over wall time."
        if inside
        else "The result does not say what its FPS holds.",
    )
    if result.random_weights:
        yield (
            "Weights",
            "Random. Speed does not depend on their values, so the times are those of the full model; "
            "the pictures and scores mean nothing.",
        )
    else:
        weights = result.text("environment", "weights") or result.text("settings", "run", "weights")
        named = weights in (None, "", "packaged")
        yield "Weights", "Trained, of the package." if named else f"{weights}."
    if result.names("speedup"):
        names = " and ".join(_baseline(name) for name in result.names("speedup"))
        yield (
            "Compared with",
            f"{names}, in the same process on the same inputs, runs taking turns; ranges are the "
            "least and the greatest ratio of a pair.",
        )
    missing = list(not_known(result))
    if missing:
        yield "Not measured", "; ".join(missing) + "."


def not_known(result: Result) -> Iterator[str]:
    """Everything a reader might look for and not find, with the reason where there is one."""
    if result.dist("power", "watts") is None:
        reason = result.text("power", "reason")
        yield "power, clocks and temperature: not available" + (f" ({reason})" if reason else "")
    if result.number("memory", "gpu_peak_mb") is None:
        on_cpu = not (result.text("environment", "device") or "cpu").startswith("cuda")
        yield "GPU memory" + (" (this run used none)" if on_cpu else ": not available")
    if result.dist("host_ms") is None:
        yield "host time to issue a chunk" + (" (a figure of GPU runs)" if _on_cpu(result) else "")
    unknown = [s for s in result.stages() if result.number("stages", s, "roofline_share") is None]
    if result.number("ceilings", "matmul_tflop_per_s") is None:
        yield "ceilings of the machine, and with them the roofline"
    elif unknown:
        yield f"work of {', '.join(unknown)}: no FLOP and byte counts, so no roofline share"
    if not result.names("speedup"):
        yield "a baseline of the same run: none was asked for"
    if not result.items("timeline"):
        yield "the time line of a chunk"
    unswept = [name for name in SWEEPS if not result.items("growth", name)]
    if unswept:
        yield f"growth with {', '.join(unswept)}: not swept"


def stage_rows(result: Result) -> Iterator[list[str]]:
    """A row per stage for the table: times, share, work, rates and the share of the roofline."""
    for stage in result.stages():
        cell = {
            key: result.number("stages", stage, key)
            for key in ("median_ms", "p95_ms", "p99_ms", "share", "flops", "bytes")
        }
        rates = [
            result.number("stages", stage, key)
            for key in ("tflop_per_s", "gb_per_s", "roofline_share")
        ]
        yield [
            stage,
            *(figure(cell[key], unknown="") for key in ("median_ms", "p95_ms", "p99_ms")),
            share(cell["share"]),
            work_of(cell["flops"], unknown=""),
            size_of(cell["bytes"], unknown=""),
            *(figure(rate, unknown="") for rate in rates[:2]),
            share(rates[2]),
        ]


def memory_rows(result: Result) -> Iterator[tuple[str, str]]:
    """What the run held at its peak, and what one history costs."""
    for key, meaning in (
        ("host_peak_mb", "host memory, peak"),
        ("gpu_peak_mb", "GPU memory, peak"),
        ("gpu_reserved_mb", "GPU memory, reserved"),
    ):
        value = result.number("memory", key)
        yield meaning, size_of(None if value is None else value * 1e6, "not available")
    for key, meaning in (
        ("kv_bytes", "KV pool, all blocks"),
        ("kv_bytes_per_history", "KV of one history, at most; siblings share"),
        ("block_bytes", "one KV block, a chunk in every layer"),
    ):
        yield meaning, size_of(result.number("memory", key), "not measured")


def power_rows(result: Result) -> Iterator[tuple[str, str]]:
    """Power, clocks, temperature and why the clock was held back; one row with the reason where nothing is known."""
    if result.dist("power", "watts") is None:
        yield "power", "not available: " + (result.text("power", "reason") or "no reason given")
        return
    for key, meaning, unit in (
        ("watts", "power", "W"),
        ("sm_clock_mhz", "SM clock", "MHz"),
        ("temperature_c", "temperature", "°C"),
    ):
        dist = result.dist("power", key)
        if dist:
            reach = f"{figure(dist.low)} to {figure(dist.high)}"
            yield meaning, f"{figure(dist.median, unit)} (median; {reach})"
    energy = result.number("power", "joules_per_video_second")
    yield "energy of a second of video", figure(energy, "J", "not measured")
    reasons = result.words("power", "throttle_reasons")
    yield "clock held back by", ", ".join(reasons) or "nothing"


def _what_ran(result: Result) -> str:
    search = {
        key: result.text("settings", "search", key) for key in ("policy", "histories", "expansions")
    }
    counts = [
        _counted(result.number(key), key)
        for key in ("videos", "chunks", "frames")
        if result.number(key) is not None
    ]
    words = [", ".join(counts) or "an unknown number of videos"]
    if search["policy"]:
        words.append(
            f"policy {search['policy']}, K = {search['histories']} histories kept, "
            f"M = {search['expansions']} candidates drawn for each"
        )
    seconds = result.number("settings", "seconds")
    if seconds is not None:
        words.append(f"videos of {count(seconds, 's')}")
    fidelity = result.text("settings", "fidelity")
    if fidelity:
        words.append(f"fidelity {fidelity}")
    return "; ".join(words) + "."


def _counted(number: float | None, nouns: str) -> str:
    return count(number, nouns.removesuffix("s") if number == 1 else nouns)


def _on_what(result: Result) -> str:
    place = {
        key: result.text("environment", key)
        for key in ("dtype", "linears", "threads", "torch", "triton", "cuda", "driver", "commit")
    }
    words = [result.device, place["dtype"] or "unknown dtype"]
    if place["linears"] not in (None, "dense"):
        words.append(f"{place['linears']} products")
    if place["threads"] and _on_cpu(result):
        words.append(f"{place['threads']} CPU thread{'s' if place['threads'] != '1' else ''}")
    words += [
        f"{name} {place[name]}" for name in ("torch", "triton", "cuda", "driver") if place[name]
    ]
    words.append(f"commit {place['commit']}" if place["commit"] else "commit not known")
    return ", ".join(words) + "."


def _on_cpu(result: Result) -> bool:
    return not (result.text("environment", "device") or "cpu").startswith("cuda")


def _baseline(name: str) -> str:
    return {
        "released": "the released schedule",
        "eager": "the same line, eager",
    }.get(name, name)


def _spread(result: Result, name: str) -> str:
    spread = result.numbers("speedup_spread", name)
    return f" ({figure(spread[0])} to {figure(spread[1])})" if len(spread) == 2 else ""


def _split(words: str) -> tuple[str, str]:
    value, _, unit = words.rpartition(" ")
    return value, unit
