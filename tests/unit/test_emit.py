"""What all survivors share is shown once, in order, and forgotten; the rest waits."""

from dataclasses import replace

import pytest
import torch

from runtime.emit import Emitter
from runtime.types import Chunk, Route, Scores, Trajectory


def chunk(index: int, mark: float = 0.0) -> Chunk:
    frames = torch.full((2, 3, 1, 1), float(index) + mark)
    return Chunk(index, 42 + index, frames * 2, frames, Scores(mark, 0.0, 0.0), Route.EMA)


def history(*chunks: Chunk) -> Trajectory:
    return Trajectory(unsettled=chunks)


def indices(events) -> list[int]:
    return [event.index for event in events]


def test_a_lone_survivor_settles_everything():
    (left,), events = Emitter(40).settled([history(chunk(0), chunk(1))])
    assert indices(events) == [0, 1] and left.unsettled == ()


def test_an_event_carries_all_of_its_chunk():
    source = chunk(3, 0.5)
    _, (event,) = Emitter(40).settled([history(source)])
    assert event.frames is source.frames and event.latents is source.latents
    assert (event.index, event.seed, event.scores, event.route) == (
        3,
        45,
        source.scores,
        source.route,
    )


def test_only_the_shared_beginning_settles():
    a, b = chunk(0), chunk(1)
    ours, theirs = history(a, b, chunk(2, 0.1)), history(a, b, chunk(2, 0.2))
    left, events = Emitter(40).settled([ours, theirs])
    assert indices(events) == [0, 1]
    assert [s.unsettled for s in left] == [ours.unsettled[2:], theirs.unsettled[2:]]


def test_equal_chunks_of_different_histories_are_not_shared():
    """A later agreement does not undo an earlier difference, and looking alike is not being the same."""
    end = chunk(1)
    left, events = Emitter(40).settled([history(chunk(0), end), history(chunk(0), end)])
    assert events == [] and all(len(s.unsettled) == 2 for s in left)


def test_a_history_that_disappears_settles_what_it_alone_doubted():
    emitter, shared = Emitter(40), chunk(0)
    ours, theirs = history(shared, chunk(1, 0.1)), history(shared, chunk(1, 0.2))
    (ours, _), first = emitter.settled([ours, theirs])
    newest = chunk(2)
    (ours,), second = emitter.settled([replace(ours, unsettled=(*ours.unsettled, newest))])
    assert indices(first + second) == [0, 1, 2]


def test_flushing_shows_what_is_left_of_the_winner():
    emitter = Emitter(40)
    (_, theirs), events = emitter.settled([history(chunk(0)), history(chunk(0, 0.5))])
    assert events == []
    (event,) = emitter.flush(theirs)
    assert event.scores.short == 0.5


@pytest.mark.parametrize(("horizon", "want"), [(40, [0, 1, 2, 3]), (3, [1, 2, 3]), (1, [3])])
def test_a_whole_video_is_its_last_chunks_within_the_horizon(horizon, want):
    emitter, shared = Emitter(horizon), [chunk(0), chunk(1)]
    ours = history(*shared, chunk(2), chunk(3))
    (ours, _), _ = emitter.settled([ours, history(*shared, chunk(2, 0.5), chunk(3, 0.5))])
    video = emitter.whole(ours, 99)
    assert video[::2, 0].flatten().tolist() == want and len(video) == 2 * len(want)


def test_only_the_horizon_is_remembered():
    emitter = Emitter(3)
    for index in range(10):
        emitter.settled([history(chunk(index))])
    assert [frames[0, 0].item() for frames in emitter.shown] == [7, 8, 9]
