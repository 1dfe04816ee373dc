"""The engine against the slow search of ``tests.oracle``: every draw, score, route, sink, stored key and final frame."""

import random
from dataclasses import replace

import pytest
import torch

from runtime.engine import Engine
from runtime.types import ChunkRecord
from tests.oracle import Drawn, Entry, History, Rules, World, decode, search, span, turn
from tests.tiny import STEPS, SeedNoise, motion, prettiness, tiny_dit, tiny_engine

EXACT = 1e-12  # float64 through a dozen chunks; observed 3e-15


def sampled(number: int) -> Rules:
    """Small random rules, every switch of the search among them."""
    pick = random.Random(number)
    s = pick.choice([3, 6])
    return Rules(
        N=pick.randint(6, 10),
        K=pick.randint(1, 3),
        M=pick.randint(1, 3),
        L=pick.choice([length for length in (9, 12, 15, 18) if length >= s + 6]),
        s=s,
        Smax=pick.choice([s, s + 3, 9, 15]),
        alpha=pick.choice([0.5, 0.9, 0.999]),
        quality=pick.choice([-0.3, 0.0, 0.1]),
        transition=pick.choice([-0.1, 0.0, 0.2]),
        beta=pick.choice([-1.0, -0.5, -0.1, 0.0, 0.3]),
        slerp=pick.random() < 0.3,
        tau=pick.choice([0.0, 0.4, 1.0]),
        W=pick.choice([1, 2, 4, 10]),
        seed=pick.randint(0, 2**40),
        released=pick.random() < 0.5,
        policy=pick.choice(["stream-t1"] * 9 + ["beam", "best-of-n", "single"]),
        propagation=pick.random() < 0.8,
        sinking=pick.random() < 0.9,
        pruning=pick.random() < 0.9,
        horizon=pick.choice([1, 3, 40, 40]),
        relative=pick.random() < 0.25,
    )


NAMED = {
    "defaults": Rules(N=12),
    "released": Rules(N=12, released=True),
    "always-merge": Rules(N=10, quality=-9.0, transition=9.0, alpha=0.9),
    "always-append": Rules(N=12, quality=-9.0, transition=-9.0, Smax=9),
    "apart": Rules(N=12, K=3, M=1, transition=0.0),  # lineages that never meet, sinks of their own
    "apart-released": Rules(N=12, K=3, M=1, transition=0.0, quality=-0.1, released=True, beta=0.5),
    "short-window": Rules(N=10, W=3, transition=0.0),
    "short-window-released": Rules(N=10, W=3, transition=0.0, released=True),
    "one-chunk": Rules(N=1),
    "one-chunk-released": Rules(N=1, released=True),
    "four-passes": Rules(N=7, quality=-0.3, transition=0.0),
}
CASES = NAMED | {f"sampled-{number}": sampled(number) for number in range(32)}


def settings_of(rules: Rules) -> dict[str, object]:
    return {
        "fidelity": "released" if rules.released else "paper",
        "search.policy": rules.policy,
        "search.histories": rules.K,
        "search.expansions": rules.M,
        "search.seed": rules.seed,
        "search.propagation": rules.propagation,
        "search.pruning": rules.pruning,
        "search.horizon_chunks": rules.horizon,
        "noise.beta": rules.beta,
        "noise.mode": "slerp" if rules.slerp else "blend",
        "memory.window_frames": rules.L,
        "memory.sink_frames": rules.s,
        "memory.max_sink_frames": rules.Smax,
        "memory.ema_alpha": rules.alpha,
        "memory.quality_threshold": rules.quality,
        "memory.transition_threshold": rules.transition,
        "memory.sinking": rules.sinking,
        "memory.rope": "relative" if rules.relative else "absolute",
        "memory.keep_last": True,
        "reward.window_chunks": rules.W,
        "reward.tau": rules.tau,
    }


