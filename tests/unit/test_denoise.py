"""Rows of a batch see their own context and no other, wherever in the video they are."""

from dataclasses import replace

import pytest
import torch

from runtime.attention import Context, build_attention
from runtime.buffers import DevicePlan, PlanBuffers
from runtime.denoise import Denoiser
from runtime.generators.schedule import Schedule
from runtime.memory import KVPool
from runtime.plan import plan_chunk
from runtime.settings import MemorySettings, RunSettings
from runtime.types import Branch, ChunkPlan, Memory, Slot, Trajectory
from tests.oracle import span, turn
from tests.tiny import CHANNELS, SIDE, STEPS, SeedNoise, generator_of, tiny_dit

LAYERS = 2


class Bench:
    """A denoiser over a pool whose blocks hold random keys, known without their place in time."""

    def __init__(self, batch_rows: int = 0) -> None:
        self.dit = tiny_dit(LAYERS)
        self.plain = self.random(2 * LAYERS, 12, 3, 2, 12)  # [P, N, S, H, D]
        self.pool = KVPool(12, (2 * LAYERS, 3, 2, 12), torch.float64, "cpu")
        run = RunSettings(batch_rows=batch_rows)
        schedule = Schedule.warped(STEPS)
        self.denoiser = Denoiser(self.dit, self.pool, schedule, SeedNoise(), run)
        self.text = self.dit.text_context(self.random(1, 3, self.dit.config.text_dim))

    def random(self, *shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(shape, generator=generator_of(seed), dtype=torch.float64)

    def memory(self, sinks: list[int], window: list[int]) -> Memory:
        """Blocks 0, 1, 2, ... born at these frames."""
        self.pool.kv.copy_(self.plain)
        for block, start in enumerate([*sinks, *window]):
            for layer in range(LAYERS):
                self.pool.kv[layer, block] = turn(self.plain[layer, block], span(start), 1)
        slots = [Slot(block, start) for block, start in enumerate([*sinks, *window])]
        return Memory(tuple(slots[: len(sinks)]), tuple(slots[len(sinks) :]))

    def uploaded(self, plan: ChunkPlan) -> DevicePlan:
        return PlanBuffers(12, len(STEPS), "cpu").upload(plan)

    def attend(self, plan: ChunkPlan) -> Context:
        """With memory of its own."""
        return build_attention("sdpa", self.pool.kv).context(self.uploaded(plan))

    def pass_of(self, plan: ChunkPlan, x: torch.Tensor, timestep: float, context: Context):
        batch = self.denoiser.batch(plan, [self.text] * plan.rows)
        return self.denoiser.flow(replace(batch, context=context), x, timestep)

    @torch.no_grad()
    def flow(self, sinks: list[int], window: list[int], chunk: int, rope: str) -> torch.Tensor:
        branch = Branch(Trajectory(memory=self.memory(sinks, window)), 0, 0, 0, 0)
        plan = plan_chunk([branch], chunk, MemorySettings(rope=rope))
        x = self.random(1, 3, CHANNELS, SIDE, SIDE, seed=1)
        return self.pass_of(plan, x, 625.0, self.attend(plan))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("later", [1, 100, 2000])
def test_relative_positions_make_a_chunk_forget_how_old_the_video_is(later):
    bench = Bench()
    early = bench.flow([0, 3], [9, 12], 5, "relative")
    window = [9 + 3 * later, 12 + 3 * later]
    assert difference(bench.flow([0, 3], window, 5 + later, "relative"), early) < 1e-10
    assert difference(bench.flow([0, 6], window, 5 + later, "relative"), early) < 1e-10


@pytest.mark.parametrize("later", [1, 100, 2000])
def test_absolute_positions_do_not(later):
    bench = Bench()
    early = bench.flow([0, 3], [9, 12], 5, "absolute")
    late = bench.flow([0, 3], [9 + 3 * later, 12 + 3 * later], 5 + later, "absolute")
    assert difference(late, early) > 1e-5


@pytest.mark.parametrize(
    ("sinks", "window", "rope"),
    [
        ([3, 0], [9, 12], "absolute"),
        ([0, 3], [12, 9], "absolute"),
        ([0, 3], [12, 9], "relative"),
        ([0], [9, 12], "absolute"),
        ([0], [9, 12], "relative"),
    ],
    ids=str,
)
def test_place_and_length_of_a_context_matter(sinks, window, rope):
    bench = Bench()
    got = bench.flow([0, 3], [9, 12], 5, rope)
    assert difference(bench.flow(sinks, window, 5, rope), got) > 1e-5


def test_absolute_positions_have_no_last_frame():
    """All moved by the same number of frames: the same flow, far beyond any table of positions."""
    bench = Bench()
    early = bench.flow([0, 3], [9, 12], 5, "absolute")
    for chunks in (340, 341, 342, 20_000):
        shifted = [[3 * chunks + frame for frame in part] for part in ([0, 3], [9, 12])]
        late = bench.flow(*shifted, 5 + chunks, "absolute")
        assert difference(late, early) < 1e-9


RAGGED = ((), (3, 1), (3, 1), (5,), (0, 2, 4, 6))


def ragged(bench: Bench) -> tuple[ChunkPlan, torch.Tensor]:
    bench.pool.kv.copy_(bench.plain)
    shifts = tuple(tuple(3 * i for i in range(len(row))) for row in RAGGED)
    rows = len(RAGGED)
    plan = ChunkPlan((21,) * rows, RAGGED, shifts, tuple(range(rows)), (0,) * rows)
    return plan, bench.random(rows, 3, CHANNELS, SIDE, SIDE, seed=1)


@pytest.mark.parametrize("batch_rows", [0, 1, 2, 3, 99])
def test_a_row_does_not_know_its_batch(batch_rows):
    bench = Bench(batch_rows)
    plan, noise = ragged(bench)
    whole = bench.denoiser.run(plan, noise, [bench.text] * plan.rows)
    for row in range(plan.rows):
        part, one = plan.take([row]), slice(row, row + 1)
        alone = bench.denoiser.run(part, noise[one], [bench.text])
        assert difference(whole[one], alone) < 1e-13
    assert difference(whole[1], whole[2]) > 1e-3  # same context, other noise


def test_a_pass_writes_only_its_own_place():
    """Buffers serve several passes: what one pass leaves behind must not reach the next."""
    bench = Bench()
    plan, x = ragged(bench)
    used, before = bench.attend(plan), bench.pool.kv.clone()
    with torch.no_grad():
        bench.pass_of(plan, 5 * x, 1000.0, used)
        again = bench.pass_of(plan, x, 625.0, used)
        fresh = bench.pass_of(plan, x, 625.0, bench.attend(plan))
    assert torch.equal(again, fresh)
    assert torch.equal(bench.pool.kv, before)


@pytest.mark.parametrize("batch_rows", [0, 2])
def test_the_clean_pass_stores_what_the_forward_would_make(batch_rows):
    """And into the given blocks only."""
    bench = Bench(batch_rows)
    plan, x = ragged(bench)
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    context = bench.attend(plan)

    def noting(layer, q, k, v):
        made[layer] = k.clone(), v.clone()  # the clean pass gathers into the same memory
        return context(layer, q, k, v)

    with torch.no_grad():
        noted = Context(noting, context.destinations)
        bench.pass_of(plan, x, 0.0, noted)
    before, blocks = bench.pool.kv.clone(), [11, 7, 10, 8, 9]
    bench.denoiser.clean(replace(plan, targets=tuple(blocks)), x, [bench.text] * plan.rows)
    assert torch.equal(bench.pool.kv[:, :7], before[:, :7])
    for layer, (k, v) in made.items():
        assert difference(bench.pool.kv[layer, blocks], k) < 1e-13
        assert difference(bench.pool.kv[LAYERS + layer, blocks], v) < 1e-13


def test_every_block_of_a_context_matters():
    bench = Bench()
    plan, x = ragged(bench)
    with torch.no_grad():
        got = bench.pass_of(plan, x, 625.0, bench.attend(plan))
        for row, blocks in enumerate(RAGGED):
            for place in range(len(blocks)):
                fewer, shifts = ([list(part) for part in parts] for parts in (RAGGED, plan.shifts))
                del fewer[row][place], shifts[row][place]
                less = replace(
                    plan, blocks=tuple(map(tuple, fewer)), shifts=tuple(map(tuple, shifts))
                )
                attend = bench.attend(less)
                other = bench.pass_of(less, x, 625.0, attend)
                assert difference(other[row], got[row]) > 1e-5
