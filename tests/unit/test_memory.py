"""The pool recounts itself, shared sinks are copied before they change, and nothing is held that nobody needs."""

from collections.abc import Sequence
from itertools import count

import pytest
import torch

from runtime.memory import KVPool, pool_blocks
from runtime.settings import MemorySettings
from runtime.types import Memory, Route, Slot
from tests.shelf import SHAPE, Shelf


def starts(slots: Sequence[Slot]) -> list[int]:
    return [slot.start_frame for slot in slots]


def test_a_window_that_is_not_full_keeps_everything():
    shelf = Shelf()
    memory = shelf.full(Route.EMA)
    shorter = Memory(memory.sinks, memory.window[:2])
    shelf.lease.drop(memory.window[2:])
    assert shelf.room(shorter) == [shorter]


def test_discard_drops_the_oldest_chunk_and_touches_nothing():
    shelf = Shelf()
    memory = shelf.full(Route.DISCARD)
    before = shelf.pool.kv.clone()
    (after,) = shelf.room(memory)
    assert after == Memory(memory.sinks, memory.window[1:])
    assert torch.equal(shelf.pool.kv, before) and shelf.pool.used == 3


def test_append_moves_no_bytes():
    shelf = Shelf()
    memory = shelf.full(Route.APPEND)
    before = shelf.pool.kv.clone()
    (after,) = shelf.room(memory)
    assert after.slots == memory.slots and starts(after.sinks) == [0, 3]
    assert torch.equal(shelf.pool.kv, before) and shelf.pool.used == 4


def test_a_sink_nobody_else_needs_changes_in_place():
    shelf = Shelf(ema_alpha=0.75)
    memory = shelf.full(Route.EMA)
    sink, leaving = shelf.value(memory.sinks[0]), shelf.value(memory.window[0])
    (after,) = shelf.room(memory)
    assert after.sinks == memory.sinks and shelf.pool.used == 3
    assert torch.equal(shelf.value(after.sinks[0])[1], (0.75 * sink + 0.25 * leaving)[1])


def test_a_shared_sink_is_copied_before_it_changes():
    """Two histories share all but the newest chunk; one merges first, the other must not see it."""
    shelf = Shelf(ema_alpha=0.5)
    ours = shelf.full(Route.EMA)
    theirs = Memory(ours.sinks, (shelf.slot(3, Route.DISCARD), *ours.window[1:]))
    shelf.lease.hold(Memory(theirs.sinks, theirs.window[1:]))
    shelf.pool.check([ours, theirs])
    sink, leaving = shelf.value(ours.sinks[0]), shelf.value(ours.window[0])
    merged, kept = shelf.room(ours, theirs)
    assert kept.sinks == theirs.sinks and merged.sinks != ours.sinks
    assert torch.equal(shelf.value(kept.sinks[0]), sink)
    assert torch.equal(shelf.value(merged.sinks[0])[1], (0.5 * sink + 0.5 * leaving)[1])
    assert starts(merged.sinks) == [0]


def test_histories_that_agree_share_one_merged_block():
    shelf = Shelf()
    memory = shelf.full(Route.EMA)
    shelf.lease.hold(memory)
    shelf.lease.hold(memory)
    first, second, third = shelf.room(memory, memory, memory)
    assert first == second == third
    assert shelf.pool.counts[first.sinks[0].block] == 3 and shelf.pool.used == 3


def test_histories_that_share_a_sink_but_not_what_leaves_get_a_block_each():
    shelf = Shelf(ema_alpha=0.5)
    memory = shelf.full(Route.EMA)
    others = [
        Memory(memory.sinks, (shelf.slot(3, Route.EMA), *memory.window[1:])) for _ in range(2)
    ]
    for other in others:
        shelf.lease.hold(Memory(other.sinks, other.window[1:]))
    sink = shelf.value(memory.sinks[0])
    leaving = [shelf.value(m.window[0]) for m in (memory, *others)]
    after = shelf.room(memory, *others)
    assert len({m.sinks[0].block for m in after}) == 3
    for m, old in zip(after, leaving, strict=True):
        assert torch.equal(shelf.value(m.sinks[0])[1], (0.5 * sink + 0.5 * old)[1])


def test_what_should_append_merges_when_the_sinks_are_full():
    shelf = Shelf(max_sink_frames=6, ema_alpha=0.5)
    (memory,) = shelf.room(shelf.full(Route.APPEND))
    first, latest = map(shelf.value, memory.sinks)
    memory = Memory(memory.sinks, (*memory.window, shelf.slot(12, Route.APPEND)))
    leaving = shelf.value(memory.window[0])
    (after,) = shelf.room(memory)
    assert starts(after.sinks) == [0, 3]
    assert torch.equal(shelf.value(after.sinks[0]), first)
    assert torch.equal(shelf.value(after.sinks[1])[1], (0.5 * latest + 0.5 * leaving)[1])


