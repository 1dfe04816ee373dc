"""What a budget may choose from, and the measured tables that put it in order."""

import json
import re
from pathlib import Path

import pytest

from runtime.budget import KEPT_BY_STRIDE, WORTH, rungs, worth

ROOT = Path(__file__).resolve().parents[2]
MOST = (4, 4, 1)


def test_worth_is_what_was_measured():
    rows = (ROOT / "bench/results/quality_cpu.md").read_text(encoding="utf-8")
    table = rows.split("### Test-time scaling")[1].split("Difference")[0]
    totals = {}
    for name, candidates in {
        "Plain streaming": 1,
        "Stream-T1, 1x2": 2,
        "Stream-T1, 2x2": 4,
        "Stream-T1, 2x4": 8,
        "Stream-T1, 4x4": 16,
    }.items():
        (line,) = re.findall(rf"^\| {name} \|(.*)$", table, re.M)
        cells = [float(cell.strip(" +-=%")) for cell in line.split("|")[5:8]]
        totals[candidates] = sum(cells)
    for candidates, gain in WORTH:
        assert gain == pytest.approx(totals[candidates] - totals[1], abs=0.0015)
    judged = json.loads((ROOT / "bench/results/agreement_cpu.json").read_text())["judges"]
    (stride4,) = [judge for judge in judged if judge["name"] == "reward.stride=4"]
    assert dict(KEPT_BY_STRIDE)[4] == pytest.approx(1 - stride4["lost"]["mean"], abs=0.001)


def test_more_candidates_are_worth_more_than_a_fine_stride():
    order = rungs(MOST)
    assert order[0] == (1, 1, 4), "the cheapest first"
    assert order[-1] == MOST
    for candidates in (2, 3, 4, 6, 8, 9, 12):
        coarse = [r for r in order if r[0] * r[1] == candidates and r[1] > 1 and r[2] == 4]
        fine = [r for r in order if r[0] * r[1] < candidates and r[2] == 1]
        assert min(map(order.index, coarse)) > max(map(order.index, fine))
    for low, high in [((2, 2, 2), (2, 2, 1)), ((1, 4, 1), (2, 2, 1)), ((4, 2, 1), (2, 4, 1))]:
        assert order.index(low) < order.index(high)


def test_histories_without_a_choice_are_no_rung():
    assert {k for k, m, _ in rungs((4, 4, 1)) if m == 1} == {1}
    assert rungs((4, 1, 1))[-1] == (4, 1, 1), "but for a request that asks for them"
    assert rungs((1, 1, 8)) == ((1, 1, 8),), "no stride is known that is coarser"
    assert {s for *_, s in rungs((2, 2, 3))} == {3, 4}


def test_a_great_request_has_few_rungs():
    order = rungs((32, 32, 1))
    assert len(order) < 600 and order[-1] == (32, 32, 1)
    assert list(order) == sorted(order, key=worth)
