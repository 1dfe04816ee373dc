"""A recorded chunk is the called one: for every fill of the window, any prompt, any split, and when memory runs out."""

import logging

import pytest
import torch

from runtime.engine import Engine
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.noise import PhiloxNoise
from runtime.rewards.stub import Stub
from runtime.types import Route
from tests.tiny import CHANNELS, SeedNoise, generator_of, scrambled, tiny_engine

ROUTES = {
    "memory.quality_threshold": -0.3,
    "memory.transition_threshold": 0.0,
    "memory.max_sink_frames": 9,
}


def small_dit(device: str = "cpu", dtype: torch.dtype = torch.float32, ops: str = "torch"):
    config = DiTConfig(
        dim=64, heads=2, layers=2, ffn_dim=24, freq_dim=8, text_dim=6, text_len=4, channels=CHANNELS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(WanDiT(config, ops)).to(device, dtype)


def engine_of(graphs: str, changes: dict | None = None, chunks: int = 9) -> Engine:
    named = {"run.graphs": graphs, "run.attention": "reference", **ROUTES, **(changes or {})}
    return tiny_engine(chunks, named, dit=small_dit())


def made(engine: Engine, prompt: str = "x") -> tuple[list, torch.Tensor]:
    records: list = []
    events = list(engine.stream(prompt, watch=records.append))
    decisions = [(r.kept, [(c.branch.seed, c.route) for c in r.candidates]) for r in records]
    return decisions, torch.cat([event.latents for event in events])


@pytest.mark.parametrize(
    "changes",
    [{}, {"memory.rope": "relative"}, {"run.batch_rows": 3}, {"fidelity": "released"}],
    ids=str,
)
def test_a_recorded_video_is_the_called_one(changes):
    """Nine chunks: the window fills, sinks are appended and merged, histories of unlike lengths share a batch."""
    called, recorded = engine_of("off", changes), engine_of("rehearsal", changes)
    want, got = made(called), made(recorded)
    assert got[0] == want[0] and torch.equal(got[1], want[1])
    assert {route for _, rows in got[0] for _, route in rows} == set(Route)
    assert recorded.denoiser.graphs.recordings and not called.denoiser.graphs.recordings


def test_one_recording_serves_every_fill_of_the_window():
    engine = engine_of("rehearsal")
    made(engine)
    names = [key[0] for key in engine.denoiser.graphs.recordings]
    assert sorted(names) == ["clean", "denoise"]  # four candidates, two survivors, nine chunks


def test_another_prompt_is_seen_by_the_same_recording():
    """What the first prompt left in fixed memory must not reach the second video."""
    recorded = engine_of("rehearsal", chunks=3)
    texts = {word: torch.randn(1, 3, 6, generator=generator_of(i)) for i, word in enumerate("ab")}
    videos = {}
    for engine in (recorded, engine_of("off", chunks=3)):
        engine.parts.generator.text.encode = texts.__getitem__
        videos[engine] = [made(engine, word)[1] for word in "aba"]
    got, want = videos.values()
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(got[0], got[2]) and not torch.equal(got[0], got[1])
    assert len(recorded.denoiser.graphs.recordings) == 2


def short_of_memory(engine: Engine, most: int, monkeypatch) -> list[int]:
    """Forwards of more than ``most`` rows run out of memory; returns how many rows each call had."""
    dit, calls = engine.denoiser.dit, []
    for verb in ("forward", "remember"):
        plain = getattr(dit, verb)

        def limited(x, *args, plain=plain):
            calls.append(len(x))
            if len(x) > most:
                raise torch.OutOfMemoryError("simulated")
            return plain(x, *args)

        monkeypatch.setattr(dit, verb, limited)
    return calls


@pytest.mark.parametrize("graphs", ["off", "rehearsal"])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_batch_that_does_not_fit_is_halved_once_and_the_video_is_the_same(
    most, graphs, monkeypatch, caplog
):
    want = made(engine_of(graphs))
    engine = engine_of(graphs)
    calls = short_of_memory(engine, most, monkeypatch)
    with caplog.at_level(logging.WARNING):
        got = made(engine)
    assert got[0] == want[0] and (got[1] - want[1]).abs().max() < 1e-4
    assert max(calls[8:]) <= most, "it was tried again"
    assert "candidates at once" in caplog.text and engine.denoiser.portions.most in (1, 2)
    engine.pool.check([])


def test_where_not_one_candidate_fits_the_error_says_what_to_do(monkeypatch):
    engine = engine_of("off")
    short_of_memory(engine, 0, monkeypatch)
    with pytest.raises(RuntimeError, match="no memory to denoise one candidate; lower search"):
        made(engine)
    engine.pool.check([])


def test_what_reads_its_plan_on_the_host_is_not_recorded():
    with pytest.raises(
        ValueError, match="run.graphs='rehearsal': wants .* another kind of attention"
    ):
        tiny_engine(2, {"run.graphs": "rehearsal", "run.attention": "sdpa"}, dit=small_dit())
    with pytest.raises(ValueError, match="got another kind of noise"):
        changes = {"run.graphs": "rehearsal", "run.attention": "reference"}
        tiny_engine(2, changes, dit=small_dit(), noise=SeedNoise())


# On a GPU.


def gpu_engine(graphs: str, chunks: int = 9) -> Engine:
    dit = small_dit("cuda", torch.bfloat16, "triton")
    noise = PhiloxNoise(torch.device("cuda"), torch.bfloat16, "triton")
    changes = {"run.graphs": graphs, "run.attention": "triton", "run.ops": "triton", **ROUTES}
    return tiny_engine(chunks, changes, dit=dit, noise=noise, image=Stub(), video=Stub(horizon=10))


@pytest.mark.gpu
def test_a_captured_video_is_the_called_one():
    want, got = made(gpu_engine("off")), made(gpu_engine("cuda"))
    assert got[0] == want[0] and torch.equal(got[1], want[1])


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["off", "cuda"])
def test_denoising_never_waits_for_the_gpu(graphs):
    """Plan, four passes and the clean pass; only the scores of a chunk come to the host."""
    engine = gpu_engine(graphs)
    denoiser, drawing = engine.denoiser, engine.drawing
    run, clean, draw = denoiser.run, denoiser.clean, drawing.draw
    chunk = 0

    def watched(call, *args, **kwargs):
        if chunk < 6:  # kernels are compiled and graphs captured before
            return call(*args, **kwargs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return call(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    denoiser.run = lambda *a, **k: watched(run, *a, **k)
    denoiser.clean = lambda *a, **k: watched(clean, *a, **k)
    drawing.draw = lambda *a, **k: watched(draw, *a, **k)
    for event in engine.stream("x"):
        chunk = event.index + 1
    assert event.latents.isfinite().all()
