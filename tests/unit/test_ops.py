"""The whole line on every implementation of its kernels: the same decisions, the same video within rounding."""

import pytest
import torch

from runtime.generators.wan import DiTConfig, WanDiT
from runtime.kernels import native, triton_lang
from runtime.noise import PhiloxNoise
from runtime.types import Route
from tests.tiny import CHANNELS, scrambled, tiny_engine

CHANGES = {  # every route is taken, sinks are merged and appended, noise is propagated along the sphere
    "memory.quality_threshold": -0.3,
    "memory.transition_threshold": 0.0,
    "memory.max_sink_frames": 6,
    "noise.mode": "slerp",
    "noise.beta": 0.3,
}
RUNS = {
    "native": pytest.mark.skipif(native.find()[0] is None, reason="not built"),
    "triton": pytest.mark.skipif(not triton_lang.INTERPRETED, reason="needs the interpreter"),
}


KERNELS = ("noise", "frame_pack", "ema_merge", "qk_norm_rope", "adaln")


def run(ops: str, attention: str = "sdpa"):
    config = DiTConfig(
        dim=64, heads=2, layers=2, ffn_dim=24, freq_dim=8, text_dim=6, text_len=4, channels=CHANNELS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = scrambled(WanDiT(config, ops)).float()
    noise = PhiloxNoise(torch.device("cpu"), torch.float32, ops)
    changes = {**CHANGES, "run.ops": ops, "run.attention": attention}
    engine, records = tiny_engine(6, changes, dit=dit, noise=noise), []
    events = list(engine.stream("a prompt", watch=records.append))
    decisions = [(r.kept, [(c.branch.seed, c.route) for c in r.candidates]) for r in records]
    return engine.implementations, decisions, torch.cat([event.frames for event in events])


@pytest.mark.parametrize("ops", [pytest.param(name, marks=mark) for name, mark in RUNS.items()])
def test_a_video_does_not_depend_on_the_kernels(ops):
    named, decisions, frames = run("torch")
    assert {named[op] for op in KERNELS} == {"torch"}
    assert {route for _, row in decisions for _, route in row} == set(Route)
    again, same_decisions, same_frames = run(ops, "triton" if ops == "triton" else "sdpa")
    assert set(again) == set(named) and {again[op] for op in KERNELS} == {ops}
    assert same_decisions == decisions
    assert (same_frames - frames).abs().max() < 1e-4
    assert not torch.equal(same_frames, frames)  # something else did run


@pytest.mark.skipif(native.find()[0] is None, reason="not built")
def test_an_implementation_that_cannot_run_is_refused_when_the_engine_is_built():
    with pytest.raises(ValueError, match="impl='native' takes bfloat16, float16, float32, got"):
        tiny_engine(2, {"run.ops": "native"})  # its pool is float64