def world_of(engine: Engine) -> World:
    generator = engine.parts.generator
    noise, shape = SeedNoise(), generator.chunk_shape
    return World(
        dit=generator.dit,
        text=generator.encode(""),
        timesteps=generator.schedule.timesteps,
        sigmas=generator.schedule.sigmas,
        draw=lambda seed, number: noise.one(seed, number, shape),
        short=prettiness,
        long=motion,
    )


class Recorder:
    """Notes every chunk's record and the keys and values that its survivors held then."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.records, self.stored = engine, [], []

    def __call__(self, record: ChunkRecord) -> None:
        kv = self.engine.pool.kv
        self.records.append(record)
        self.stored.append(
            [kv[:, [x.block for x in s.memory.slots]].clone() for s in record.survivors]
        )


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max().item() < EXACT


def assert_same_candidate(got, want: Drawn) -> None:
    assert (got.branch.rank, got.branch.seed, got.route.value) == (want.rank, want.seed, want.route)
    assert_close(got.noise, want.noise)
    assert_close(got.latents, want.x0)
    scores = (got.scores.short, got.scores.long, got.scores.fused)
    assert scores == pytest.approx((want.short, want.long, want.score), abs=EXACT, nan_ok=True)


def assert_same_memory(got, stored: torch.Tensor, want: History) -> None:
    for slots, entries in ((got.sinks, want.sinks), (got.window, want.window)):
        assert [slot.start_frame for slot in slots] == [entry.start for entry in entries]
    layers = stored.shape[0] // 2
    for place, entry in enumerate(want.sinks + want.window):
        for layer in range(layers):
            assert_close(stored[layer, place], turned(entry, layer))
            assert_close(stored[layers + layer, place], entry.values[layer])


def turned(entry: Entry, layer: int) -> torch.Tensor:
    return turn(entry.keys[layer], span(entry.start), 1)


@pytest.mark.parametrize("name", CASES)
def test_the_engine_does_what_the_slow_search_does(name):
    rules = CASES[name]
    layers, steps = (2, (1000, 750, 500, 250)) if name == "four-passes" else (1, STEPS)
    engine = tiny_engine(
        rules.N, settings_of(rules), dit=tiny_dit(layers), steps=steps, noise=SeedNoise()
    )
    want, winner = search(world_of(engine), rules)
    watch = Recorder(engine)
    events = list(engine.stream("recorded", watch=watch))
    for record, stored, step in zip(watch.records, watch.stored, want, strict=True):
        assert len(record.candidates) == len(step.candidates)
        for got, expected in zip(record.candidates, step.candidates, strict=True):
            assert_same_candidate(got, expected)
        assert list(record.kept) == step.kept
        for survivor, kv, history in zip(record.survivors, stored, step.pool, strict=True):
            assert_same_memory(survivor.memory, kv, history)
    assert [event.index for event in events] == list(range(rules.N))
    for event, latents, frames in zip(events, winner.latents, decode(winner.latents), strict=True):
        assert_close(event.latents, latents)
        assert_close(event.frames, frames)
    engine.pool.check([])


@pytest.mark.parametrize(
    "slip",
    [
        {"alpha": 0.9991},
        {"beta": -0.1001},
        {"seed": 43},
        {"quality": 0.2},
        {"transition": 9.0},
        {"tau": 0.3},
        {"W": 2},
        {"L": 15},
        {"s": 6},
        {"released": True},
        {"sinking": False},
    ],
    ids=lambda slip: next(iter(slip)),
)
def test_the_comparison_notices_a_slip(slip):
    """A hyper-parameter that is a little off must show, or the agreement above would prove nothing."""
    rules = Rules(N=9, quality=-0.2, transition=-0.1)
    engine = tiny_engine(rules.N, settings_of(rules), noise=SeedNoise())
    _, winner = search(world_of(engine), replace(rules, **slip))
    events = list(engine.stream("recorded"))
    errors = [(e.latents - x).abs().max() for e, x in zip(events, winner.latents, strict=True)]
    assert max(errors) > 1000 * EXACT
