"""The page that shows a bench result: whole, safe with what anybody may hand in, and honest about what is missing."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.bench import report, report_charts, report_curves, report_svg
from runtime.bench.report_result import MAX_BYTES, MAX_ROWS, checked, read
from runtime.telemetry import STAGES
from tests.bench_results import dist, full, least
from tests.html_reader import Reader

ROOT = Path(__file__).resolve().parents[2]


def page(root, *others) -> str:
    return report.page(
        checked(root), [checked(other, f"other {i}") for i, other in enumerate(others)]
    )


def test_a_full_result_shows_every_section_and_nothing_from_elsewhere():
    text = page(full(), least())
    reader = Reader(text)
    for heading in (
        "One chunk on the clock",
        "Where a chunk's time goes",
        "Stages",
        "Against the machine",
        "How evenly chunks come",
        "Growth",
        "Beside other results",
        "Memory and power",
        "Environment",
    ):
        assert heading in reader.text, heading
    assert "script" not in reader.tags and "img" not in reader.tags and "link" not in reader.tags
    assert not re.search(r"https?:|url\(|@import|src=", text)
    assert len(text) < 200_000


def test_the_headline_says_speed_spread_and_random_weights():
    words = Reader(page(full())).text
    assert "7.78 FPS pixel frames over wall time" in words
    assert "8.48 × the released schedule (8.31 to 8.60)" in words
    assert "Speed does not depend on their values" in words
    trained = full()
    trained["environment"]["weights"] = trained["settings"]["run"]["weights"] = ""
    assert "Speed does not depend" not in Reader(page(trained)).text


def test_what_is_missing_is_said_and_never_drawn():
    words = Reader(page(least())).text
    assert "power, clocks and temperature: not available (no NVIDIA driver)" in words
    assert "growth with candidates, context, length, prompts: not swept" in words
    assert "GPU memory (this run used none)" in words
    assert "ceilings of the machine, and with them the roofline" in words
    for absent in ("Against the machine", "Growth", "One chunk on the clock", "How evenly"):
        assert absent not in words
    assert "None" not in words and "nan" not in words


HOSTILE = "</text></svg><script>alert(1)</script>\"'&"


def spoiled(value, by):
    """``value`` with every text, and every key below the first two levels, replaced by ``by``."""
    if isinstance(value, dict):
        return {key: spoiled(inner, by) for key, inner in value.items()}
    if isinstance(value, list):
        return [spoiled(inner, by) for inner in value]
    return by if isinstance(value, str) else value


def test_hostile_texts_and_names_stay_text():
    root = spoiled(full(), HOSTILE)
    root["stages"][HOSTILE] = root["stages"]["denoise"]
    root["speedup"][HOSTILE] = 2.0
    root["stages_baseline"][HOSTILE] = root["stages"]
    root["latency_baseline"][HOSTILE] = root["latency"]
    root["environment"][HOSTILE] = HOSTILE
    root["environment"]["implementations"][HOSTILE] = HOSTILE
    text = page(root, root)
    reader = Reader(text)
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "<script" not in text and "alert(1)" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stages": []}, r"stages: want a table, got list"),
        ({"stages": {"a": {"median_ms": "1"}}}, r"stages.a.median_ms: want a number, got str '1'"),
        ({"pixel_fps": True}, r"pixel_fps: want a number, got bool"),
        ({"timeline": {}}, r"timeline: want a list, got dict"),
        ({"timeline": [1]}, r"timeline: want a list of tables, got int"),
        ({"growth": {"length": 3}}, r"growth.length: want a list, got int"),
        ({"latency": {"first_chunk_ms": 3}}, r"first_chunk_ms: want a table, got int"),
        ({"timeline": [{}] * (MAX_ROWS + 1)}, rf"want at most {MAX_ROWS} entries"),
        ({"stages": {str(i): {} for i in range(65)}}, r"want at most 64 entries, got 65"),
    ],
)
def test_a_wrong_type_names_its_place(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        page({**full(), **change})


@pytest.mark.parametrize("root", [[], {}, {"pixel_fps": 1}, None, "text", 3])
def test_what_is_no_bench_result_is_refused_in_a_sentence(root):
    with pytest.raises(ValueError, match="want the JSON of `python -m runtime.bench --json`"):
        checked(root, "x.json")


def test_files_that_are_too_large_or_no_json_are_refused(tmp_path):
    (tmp_path / "big.json").write_bytes(b" " * (MAX_BYTES + 1))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="want at most 16 MiB"):
        read(tmp_path / "big.json")
    for name in ("deep.json", "bytes.json"):
        with pytest.raises(ValueError, match=f"{name}: want JSON"):
            read(tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, 0, -5, 1e-300, 1e300])
def test_numbers_out_of_bounds_never_break_a_picture(value):
    root = full()

    def struck(inner):
        if isinstance(inner, dict):
            return {key: struck(v) for key, v in inner.items()}
        if isinstance(inner, list):
            return [struck(v) for v in inner]
        return value if isinstance(inner, (int, float)) and not isinstance(inner, bool) else inner

    text = page({**struck(root), "speedup": struck(root["speedup"])})
    Reader(text)
    Reader(page({**full(), "speedup_spread": {"released": [value, value]}}))
    svgs = "".join(re.findall(r"<svg.*?</svg>", text))
    coordinates = " ".join(re.findall(r' (?:x|y|x1|y1|x2|y2|cx|cy|width|height|d)="([^"]*)"', svgs))
    assert "nan" not in coordinates and "inf" not in coordinates


def test_stage_bars_are_wall_time_cut_by_share():
    bars = report_charts.bars_of(checked(full()))
    assert [bar.name for bar in bars] == ["this run", "released", "eager"]
    this, released, _ = bars
    assert this.total_ms == pytest.approx(1e3 * 243 / 7.78 / 21)
    assert released.total_ms / this.total_ms == pytest.approx(7.78 / 0.917)
    shares = full()["stages"]
    for stage, spent in this.stages:
        assert spent / this.total_ms == pytest.approx(shares[stage]["share"])


def test_bars_fall_back_to_medians_where_chunks_are_not_counted():
    (bar,) = report_charts.bars_of(checked(least()))
    assert bar.total_ms == 100.0


def test_a_stage_on_the_roof_is_drawn_on_the_roof():
    root = full()
    on_roof = {"flops": 790e12, "bytes": 1e9, "tflop_per_s": 790.0, "roofline_share": 1.0}
    root["stages"] = {"denoise": {"median_ms": 1000.0, "share": 1.0, **on_roof}}
    drawn = report_charts.roofline(checked(root))
    (dot,) = re.findall(r'<circle[^>]*cy="([\d.]+)" r="7"', drawn)
    (roof,) = re.findall(r'<path d="([^"]*)" class="roof"', drawn)
    assert roof.split()[-1] == dot  # the roof ends level with the dot


def test_eight_bit_products_have_a_roof_of_their_own():
    root = full()
    assert "8-bit" not in report_charts.roofline(checked(root))
    root["ceilings"]["narrow_tflop_per_s"] = 1500.0
    drawn = report_charts.roofline(checked(root))
    assert "8-bit matmul 1,500 TFLOP/s" in drawn
    heights = {
        kind: float(re.findall(rf'd="[^"]* ([\d.]+)" class="{kind}"', drawn)[0])
        for kind in ("roof", "roof thin")
    }
    assert heights["roof thin"] < heights["roof"]  # higher on the page


def test_small_stages_are_left_off_the_roofline():
    stages = [point.stage for point in report_charts.points_of(checked(full()))]
    assert stages == ["denoise", "decode", "image reward", "video reward", "memory"]


def test_spans_begin_at_nought_and_lanes_are_streams():
    root = full()
    for span in root["timeline"]:
        span["start_ms"] += 777.0
        span["end_ms"] += 777.0
    spans = report_charts.spans_of(checked(root))
    assert spans[0].start == 0.0 and max(span.end for span in spans) == pytest.approx(1541.0)
    assert {span.stream for span in spans} == {"main", "image reward", "video reward"}


def test_histogram_counts_every_value():
    root = checked({**full(), "latency": {"inter_chunk_ms": dist(100, keep=True)}})
    drawn = report_curves.histogram(root.dist("latency", "inter_chunk_ms"))
    counts = [int(n) for n in re.findall(r"<title>(\d+) from", drawn)]
    assert sum(counts) == 60
    assert "p99" in drawn and "60 chunks" in drawn


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.06123, "0.0612"),
        (2.4, "2.40"),
        (97.34, "97.3"),
        (1240.4, "1,240"),
        (0, "0"),
        (-3.0, "-3.00"),
    ],
)
def test_figures_keep_three_digits(value, words):
    assert report_svg.figure(value) == words


def test_labels_move_apart_and_keep_their_order():
    placed = report_svg.apart([10, 11, 50, 12], 8)
    assert placed == [10, 18, 50, 26]


def test_every_stage_has_a_colour():
    style = report.STYLE.read_text()
    styles = {report_charts.stage_style(stage) for stage in STAGES} | {"o0", "o1", "o2"}
    assert len(styles) == len(STAGES) + 3
    for name in styles:
        assert f".{name} " in style and style.count(f"--{name}:") == 3, name


def test_write_takes_the_dictionary_of_a_benchmark(tmp_path):
    report.write(full(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page(full())


def test_the_command_needs_no_plotting_library(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(full()))
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['av'] = None; "
        "from runtime.bench.report import main; sys.exit(main())"
    )
    files = [str(tmp_path / "r.json"), str(tmp_path / "r.json"), "-o", str(tmp_path / "out.html")]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.html").stat().st_size > 10_000


@pytest.mark.parametrize("content", ["{}", "not json", None])
def test_the_command_refuses_in_one_line(tmp_path, content, capsys, monkeypatch):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(sys, "argv", ["report", str(path), "-o", str(tmp_path / "out.html")])
    assert report.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out.html").exists()
