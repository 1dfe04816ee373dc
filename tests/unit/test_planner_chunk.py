"""The planner's time of one chunk over ranks, from costs that are known."""

import json
from pathlib import Path

import pytest

from runtime.bench.planner import measure, show
from runtime.bench.planner.__main__ import main, pair
from runtime.bench.planner.chunk import Layout, Link, chunk_time, expected_moves
from runtime.bench.planner.machine import (
    COMPUTED,
    Line,
    Machine,
    fixed_share,
    from_result,
    h100,
)
from runtime.costs import FIXED, Work

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "bench/results/sprites_cpu.json"
FREE = Link(1e9, 0.0)


def machine(**more) -> Machine:
    stages = {
        "denoise": Line(10.0, 100.0),
        "image reward": Line(0.0, 5.0, "pictures"),
        "video reward": Line(1.0, 20.0),
        "memory": Line(0.0, 30.0, "kept"),
    }
    sizes = {
        "block_bytes": 1e9,
        "history_blocks": 8,
        "state_bytes": 2e9,
        "clip_bytes": 3e7,
        "frames": 12,
    }
    return Machine("made up", "measured: nothing", **{"stages": stages, **sizes, **more})


def test_one_rank_does_everything():
    time = chunk_time(machine(), Layout(1, 2, 3), Link(1.0, 9.0))
    assert time.stages == {
        "denoise": 610.0,
        "image reward": 6 * 12 * 5.0,
        "video reward": 121.0,
        "memory": 60.0,
    }
    assert (time.gather, time.moves, time.send_clips) == (0, 0, 0), "nobody to talk to"
    assert time.total == 1151.0 and time.fps == pytest.approx(12 / 1.151)


@pytest.mark.parametrize(("ranks", "share", "idle"), [(2, 2, 0), (3, 1, 0), (4, 1, 1), (64, 1, 61)])
def test_ranks_share_the_histories_and_the_rest_is_idle(ranks, share, idle):
    layout = Layout(ranks, 3, 2)
    assert (layout.share, layout.idle) == (share, idle)
    alone = chunk_time(machine(), Layout(1, share, 2), FREE)
    assert chunk_time(machine(), layout, FREE).stages == alone.stages


def test_the_stride_spares_pictures_alone():
    fine, coarse = (chunk_time(machine(), Layout(1, 2, 2, stride), FREE) for stride in (1, 5))
    assert fine.stages["image reward"] == 4 * 12 * 5 and coarse.stages["image reward"] == 4 * 3 * 5
    assert {**fine.stages, "image reward": 0} == {**coarse.stages, "image reward": 0}


def test_ranks_that_only_judge_share_the_candidates_of_all_histories():
    time = chunk_time(machine(), Layout(8, 2, 4, reward_ranks=6), Link(30.0, 1.0))
    assert time.layout.makers == 2 and time.layout.idle == 0
    assert time.stages["denoise"] == 410.0, "four candidates of one history"
    assert time.stages["image reward"] == 2 * 12 * 5 and time.stages["video reward"] == 41.0
    assert time.send_clips == pytest.approx(4.0), "a maker sends four clips of 30 MB"
    assert time.gather == 3.0, "eight talk: three doublings"


def test_what_travels_is_a_whole_history_over_the_stated_link():
    link = Link(10.0, 0.5)
    time = chunk_time(machine(), Layout(2, 2, 2), link)
    assert time.gather == 0.5
    assert link.ms(10e9) == pytest.approx(1000)
    assert time.moves == pytest.approx(1000 * expected_moves(2, 2, 2))


def test_expected_moves_are_those_of_survivors_at_random():
    # Two histories on two ranks: both survivors come from one of them in 2 of 6 pairs.
    assert expected_moves(2, 2, 2) == pytest.approx(1 / 3, abs=0.04)
    assert expected_moves(2, 1, 2) == 0, "every candidate survives where it is"
    assert expected_moves(4, 4, 1) == 0
    assert expected_moves(4, 4, 4) > expected_moves(4, 4, 2) > 0


def test_a_batch_of_videos_is_one_ranks():
    one, three = (chunk_time(machine(), Layout(1, 2, 2), FREE, videos) for videos in (1, 3))
    assert three.stages["denoise"] == 1210.0 and one.stages["denoise"] == 410.0
    assert three.stages["memory"] == 3 * one.stages["memory"]
    with pytest.raises(ValueError, match="several ranks make one video at a time"):
        chunk_time(machine(), Layout(2, 2, 2), FREE, 2)


@pytest.mark.parametrize(
    "layout", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1, 0), (2, 1, 1, 1, 2), (2, 1, 1, 1, -1)]
)
def test_a_layout_that_makes_no_sense_is_refused(layout):
    with pytest.raises(ValueError, match="want"):
        Layout(*layout)