@pytest.mark.parametrize("route", list(Route))
def test_without_sinking_whatever_leaves_is_dropped(route):
    shelf = Shelf(sinking=False)
    memory = shelf.full(route)
    assert shelf.room(memory) == [Memory(memory.sinks, memory.window[1:])]


def test_the_first_chunks_become_the_initial_sinks():
    shelf = Shelf(sink_frames=6)
    memory = Memory()
    for index in range(4):
        memory = shelf.keeper.remember(memory, shelf.slot(3 * index), index)
    assert starts(memory.sinks) == [0, 3] and starts(memory.window) == [6, 9]


def test_the_pool_holds_what_the_settings_can_need():
    assert pool_blocks(MemorySettings(), 2) == 2 * (5 + 3) + 1


def test_a_full_pool_says_what_to_lower():
    shelf = Shelf(blocks=2)
    shelf.slot(0), shelf.slot(3)
    with pytest.raises(RuntimeError, match=r"all 2 blocks are in use; lower search.histories"):
        shelf.slot(6)


def test_a_wrong_count_is_named():
    shelf = Shelf()
    memory = shelf.full(Route.EMA)
    shelf.pool.check([memory])
    shelf.pool.counts[2] += 1
    with pytest.raises(RuntimeError, match=r"KV block 2: 1 memories hold it, its count is 2"):
        shelf.pool.check([memory])


def test_releasing_twice_is_caught():
    pool = KVPool(1, SHAPE, torch.float32, "cpu")
    block = pool.allocate()
    pool.release(block)
    with pytest.raises(AssertionError, match="released more often than it was held"):
        pool.release(block)


def test_a_lease_gives_back_its_own_blocks_and_no_others():
    shelf = Shelf()
    mine = shelf.full(Route.EMA)
    with pytest.raises(KeyError), shelf.pool.lease() as lease:
        lease.allocate(), lease.hold(mine), lease.drop(mine.window[:1])
        raise KeyError
    shelf.pool.check([mine])


def test_the_pool_agrees_with_a_model_that_copies():
    """Any pool of histories, any routes: the counts add up, the pool is big enough, every history sees its own values."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=40)
    @hypothesis.given(st.data())
    def run(data):
        histories = data.draw(st.integers(1, 4), label="histories")
        sink = data.draw(st.sampled_from([3, 6]), label="sink frames")
        sizes = {
            "sink_frames": sink,
            "window_frames": sink + data.draw(st.sampled_from([6, 9, 12]), label="window"),
            "max_sink_frames": sink + data.draw(st.sampled_from([0, 3, 9]), label="more sinks"),
            "ema_alpha": 0.5,
        }
        shelf = Shelf(pool_blocks(MemorySettings(**sizes), histories), **sizes)
        kept = st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from(Route)), min_size=1, max_size=histories
        )
        pool, model, value = [Memory()], [([], [])], count(1.0)
        for index, survivors in enumerate(
            data.draw(st.lists(kept, max_size=16), label="survivors")
        ):
            roomy = shelf.room(*pool)
            model = [_model_room(sinks, window, shelf.settings) for sinks, window in model]
            chosen = [(parent % len(pool), route) for parent, route in survivors]
            for parent, _ in chosen:
                shelf.lease.hold(roomy[parent])
            slots = [Slot(shelf.lease.allocate(), 3 * index, route) for _, route in chosen]
            for memory in roomy:
                shelf.lease.drop(memory.slots)
            pool, copies = [], []
            for (parent, route), slot in zip(chosen, slots, strict=True):
                number = next(value)
                shelf.pool.kv[:, slot.block] = number
                pool.append(shelf.keeper.remember(roomy[parent], slot, index))
                sinks, window = model[parent]
                new = [(number, route)]
                initial = index < shelf.settings.sink_chunks
                copies.append((sinks + new, window) if initial else (sinks, window + new))
            model = copies
            shelf.pool.check(pool)
            for memory, (sinks, window) in zip(pool, model, strict=True):
                got = [shelf.value(slot)[1].unique().tolist() for slot in memory.slots]
                assert got == [[number] for number, _ in sinks + window]
        shelf.lease.close()
        shelf.pool.check([])

    run()


def _model_room(sinks, window, settings):
    """Sinks and window as lists of (value, route), copied; the oldest leaves when the window is full."""
    if len(window) < settings.window_chunks:
        return sinks, window
    (number, route), *window = window
    if route is Route.APPEND and len(sinks) < settings.max_sink_chunks:
        return [*sinks, (number, route)], window
    if route is not Route.DISCARD:
        sinks = [*sinks[:-1], (0.5 * sinks[-1][0] + 0.5 * number, sinks[-1][1])]
    return sinks, window
