"""``python -m runtime.bench`` as a whole: options to settings, one run of the embedded model, what the table says."""

import gzip
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from runtime.bench import __main__ as bench
from runtime.bench import measure
from runtime.bench import run as run_module
from runtime.bench.options import baselines_of, parse, settings_of
from runtime.bench.profile import profile
from runtime.bench.run import PROMPTS, Plan
from runtime.bench.show import milliseconds, scaled, show, wrapped
from runtime.presets import preset
from runtime.settings import Settings
from tests.timed_engine import Sink
from tests.tiny import tiny_engine


def asked(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return parse()


def test_options_are_settings_and_set_wins(monkeypatch):
    args = asked(
        monkeypatch,
        *("--histories", "4", "--expansions", "3", "--precision", "fp8", "--prompts", "2"),
        *("--graphs", "off", "--attention", "sdpa", "--random-weights", "--policy", "beam"),
        *("--set", "search.histories=5", "--set", "reward.stride=3", "--seconds", "7.5"),
    )
    got = settings_of(args)
    assert (got.search.histories, got.search.expansions, got.search.policy) == (5, 3, "beam")
    assert (got.run.dtype, got.run.linears, got.run.graphs) == ("bfloat16", "fp8-row", "off")
    assert (got.run.weights, got.reward.weights, got.run.prompts) == ("random", "", 2)
    full = settings_of(asked(monkeypatch, "--preset", "wan-1.3b", "--random-weights"))
    assert (full.run.weights, full.reward.weights) == ("random", "random")
    assert (got.run.attention, got.reward.stride, got.seconds) == ("sdpa", 3, 7.5)


def test_without_options_everything_is_the_presets(monkeypatch):
    args = asked(monkeypatch)
    assert settings_of(args) == preset("sprites") and args.against == ["released"]


@pytest.mark.parametrize(
    ("option", "value", "dtype", "linears"),
    [
        ("--precision", "fp32", "float32", "dense"),
        ("--precision", "bf16", "bfloat16", "dense"),
        ("--dtype", "bfloat16", "bfloat16", "dense"),
    ],
)
def test_a_precision_is_a_dtype_and_a_kind_of_products(monkeypatch, option, value, dtype, linears):
    run = settings_of(asked(monkeypatch, option, value)).run
    assert (run.dtype, run.linears) == (dtype, linears)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "search.histories"], "--set: want NAME=VALUE, got 'search.histories'"),
        (["--set", "search.histories=x"], "search.histories: want a whole number, got 'x'"),
        (["--set", "search.historys=2"], "did you mean search.histories?"),
        (["--prompts", "0"], "run.prompts: want at least 1 to time, got 0"),
        (["--policy", "single", "--sweep", "candidates"], "--sweep candidates: policy 'single'"),
    ],
)
def test_a_wrong_setting_is_told_in_a_sentence(monkeypatch, capsys, arguments, sentence):
    asked(monkeypatch, *arguments)
    assert bench.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--repeats", "0"],
        ["--json", "/no/such/folder/x.json"],
        ["--sweep-seconds", "0"],
        ["--generator", "longlive"],
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_loaded(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    monkeypatch.setattr(bench, "take", lambda plan: pytest.fail("measured"))
    assert bench.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and arguments[0] in said and said.count("\n") == 1


def test_baselines_change_what_they_say_and_nothing_else(monkeypatch):
    settings = Settings()
    made = baselines_of(["released", "eager"], settings)
    assert made["released"] == settings.with_changes({"run.schedule": "released"})
    eager = made["eager"].run
    assert (eager.graphs, eager.ops, eager.attention) == ("off", "torch", "sdpa")
    assert baselines_of(["released"], made["released"]) == {}  # nothing to compare with itself
    assert asked(monkeypatch, "--against", "none").against == []
    assert asked(monkeypatch, "--against", "eager", "released").against == ["eager", "released"]


def test_a_batch_has_as_many_prompts_as_asked_for_and_all_make_the_same():
    plan = Plan(Settings().with_changes({"run.prompts": 3}), {})
    assert plan.batch(0) == list(PROMPTS[:3]) and plan.batch(1) == list(PROMPTS[3:6])
    assert len(plan.batch(7)) == 3 and len(set(PROMPTS)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--memory-gib", "64"), 0, "fits"),
        (("--memory-gib", "0.02"), 1, "does not fit"),
        (("--preset", "wan-1.3b", "--random-weights"), 0, "device 'cuda' is not here"),
        (("--preset", "wan-1.3b", "--random-weights", "--memory-gib", "24"), 1, "not fit"),
    ],
    ids=["enough", "too little", "no device", "full size"],
)
def test_a_dry_run_prints_the_plan_and_what_would_fit(monkeypatch, capsys, options, status, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked(monkeypatch, "--dry-run", *options)
    monkeypatch.setattr(bench, "take", lambda plan: pytest.fail("measured"))
    assert bench.main() == status
    text = capsys.readouterr().out
    assert "DiT, weights" in text and "KV pool" in text and said in text


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """One short run of everything with the embedded model: exit status, result, printed text, folder."""
    folder = tmp_path_factory.mktemp("bench")
    pages = []
    report = ModuleType("runtime.bench.report")
    report.write = lambda result, path: pages.append((result, path))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "runtime.bench.report", report)
        patch.setattr(sys.modules["runtime.bench"], "report", report, raising=False)
        patch.setattr(bench, "print", lambda *text, **_: said.extend(text), raising=False)
        files = "--json", str(folder / "x.json"), "--report", str(folder / "x.html")
        small = "--histories", "1", "--seconds", "1.5", "--repeats", "2", "--warmups", "0"
        asked(patch, *small, *files)
        status = bench.main()
    result = json.loads((folder / "x.json").read_text())
    return SimpleNamespace(
        status=status, result=result, text="\n".join(said), folder=folder, pages=pages
    )


