"""The summary of a GPU run: what it finds in a folder, which figure answers which target, and what it must not claim."""

import json
import sys

import pytest

from runtime.bench import summary
from runtime.bench.report_result import checked
from runtime.bench.summary import gather, outcomes
from runtime.bench.targets import TARGETS
from tests.bench_results import dist, full, least

H100 = "NVIDIA H100 80GB HBM3"
DIT, CHUNK, SPEEDUP, REALTIME, KV, HOST = TARGETS


def result(preset="wan-1.3b", candidates=(2, 2), gpu=H100, **changes):
    """A made-up result as if from ``gpu``."""
    root = full()
    root["environment"] |= {"preset": preset, "gpu": gpu}
    root["settings"]["search"] |= {"histories": candidates[0], "expansions": candidates[1]}
    return checked({**root, **changes})


def at(value):
    return {"latency": {"inter_chunk_ms": {"median": value}}}


@pytest.mark.parametrize(
    ("target", "run", "verdict"),
    [
        (CHUNK, result(**at(2200.0)), "met"),
        (CHUNK, result(**at(2200.1)), "missed"),
        (CHUNK, result("realtime", **at(1.0)), "not measured"),
        (CHUNK, result(candidates=(1, 4), **at(1.0)), "met"),
        (CHUNK, result(candidates=(2, 3), **at(1.0)), "not measured"),
        (SPEEDUP, result(speedup={"released": 8.0}), "met"),
        (SPEEDUP, result(speedup={"released": 7.99}), "missed"),
        (SPEEDUP, result(speedup={"eager": 9.0}), "not measured"),
        (REALTIME, result("realtime", pixel_fps=16.0), "met"),
        (REALTIME, result("realtime", pixel_fps=15.9), "missed"),
        (REALTIME, result("wan-1.3b", pixel_fps=99.0), "not measured"),
        (HOST, result(host_ms={"median": 2.99}), "met"),
        (HOST, result(host_ms={"median": 3.0}), "missed"),
        (HOST, result(host_ms=None), "not measured"),
    ],
)
def test_a_target_is_judged_by_the_run_it_names(target, run, verdict):
    assert target.verdict([checked(least()), run])[1] == verdict


def test_a_figure_of_another_gpu_is_shown_and_not_judged():
    value, verdict = CHUNK.verdict([result(gpu="NVIDIA A100", **at(100.0))])
    assert value == pytest.approx(0.1) and verdict == "not judged: measured on NVIDIA A100"


def test_a_gpu_that_stood_by_does_not_count_as_measured_on():
    root = full()
    root["environment"] |= {"preset": "wan-1.3b", "gpu": H100, "device": "cpu"}
    assert CHUNK.verdict([checked(root)])[1] == "not judged: measured on a made-up CPU"


def test_the_dit_is_denoising_and_the_clean_pass_of_one_candidate():
    def single(**stages):
        times = {name.replace("_", " "): {"median_ms": ms} for name, ms in stages.items()}
        run = result(stages=times)
        run.root["settings"]["search"]["policy"] = "single"
        return run

    assert DIT.verdict([single(denoise=200.0, memory=56.0)]) == (256.0, "met")
    assert DIT.verdict([single(denoise=200.0, memory=90.0, clean=56.5)]) == (256.5, "missed")
    assert DIT.verdict([single(denoise=200.0)]) == (None, "not measured")
    assert DIT.verdict([result()]) == (None, "not measured")


def test_eight_bit_products_do_not_answer_for_full_precision():
    run = result(**at(1.0))
    run.root["settings"]["run"]["linears"] = "fp8-row"
    assert CHUNK.verdict([run])[1] == "not measured"
    fast = result("realtime", pixel_fps=20.0)
    fast.root["settings"]["run"]["linears"] = "fp8-row"  # a preset may name them
    assert REALTIME.verdict([fast])[1] == "met"


def test_kv_of_a_candidate_comes_from_two_runs_that_differ_in_m_alone():
    def run(candidates, blocks, preset="sprites"):
        memory = {"kv_bytes": 100.0 * blocks, "block_bytes": 100.0}
        return result(preset, candidates, gpu=None, memory=memory)

    assert KV.verdict([run((2, 2), 17), run((2, 4), 17)]) == (0.0, "met")
    assert KV.verdict([run((2, 4), 21), run((2, 2), 17)]) == (1.0, "met")
    assert KV.verdict([run((2, 2), 17), run((2, 4), 23)]) == (1.5, "missed")
    assert KV.verdict([run((2, 2), 17), run((4, 4), 33)]) == (None, "not measured")
    assert KV.verdict([run((2, 2), 17), run((2, 4), 17, "other")]) == (None, "not measured")