def test_the_h100_is_computed_and_says_so():
    computed = h100()
    assert not computed.measured and computed.source.startswith(COMPUTED)
    # 4 x 5 passes less the clean passes of two that do not survive, decoding, and nine pictures each.
    work = Work(rows=4, kept=2, pictures=4 * 9)
    assert computed.chunk_ms(work) == pytest.approx(1551, rel=0.02)
    assert COMPUTED in show.head(computed, FREE)


def test_a_benchmarks_result_gives_its_own_chunk_back():
    measured = from_result(RESULT)
    raw = json.loads(RESULT.read_text())
    stages = {n: s["median_ms"] for n, s in raw["stages"].items() if n != "text"}
    time = chunk_time(measured, Layout(1, 2, 2), FREE)
    assert measured.measured and time.stages == pytest.approx(stages)
    assert 0 < chunk_time(measured, Layout(2, 2, 2), FREE).total < time.total
    assert measured.stages["write"].each == 0, "one video is written, whatever was tried for it"


def test_the_share_that_does_not_grow_comes_from_the_sweep():
    points = [{"x": x, "chunk_ms": {"median": 60 + 10 * x}} for x in (1, 2, 4, 8)]
    assert fixed_share(points, 4) == pytest.approx(0.6)
    assert fixed_share([], 4) == FIXED
    falling = [{"x": x, "chunk_ms": {"median": 100 - 10 * x}} for x in (1, 2)]
    assert 0 <= fixed_share(falling, 4) <= 0.95


def test_what_is_measured_is_fitted_and_compared_with_what_was_held_out():
    def made(k: int, m: int) -> measure.Sample:
        rows = k * m
        stages = {"denoise": 20.0 + 30 * rows, "memory": 5.0 * k, "image reward": 0.5 * rows * 12}
        return measure.Sample(k, m, 12, sum(stages.values()), 9e9, stages, 12)

    samples = [made(k, m) for k, m in measure.LEARNT]
    sizes = {"block_bytes": 1.0, "history_blocks": 8, "state_bytes": 0.0, "clip_bytes": 1.0}
    found = measure.fitted(samples, "x", "measured: here", sizes)
    for k, m in measure.HELD_OUT:
        row = measure._compared(found, made(k, m))
        assert not row["seen"] and abs(row["error"]) < 0.05
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)


def test_a_turns_stages_are_the_processors_share_of_what_the_wall_clock_said():
    turn = measure.Turn(
        wall_ms=200.0, cpu_ms=50.0, stage_ms={"denoise": 120, "decode": 60}, frames=12
    )
    assert turn.stages == {"denoise": 30.0, "decode": 15.0, "between": 5.0}


@pytest.mark.parametrize("text", ["", "x", "2x", "0x2", "2x0", "-1x2", "2x2x2", "twoxtwo"])
def test_candidates_are_k_x_m(text):
    with pytest.raises(Exception, match="want K x M as 4x2"):
        pair(text)
    assert pair("4x2") == (4, 2)


def test_the_door_prints_a_table_for_any_ranks(capsys):
    assert main(["--ranks", "1", "5", "64", "--candidates", "4x4"]) == 0
    text = capsys.readouterr().out
    assert "computed, not measured" in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line[:2] == "| "] == [
        "ranks",
        "1",
        "5",
        "64",
    ]
    assert "*60" in text, "of 64 ranks four have a history"
    assert main(["--parts", "--reward-ranks", "4", "--ranks", "8", "--candidates", "4x4"]) == 0
    assert "| 8 (4) 4 x 4 |" in capsys.readouterr().out


def test_the_door_sizes_a_fleet_and_simulates_a_given_one(capsys):
    often = ["--machine", str(RESULT), "--rate", "3", "--window", "150", "--batch", "2"]
    assert main([*often, "--target-p95", "6"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert 3 <= int(row[1]) <= 9 and int(row[3]) == 2 and row[-2].strip() == "0.00 %"
    assert main([*often, "--replicas", "1", "--room", "2"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split("|")
    assert row[1].strip() == "1" and float(row[-2].strip(" %")) > 30
    assert main([*often, "--target-p95", "0.5"]) == 0
    assert "no number of replicas keeps this promise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rate", "1001"], "--rate: want a rate above 0 and at most 1000"),
        (["--rate", "0"], "--rate: want a rate above 0"),
        (["--machine", "nowhere"], "--machine: want h100 or a file, got 'nowhere'"),
        (["--machine", str(ROOT / "pyproject.toml")], "want a result of python -m runtime.bench"),
        (["--batch", "0"], "--batch, --gpus, --replicas, --rounds: want at least 1"),
        (["--ranks", "0"], "want at least 1 each"),
        (["--gpus", "2", "--rate", "1", "--batch", "2"], "want a batch of 1 or one rank"),
        (["--link-gb-per-s", "0"], "--link-gb-per-s: want more than 0"),
        (["--candidates", "9"], "want K x M as 4x2"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_the_door_says_what_it_wants(capsys, arguments, sentence):
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err
