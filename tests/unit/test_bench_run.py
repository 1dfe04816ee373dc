"""Who makes a video when: baselines in turns or one by one, weights shared, what does not fit left out."""

from types import SimpleNamespace

import pytest
import torch

from runtime.bench import run as run_module
from runtime.bench.clock import Ceiling
from runtime.bench.options import BASELINES
from runtime.bench.run import PROMPTS, Plan, _parts_for
from runtime.settings import Settings
from tests.tiny import tiny_engine


def test_a_baseline_shares_the_weights_of_what_is_measured():
    settings, parts = Settings(), tiny_engine(2).parts
    released, eager = (settings.with_changes(changes) for _, changes in BASELINES.values())
    assert _parts_for(settings, released, parts) is parts
    plain = _parts_for(settings, eager, parts.__class__(**vars(parts)))
    assert plain is not None and plain.generator.dit.ops == "torch"
    assert plain.generator.dit.blocks is parts.generator.dit.blocks and plain.image is parts.image
    other = settings.with_changes({"run.dtype": "bfloat16"})
    assert _parts_for(settings, other, parts) is None


def test_the_measured_engine_keeps_its_kernels_beside_a_plain_baseline():
    settings, parts = Settings().with_changes({"run.ops": "native"}), tiny_engine(2).parts
    parts.generator.dit.ops = "native"
    eager = settings.with_changes(BASELINES["eager"][1])
    plain = _parts_for(settings, eager, parts)
    assert (plain.generator.dit.ops, parts.generator.dit.ops) == ("torch", "native")


class Watched:
    """What the orchestration does, in order, with engines that do nothing."""

    def __init__(self, monkeypatch, together):
        self.order = []
        device = torch.device("cpu")
        generator = SimpleNamespace(device=device, fps=16, dtype=torch.float32)
        self.parts = SimpleNamespace(generator=generator)
        for name, fake in {
            "_warm": self.warm,
            "make_video": self.film,
            "_begin": self.begin,
            "fits_beside": lambda engine, others: together,
            "_parts_for": lambda settings, other, parts: parts,
            "LineCosts": SimpleNamespace(of=lambda engine: None),
            "_facts": lambda plan, taken: {"environment": {}, "together": taken.together},
            "_ceiling": lambda settings, dtype: Ceiling(1.0, 1.0),
        }.items():
            monkeypatch.setattr(run_module, name, fake)
        for name, fake in {"price": lambda *_: None, "stages": lambda *_: {}, "frames": 1}.items():
            monkeypatch.setattr(run_module.Timing, name, fake)

    def warm(self, plan, settings, parts, name):
        self.order.append(f"warm {name}")
        return SimpleNamespace(name="ours" if "measured" in name else name, parts=self.parts)

    def film(self, engine, prompts, meter=None):
        self.order.append(f"{engine.name} {PROMPTS.index(prompts[0])}")
        assert (meter is not None) == (engine.name == "ours")  # power is that of ours alone

    def begin(self, plan, engine, meter):
        self.film(engine, plan.batch(0), meter)
        return run_module.Taken(
            run_module.Timing(), {name: run_module.Timing() for name in plan.baselines}
        )


@pytest.mark.parametrize(
    ("together", "order"),
    [
        (
            True,
            "warm the measured settings, ours 0, warm released, warm eager, released 0, eager 0, "
            "ours 1, released 1, eager 1, ours 2",
        ),
        (
            False,
            "warm the measured settings, ours 0, ours 1, ours 2, warm released, released 0, released 1, "
            "warm eager, eager 0, eager 1",
        ),
    ],
    ids=["in turns", "one by one"],
)
def test_videos_take_turns_where_memory_allows(monkeypatch, together, order):
    watched, settings = Watched(monkeypatch, together), Settings()
    rivals = {"released": settings, "eager": settings}
    result = run_module.take(Plan(settings, rivals, repeats=3, baseline_repeats=2))
    assert ", ".join(watched.order) == order and result["together"] == together


@pytest.mark.parametrize("together", [True, False])
def test_a_baseline_that_does_not_fit_costs_nothing_but_itself(monkeypatch, together):
    watched, settings = Watched(monkeypatch, together), Settings()
    warm, seen = watched.warm, []

    def small(plan, settings, parts, name):
        if name == "released":
            raise torch.OutOfMemoryError("out of memory")
        return warm(plan, settings, parts, name)

    monkeypatch.setattr(run_module, "_warm", small)
    monkeypatch.setattr(
        run_module, "_facts", lambda plan, taken: seen.append(taken) or {"environment": {}}
    )
    run_module.take(Plan(settings, {"released": settings, "eager": settings}, repeats=1))
    assert seen[0].missing == {"released": "out of memory"} and list(seen[0].theirs) == ["eager"]
    assert "eager 0" in watched.order and "ours 0" in watched.order


@pytest.mark.parametrize(("free", "fits"), [(59, False), (60, True)])
def test_engines_stand_beside_each_other_where_memory_allows(monkeypatch, free, fits):
    """Two pools of 15 and 10 of work, half as much again, is 60; 20 of it are cached already."""
    told = {"mem_get_info": (free - 20, 80), "memory_allocated": 30}
    told |= {"memory_reserved": 50, "max_memory_allocated": 40}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    generator = SimpleNamespace(device=torch.device("cuda"))
    engine = SimpleNamespace(
        parts=SimpleNamespace(generator=generator), pool=SimpleNamespace(nbytes=15)
    )
    assert run_module.fits_beside(engine, 2) is fits
    assert run_module.fits_beside(engine, 0)