LOG = """
tests/x.py ..F                                                    [100%]
FAILED tests/x.py::test_a - 3 passed in a sentence
{}
"""


@pytest.mark.parametrize(
    ("last", "counts"),
    [
        ("12 passed in 3.10s", {"passed": 12}),
        (
            "===== 1 failed, 11 passed, 2 skipped in 61.00s (0:01:01) =====",
            {"failed": 1, "passed": 11, "skipped": 2},
        ),
        ("2 errors in 0.50s", {"error": 2}),
        ("1 error, 3 passed, 700 deselected in 9.9s", {"error": 1, "passed": 3, "deselected": 700}),
        ("Segmentation fault (core dumped)", {}),
    ],
)
def test_outcomes_are_read_from_the_last_line_of_pytest(tmp_path, last, counts):
    (tmp_path / "tests.log").write_text(LOG.format(last))
    assert outcomes(tmp_path / "tests.log") == counts


def row(impl, ms, **changes):
    base = {"op": "adaln", "shape": "B=4", "dtype": "bfloat16", "threads": 0, "speedup": 2.0}
    return {
        **base,
        "impl": impl,
        "median_ms": ms,
        "share_of_ceiling": 0.8,
        "max_error": 1e-3,
        "device": H100,
    } | changes


def folder(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


def test_everything_in_a_folder_is_in_the_summary(tmp_path):
    rows = [row("torch", 0.9, speedup=1.0), row("triton", 0.3), row("triton", 0.1, shape="B=1")]
    place = folder(
        tmp_path,
        line__json=full(),
        kernel__json=rows,
        tests__log="12 passed in 3.10s",
        steps__tsv="tests\tok\t3\nvae\tskipped: 2 s left, wants 15\t0\n",
        odd__json={"x": 1},
        bad__json="{",
    )
    text = summary.summary(gather(place))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| adaln | B=4 | bfloat16 | - | triton | 0.300 | 80 % | 2.00 | 1.0e-03 |" in lines
    assert "| adaln | B=1 | bfloat16 | - | triton | 0.100 | 80 % | 2.00 | 1.0e-03 |" in lines
    assert "| tests.log | 12 | 0 | 0 | 0 |" in lines
    assert "| vae | skipped: 2 s left, wants 15 | 0 |" in lines
    assert any(
        line.startswith("| line.json (random weights, wan-1.3b) | 4 | bfloat16 | 7.78 |")
        for line in lines
    )
    assert any("odd.json: neither a bench result nor rows" in line for line in lines)
    assert any("bad.json: want JSON" in line for line in lines)
    assert sum("not measured" in line for line in lines) == 3  # DiT, realtime, KV


def test_an_empty_part_is_not_measured_rather_than_left_out(tmp_path):
    text = summary.summary(gather(folder(tmp_path, tests__log="1 passed in 1.0s")))
    assert "## The line\n\nnot measured" in text
    assert text.count("| not measured |") == len(TARGETS)
    assert " met " not in text


def test_texts_of_strangers_break_no_table(tmp_path):
    rows = [row("a|b\n# x <script>\x1b[31m", 1.0)]
    text = summary.summary(gather(folder(tmp_path, k__json=rows)))
    assert "\x1b" not in text and "<script" not in text and "a\\|b # x" in text


def test_columns_line_up():
    drawn = summary.table(("a", "bb"), [("1", "2"), ("333", "4")])
    assert len({len(line) for line in drawn.splitlines()}) == 1


@pytest.mark.parametrize("files", [{}, {"notes__txt": "hello"}, {"x__json": [1, 2]}])
def test_a_folder_without_results_is_refused(tmp_path, files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["summary", str(folder(tmp_path, **files))])
    assert summary.main() == 2
    assert "no results, no kernel rows and no test logs" in capsys.readouterr().err


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    folder(tmp_path, line__json={**full(), "host_ms": dist(1.0)})
    out = tmp_path / "summary.md"
    monkeypatch.setattr(sys, "argv", ["summary", str(tmp_path), "-o", str(out)])
    assert summary.main() == 0
    assert out.read_text() == capsys.readouterr().out
