"""Recorded cases replay through the engine to the last decision, and a replay of anything else fails."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import runtime.kernels.ema_merge as ema_merge
import runtime.memory as memory
import runtime.search as search
from runtime.bench.golden import __main__ as door
from runtime.bench.golden import forward_case, search_case
from runtime.bench.golden.compare import Report
from runtime.bench.golden.parts import Case

FOLDER = Path(__file__).resolve().parent.parent / "golden"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
FULL = "b_full_k2m2"  # takes every route
LIMITS = {torch.float32: 2e-5, torch.float64: 1e-9}


@pytest.fixture(scope="module")
def full() -> Case:
    return Case.read(FOLDER / FULL)


def replayed(case: Case) -> Report:
    return (forward_case if case.kind == "forward" else search_case).replay(case, torch.float64)


def test_all_recorded_cases_are_here():
    assert NAMES == [
        "a_plain_k1m1",
        "b_full_k2m2",
        "d_beta0_k2m2",
        "f_forward_units",
        "g_longlive_plain",
    ]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_case_replays(name, dtype):
    report = door.replay(FOLDER / name, dtype)
    assert report.passed, report.line()
    assert not report.differences
    assert report.compared > 10
    assert max(report.tensor_error, report.score_error) <= LIMITS[dtype]
    assert report.kv_error <= 2e-5  # recorded as float32


@pytest.mark.parametrize(
    "change",
    [
        {"ema_alpha": 0.998},
        {"short_threshold": 0.3},
        {"long_threshold": 0.6},
        {"noise_fusion_sigma": -0.0999},
        {"short_score_fusion_threshold": 0.41},
        {"sliding_window_size": 9},
        {"max_sink_size": 6},
        {"local_attn_size": 15},
        {"timestep_shift": 5.01},
        {"denoising_step_list": [1000, 750, 500, 251]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_hyper_parameter_is_caught(full, change):
    assert not replayed(replace(full, config={**full.config, **change})).passed


def test_two_swapped_seeds_are_caught(full):
    first, second = sorted(key for key in full.inputs if key.endswith("/init"))[:2]
    swapped = {**full.inputs, first: full.inputs[second], second: full.inputs[first]}
    assert not replayed(replace(full, inputs=swapped)).passed


def test_a_seed_that_was_never_drawn_is_named(full):
    with pytest.raises(ValueError, match=r"noise table: no draws for seed \d+"):
        replayed(replace(full, config={**full.config, "seed": 43}))


@pytest.mark.parametrize("name", [FULL, "f_forward_units"])
def test_a_merge_that_does_not_turn_the_keys_is_caught(name, monkeypatch):
    monkeypatch.setattr(ema_merge, "temporal_turn", lambda shift_frames, head_dim: ((), ()))
    report = replayed(Case.read(FOLDER / name))
    assert not report.passed
    assert max(report.kv_error, report.tensor_error) > 1e-5


@pytest.mark.parametrize("name", [FULL, "f_forward_units"])
def test_a_merge_that_never_happens_is_caught(name, monkeypatch):
    monkeypatch.setattr(memory.KVPool, "merge_", lambda self, target, source, *rest: None)
    assert not replayed(Case.read(FOLDER / name)).passed


def test_expansions_in_another_order_are_caught(full, monkeypatch):
    monkeypatch.setattr(search, "_expand", _reversed_expansions(search._expand))
    assert not replayed(full).passed


def _reversed_expansions(expand):
    """The same candidates of each history in another order: only ties and names can tell."""

    def turned(survivors, index, settings, expansions, released):
        rows = expand(survivors, index, settings, expansions, released)
        return tuple(sorted(rows, key=lambda branch: (branch.rank, -branch.expansion)))

    return turned


@pytest.mark.parametrize("name", ["block03/cand0/x0", "final/beam0/latents"])
def test_a_recording_off_by_more_than_the_limit_is_caught(full, name):
    nudged = full.golden[name].clone()
    nudged.flatten()[7] += 2e-9
    assert not replayed(replace(full, golden={**full.golden, name: nudged})).passed


def test_a_nan_is_never_close():
    report = Report("nan", torch.float32)
    report.tensor("x", torch.full((2,), float("nan")), torch.zeros(2))
    assert not report.passed
    report = Report("nan", torch.float32)
    report.score("x", float("nan"), 0.0)
    assert not report.passed


def test_a_replay_that_compared_nothing_has_not_passed():
    assert not Report("empty", torch.float32).passed


def test_a_folder_that_is_no_case_names_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a recorded case, golden.json, inputs.safetensors"):
        Case.read(tmp_path)


def run_door(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["golden", *map(str, arguments)])
    return door.main()


def test_the_command_writes_what_it_found(monkeypatch, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert run_door(monkeypatch, FOLDER / "g_longlive_plain", "--json", out) == 0
    (row,) = json.loads(out.read_text())
    assert row["passed"] and row["decisions"] == "identical" and row["case"] == "g_longlive_plain"
    assert "g_longlive_plain max_tensor_err=" in capsys.readouterr().out


def test_the_command_fails_when_a_case_differs(monkeypatch, capsys):
    monkeypatch.setattr(ema_merge, "temporal_turn", lambda shift_frames, head_dim: ((), ()))
    assert run_door(monkeypatch, FOLDER / FULL) == 1


def test_the_command_says_what_is_no_case(monkeypatch, tmp_path, capsys):
    assert run_door(monkeypatch, tmp_path) == 2
    assert "error:" in capsys.readouterr().err