def test_the_file_has_every_number_of_the_contract(outcome):
    result = outcome.result
    assert outcome.status == 0
    spread = {"median", "p50", "p95", "p99", "min", "max", "count"}
    for name in ("first_chunk_ms", "inter_chunk_ms", "settle_delay_chunks", "video_seconds"):
        assert set(result["latency"][name]) == set(result["latency_baseline"]["released"][name])
        assert set(result["latency"][name]) - {"values"} == spread
    denoise = result["stages"]["denoise"]
    assert denoise["flops"] > 1e9 and denoise["roofline_share"] > 0 and denoise["p99_ms"] > 0
    assert denoise["tflop_per_s"] < result["ceilings"]["matmul_tflop_per_s"] * 1.5
    assert set(denoise) >= {"median_ms", "p50_ms", "p95_ms", "share", "bytes", "gb_per_s"}
    assert result["stages"]["select"]["flops"] is None
    assert (
        result["stages_baseline"]["released"]["decode"]["flops"]
        > result["stages"]["decode"]["flops"]
    )
    low, high = result["speedup_spread"]["released"]
    assert low <= result["speedup"]["released"] <= high
    assert result["host_ms"] is None and result["memory"]["gpu_peak_mb"] is None
    assert result["power"] == result["power"] | {"available": False, "reason": "runs on the CPU"}
    assert result["settings"]["search"]["histories"] == 1 and result["growth"] == {}
    place = result["environment"]
    assert place["preset"] == "sprites" and place["command"].startswith(
        "python -m runtime.bench --hist"
    )
    assert place["torch"] == torch.__version__ and place["dtype"] == "float32"


