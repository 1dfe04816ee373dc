"""Plans list each candidate's blocks in attention order, and say how far re-based sinks move."""

import pytest

from runtime.plan import plan_chunk
from runtime.settings import MemorySettings
from runtime.types import Branch, ChunkPlan, Memory, Slot, Trajectory

ABSOLUTE, RELATIVE = MemorySettings(), MemorySettings(rope="relative")


def memory(sinks: list[int], window: list[int]) -> Memory:
    """Blocks at the given start frames; block ids are start frames plus 100."""
    return Memory(*(tuple(Slot(100 + frame, frame) for frame in part) for part in (sinks, window)))


def plan(settings: MemorySettings, index: int, *memories: Memory) -> ChunkPlan:
    branches = [Branch(Trajectory(memory=m), 0, row, row, index) for row, m in enumerate(memories)]
    return plan_chunk(branches, index, settings)


def test_a_first_chunk_sees_nothing():
    got = plan(ABSOLUTE, 0, Memory(), Memory())
    assert got == ChunkPlan((0, 0), ((), ()), ((), ()), (0, 1), (0, 0))
    assert got.rows == 2


def test_sinks_come_before_the_window_in_the_order_they_joined():
    got = plan(ABSOLUTE, 9, memory([0, 12, 6], [21, 24]), memory([0], [21, 24]))
    assert got.start_frames == (27, 27)
    assert got.blocks == ((100, 112, 106, 121, 124), (100, 121, 124))
    assert got.shifts == ((0,) * 5, (0,) * 3)


def test_relative_positions_put_sinks_right_before_the_window():
    got = plan(RELATIVE, 9, memory([0, 6, 12], [21, 24]), memory([0], [21, 24]))
    assert got.shifts == ((12, 9, 6, 0, 0), (18, 0, 0))


def test_relative_positions_without_a_window_end_at_the_chunk_itself():
    assert plan(RELATIVE, 2, memory([0, 3], [])).shifts == ((0, 0),)
    assert plan(RELATIVE, 5, memory([0, 3], [])).shifts == ((9, 9),)


def test_a_short_video_is_not_moved():
    assert plan(RELATIVE, 3, memory([0], [3, 6])).shifts == ((0, 0, 0),)


@pytest.mark.parametrize("rows", [[0], [2, 0], [1, 1]], ids=str)
def test_taking_rows_keeps_blocks_and_shifts_together(rows):
    whole = plan(RELATIVE, 9, *(memory([0, 3 * row], [21, 24]) for row in range(1, 4)))
    part = whole.take(rows)
    assert (part.start_frames, part.rows) == ((27,) * len(rows), len(rows))
    assert part.seeds == tuple(rows) and part.targets == ()
    assert part.blocks == tuple(whole.blocks[row] for row in rows)
    assert part.shifts == tuple(whole.shifts[row] for row in rows)
