"""Launch configurations are data: the nearest row wins, the GPU's own rows first, nothing is guessed."""

import importlib
import json
import math

import pytest
import torch

from runtime.bench import tune
from runtime.bench.clock import Times, time_in_turns
from runtime.kernels import triton_lang, tuning
from runtime.kernels.tuning import nearest, shipped


def put(folder, name, *rows):
    table = [{"shape": shape, "config": config} for shape, config in rows]
    (folder / f"{name}.json").write_text(json.dumps({"rows": table}))


def test_the_nearest_row_by_ratio_wins(tmp_path):
    put(tmp_path, "k.default", ({"n": 100}, {"B": 1}), ({"n": 1000}, {"B": 2}))
    assert nearest("k", {"n": 310}, folder=tmp_path) == {"B": 1}  # 3.1 times one, 1/3.2 the other
    assert nearest("k", {"n": 320}, folder=tmp_path) == {"B": 2}
    assert nearest("k", {"n": 0}, folder=tmp_path) == {"B": 1}


def test_words_must_be_equal_and_what_a_row_leaves_out_does_not_count(tmp_path):
    put(tmp_path, "k.default", ({"n": 8, "dtype": "fp32"}, {"B": 1}), ({"dtype": "bf16"}, {"B": 2}))
    assert nearest("k", {"n": 8, "dtype": "bf16"}, folder=tmp_path) == {"B": 2}
    with pytest.raises(
        ValueError, match=r"k: no configuration for .*; kernels/tuned/k.default.json"
    ):
        nearest("k", {"n": 8, "dtype": "fp64"}, folder=tmp_path)


def test_a_gpu_of_its_own_file_takes_it_and_any_other_the_default(tmp_path):
    put(tmp_path, "k.default", ({"n": 8}, {"B": 1}))
    put(tmp_path, "k.H100", ({"n": 800}, {"B": 2}))
    assert nearest("k", {"n": 8}, "H100", tmp_path) == {"B": 2}
    assert nearest("k", {"n": 8}, "A100", tmp_path) == {"B": 1}
    assert shipped("k", tmp_path) == [{"B": 2}, {"B": 1}]


def test_a_caller_cannot_change_the_table(tmp_path):
    put(tmp_path, "k.default", ({"n": 8}, {"B": 1}))
    nearest("k", {"n": 8}, folder=tmp_path)["B"] = 7
    assert nearest("k", {"n": 8}, folder=tmp_path) == {"B": 1}


def test_every_tuned_file_is_whole():
    for path in tuning.FOLDER.glob("*.json"):
        kernel, gpu, _ = path.name.split(".")
        assert kernel in tune.KERNELS, f"{path.name}: no such kernel"
        for row in json.loads(path.read_text())["rows"]:
            assert set(row) >= {"shape", "config"}
            assert all(isinstance(value, int) for value in row["config"].values()), path.name
    assert all((tuning.FOLDER / f"{kernel}.default.json").is_file() for kernel in tune.KERNELS)


class Fake:
    """A kernel whose time and error are written in its configuration."""

    def __init__(self, *configs):
        self.tunable = tune.Tunable(
            {"n": 8}, list(configs), lambda config: config, lambda got: got["error"], 1
        )

    def clock(self, runs, device):
        return {place: Times(self.tunable.space[place]["ms"], 0, 0) for place in runs}


def test_the_fastest_exact_configuration_is_kept(tmp_path):
    fake = Fake({"ms": 3, "error": 0}, {"ms": 1, "error": 2}, {"ms": 2, "error": 1})
    pytest.importorskip("triton")
    rows = tune.tune([fake.tunable], torch.device("cpu"), fake.clock)
    assert rows[0]["config"] == {"ms": 2, "error": 1} and rows[0]["median_ms"] == 2
    tune.write(tmp_path / "k.GPU.json", "k", "GPU", rows)
    assert nearest("k", {"n": 9}, "GPU", tmp_path) == {"ms": 2, "error": 1}


def test_a_shape_without_a_sound_configuration_is_an_error():
    pytest.importorskip("triton")
    fake = Fake({"ms": 1, "error": math.nan}, {"ms": 1, "error": 2})
    with pytest.raises(RuntimeError, match=r"no configuration works for \{'n': 8\}"):
        tune.tune([fake.tunable], torch.device("cpu"), fake.clock)


def test_tuning_without_a_gpu_is_told(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune", "ema_merge"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main() == 2
    assert "measures on a GPU" in capsys.readouterr().err


def test_the_clock_runs_every_run_and_orders_its_times():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = time_in_turns(runs, samples=5, budget_ms=50)
    assert set(times) == set(calls) == {"a", "b"}
    assert all(t.p20_ms <= t.median_ms <= t.p80_ms for t in times.values())


@pytest.mark.skipif(not triton_lang.INTERPRETED, reason="launches in Triton's interpreter")
@pytest.mark.parametrize("kernel", tune.KERNELS)
def test_the_first_shape_of_every_kernel_launches_as_the_tuner_will(kernel, monkeypatch):
    """Errors are not looked at: the interpreter cannot do bfloat16."""
    bench = importlib.import_module(f"runtime.bench.{kernel}")
    if kernel == "reward_patches":
        monkeypatch.setitem(bench.FRAMES, "full", (2, 3, 28, 42))
    first = next(bench.tunables(torch.device("cpu")))
    assert isinstance(first.error(first.run(first.space[0])), float)
    assert first.allowed_error >= 0 and nearest(kernel, first.shape)