def test_what_is_counted_fits_together(outcome):
    result = outcome.result
    assert result["videos"] == 2 and result["chunks"] == 4 and result["frames"] == 2 * (9 + 12)
    seconds = result["latency"]["video_seconds"]
    assert result["pixel_fps"] == pytest.approx(42 / (seconds["min"] + seconds["max"]))
    memory = result["memory"]
    assert memory["kv_bytes"] == memory["pool_blocks"] * memory["block_bytes"]
    assert memory["kv_bytes_per_history"] == memory["history_blocks"] * memory["block_bytes"]
    stages = [span["stage"] for span in result["timeline"]]
    assert stages.index("denoise") < stages.index("decode") < stages.index("select")
    ends = [span["end_ms"] for span in result["timeline"]]
    assert ends == sorted(ends) and result["timeline"][0]["start_ms"] == 0.0
    shares = [row["share"] for row in result["stages"].values()]
    assert sum(shares) == pytest.approx(1.0)


def test_the_terminal_says_units_what_is_inside_and_where(outcome):
    text = outcome.text
    for words in (
        "sprites: stream-t1, K=1 M=2, 2 videos of 1.5 s (4 chunks in all), seed 42",
        "no GPU; torch",
        "GFLOP/s float32 product",
        "inside: text, denoising, decoder, both rewards",
        "over 2 pairs",
        "not available: runs on the CPU",
    ):
        assert words in text, text
    assert all(len(row) <= 120 for row in text.splitlines())


def test_the_page_is_made_of_the_same_numbers(outcome):
    ((result, path),) = outcome.pages
    assert result["pixel_fps"] == outcome.result["pixel_fps"]
    assert path == outcome.folder / "x.html"


def test_a_profile_is_a_trace_with_the_stages_and_a_table(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "open_writer", lambda path, engine: Sink(0.0))
    trace = profile(tiny_engine(2), ["a star"], tmp_path / "new")
    with gzip.open(trace, "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"denoise", "decode", "video reward", "aten::addmm"} <= names
    assert "denoise" in (tmp_path / "new" / "operations.txt").read_text()


def test_numbers_are_as_long_as_they_are_worth():
    values = (None, 0.1234, 4.567, 78.94, 1234.5)
    assert [milliseconds(v) for v in values] == ["-", "0.123", "4.57", "78.9", "1234"]
    assert [scaled(v, "FLOP") for v in (None, 11.7e12, 950.0)] == ["-", "11.7 TFLOP", "950 FLOP"]
    assert list(wrapped("one two three", 7)) == ["one two", "three"]


def test_a_gpus_numbers_are_shown_where_there_are_some(outcome):
    """Rehearsed with invented numbers: the layout, not a measurement."""
    some = {"median": 1.0, "p50": 1.0, "p95": 2.0, "p99": 2.0, "min": 1.0, "max": 2.0, "count": 3}
    power = {"available": True, "watts": some, "sm_clock_mhz": some, "temperature_c": some}
    power |= {"throttle_reasons": ["sync boost"], "joules_per_video_second": 7.0}
    memory = outcome.result["memory"] | {"gpu_peak_mb": 5.0, "gpu_reserved_mb": 6.0}
    text = show(outcome.result | {"power": power, "memory": memory, "host_ms": some})
    assert "1 W (most 2)" in text and "7 J per second of video" in text and "sync boost" in text
    assert "GPU peak 5 MB, 6 MB reserved" in text and "host issues" in text


@pytest.mark.gpu
def test_on_a_gpu_stages_are_the_gpus_own_and_fit_into_the_wall_time(monkeypatch):
    asked(monkeypatch, *("--device", "cuda", "--seconds", "3", "--precision", "bf16"))
    settings = settings_of(parse())
    result = run_module.take(Plan(settings, {}, repeats=2))
    assert result["host_ms"]["median"] > 0 and result["memory"]["gpu_peak_mb"] > 1
    assert {span["stream"] for span in result["timeline"]} >= {"stream 0"}
    covered = sum(row["median_ms"] for name, row in result["stages"].items() if name != "text")
    # Rewards on streams of their own overlap: at most everything twice.
    assert covered <= 2 * result["latency"]["inter_chunk_ms"]["max"]
    assert result["stages"]["denoise"]["roofline_share"] <= 1.05
    assert result["ceilings"]["matmul_tflop_per_s"] > 10
