"""What a pool keeps of a merged sink: its bytes, its float32 shadow while it can still be merged, and nothing else."""

from dataclasses import replace

import pytest
import torch

from runtime.kernels.ema_merge import Ema, ema_merge_, ema_merge_reference
from runtime.memory import KVPool
from runtime.types import Memory, Route
from tests.shelf import SHAPE, Shelf

BF16_EPS = torch.finfo(torch.bfloat16).eps


def merged_often(storage: str, times: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A bfloat16 sink before and after, and the exact value it should have."""
    pool = KVPool(2, (2, 30, 2, 26), torch.bfloat16, "cpu")
    pool.kv.copy_(torch.randn(pool.kv.shape, generator=torch.Generator().manual_seed(0)))
    sink, evicted = pool.kv[:, 0].double(), pool.kv[:, 1].double()
    for step in range(times):
        pool.merge_(0, 0, 1, Ema(0.999, 0, storage, step=step))
    keep = 0.999**times
    return sink, pool.kv[:, 0].double(), keep * sink + (1 - keep) * evicted


def test_a_hundred_merges_in_bfloat16_arrive_where_the_formula_says():
    _, got, want = merged_often("fp32_shadow", 100)
    assert ((got - want).abs() <= BF16_EPS * want.abs().clamp_min(BF16_EPS)).all()


def test_the_released_rounding_hardly_moves_in_bfloat16():
    """0.999 * x rounds back to x, and 0.001 * y is lost next to an x of its own size."""
    sink, got, want = merged_often("released", 100)
    assert (want != sink).double().mean() > 0.99
    assert (got == sink).double().mean() > 0.7
    assert (got - sink).abs().mean() < 0.3 * (want - sink).abs().mean()


def test_a_copied_sink_goes_on_from_its_unrounded_value():
    shelf = Shelf(dtype=torch.bfloat16)
    memory = shelf.full(Route.EMA)
    for _ in range(50):
        sink = memory.sinks[0].block
        shelf.pool.merge_(sink, sink, memory.window[1].block, Ema(0.999, 0, "fp32_shadow"))
    rounded, shadow = shelf.value(memory.sinks[0]), shelf.pool.shadows[sink].clone()
    leaving = shelf.value(memory.window[0]).float()
    other = Memory(memory.sinks, (shelf.slot(3, Route.DISCARD), *memory.window[1:]))
    shelf.lease.hold(Memory(other.sinks, other.window[1:]))
    merged, kept = shelf.room(memory, other)
    mine, theirs = (shelf.pool.shadows[m.sinks[0].block] for m in (merged, kept))
    assert torch.equal(theirs, shadow) and torch.equal(shelf.value(kept.sinks[0]), rounded)
    assert torch.allclose(mine[1], (0.999 * shadow + 0.001 * leaving)[1], rtol=1e-6)


def test_a_block_forgets_its_shadow_when_it_is_freed():
    shelf = Shelf(dtype=torch.bfloat16)
    memory = shelf.full(Route.EMA)
    bytes_before = shelf.pool.nbytes
    (after,) = shelf.room(memory)
    assert shelf.pool.nbytes == bytes_before + 4 * shelf.value(after.sinks[0]).numel()
    shelf.lease.close()
    assert not shelf.pool.shadows and shelf.pool.nbytes == bytes_before


def test_a_sink_that_is_no_longer_the_latest_keeps_no_shadow():
    """It will never be merged into again, and a full-size shadow is 1.7 GB."""
    shelf = Shelf(dtype=torch.bfloat16)
    (memory,) = shelf.room(shelf.full(Route.EMA))
    assert list(shelf.pool.shadows) == [memory.sinks[-1].block]
    memory = Memory(memory.sinks, tuple(replace(s, route=Route.APPEND) for s in memory.window))
    memory = shelf.keeper.remember(memory, shelf.slot(12, Route.EMA), 4)
    (memory,) = shelf.room(memory)
    assert len(memory.sinks) == 2 and not shelf.pool.shadows


def test_a_shadow_stays_while_another_history_may_still_merge_into_its_sink():
    shelf = Shelf(dtype=torch.bfloat16)
    (ours,) = shelf.room(shelf.full(Route.EMA))
    sink = ours.sinks[-1].block
    theirs = Memory(ours.sinks, (shelf.slot(6, Route.DISCARD), *ours.window[1:]))
    shelf.lease.hold(Memory(theirs.sinks, theirs.window[1:]))
    newest = shelf.slot(12)
    shelf.lease.hold(Memory((newest,)))
    appends = replace(ours.window[0], route=Route.APPEND)
    ours = Memory(ours.sinks, (appends, *ours.window[1:], newest))
    theirs = Memory(theirs.sinks, (*theirs.window, newest))
    ours, theirs = shelf.room(ours, theirs)
    assert len(ours.sinks) == 2 and theirs.sinks[-1].block == sink
    assert list(shelf.pool.shadows) == [sink]


@pytest.mark.parametrize(
    ("chosen", "released", "storage"),
    [
        ("auto", False, "fp32_shadow"),
        ("auto", True, "released"),
        ("released", False, "released"),
        ("stochastic", True, "stochastic"),
    ],
)
def test_the_setting_says_how_a_merged_sink_is_rounded(chosen, released, storage):
    shelf = Shelf(dtype=torch.bfloat16, released=released, seed=7, ema_storage=chosen)
    memory = shelf.full(Route.EMA)
    sink, leaving = (shelf.value(slot) for slot in (memory.sinks[0], memory.window[0]))
    (after,) = shelf.room(memory)
    want, shadow = torch.empty_like(sink), torch.empty(sink.shape)
    how = Ema(0.999, -3, storage, seed=7, step=1)  # the chunk that leaves is number 1
    shadow_out = shadow if storage == "fp32_shadow" else None
    ema_merge_(want, sink, leaving, how, shadow_out=shadow_out, impl="torch")
    assert torch.equal(shelf.value(after.sinks[0]), want)
    assert bool(shelf.pool.shadows) == (storage == "fp32_shadow")


@pytest.mark.parametrize("storage", ["fp32_shadow", "stochastic"])
def test_a_wide_pool_is_merged_with_one_rounding(storage):
    shelf = Shelf(dtype=torch.float32, ema_storage=storage, ema_alpha=0.75)
    memory = shelf.full(Route.EMA)
    sink, leaving = shelf.value(memory.sinks[0]), shelf.value(memory.window[0])
    (after,) = shelf.room(memory)
    assert torch.equal(shelf.value(after.sinks[0])[1], (0.75 * sink + 0.25 * leaving)[1])


def test_the_pool_merges_with_what_was_asked_for():
    assert KVPool(1, SHAPE, torch.float64, "cpu").impl == "torch"
    assert KVPool(1, SHAPE, torch.bfloat16, "cpu", "torch").impl == "torch"
    with pytest.raises(ValueError, match="impl: want one of auto, native"):
        KVPool(1, SHAPE, torch.bfloat16, "cpu", "cpp")


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("target", "source", "evicted"), [(1, 1, 4), (3, 1, 0), (5, 2, 4)])
def test_a_merge_moves_the_target_block_and_no_other(target, source, evicted, dtype, released):
    pool = KVPool(7, (4, 3, 2, 10), dtype, "cpu")
    pool.kv.copy_(torch.randn(pool.kv.shape, generator=torch.Generator().manual_seed(0)))
    before = pool.kv.clone()
    how = Ema(0.5, -6, "released" if released else "fp32_shadow")
    pool.merge_(target, source, evicted, how)
    others = [block for block in range(7) if block != target]
    assert torch.equal(pool.kv[:, others], before[:, others])
    want = ema_merge_reference(before[:, source].double(), before[:, evicted].double(), how)
    error = (pool.kv[:, target].double() - want).abs().max()
    assert error <= 3 * torch.finfo(dtype).eps * want.abs().max()  # three roundings at most


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_pools_need_no_shadow(dtype, released):
    shelf = Shelf(dtype=dtype, released=released)
    shelf.room(shelf.full(Route.EMA))
    assert not shelf.pool.shadows
