"""A guarded reward always answers: with scores where the model can be brought to give some, else with NaN and a reason."""

import gc
import threading
import weakref

import pytest
import torch

from runtime.guarding import clip_rows, guarded
from runtime.types import Clip, Picking, RewardModel
from runtime.window import Window

PATIENCE_S = 60.0  # for what is expected to happen; nothing waits that long
SHORT_S = 0.05  # for what is expected not to


def clip_of(rows: int, chunk: int = 5) -> Clip:
    """Clips whose every pixel is the row's number."""
    frames = torch.arange(rows, dtype=torch.float32).view(rows, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4)
    return Clip(frames.clone(), "a prompt", 16, chunk)


class Means:
    """A model that scores a clip by its mean, after ``trouble`` had a look at the clip and the number of the call."""

    horizon = 3

    def __init__(self, trouble=lambda clip, call: None) -> None:
        self.trouble, self.calls = trouble, []

    def score(self, clip: Clip) -> torch.Tensor:
        self.calls.append(clip.frames[:, 0, 0, 0, 0].int().tolist())
        self.trouble(clip, len(self.calls))
        return clip.frames.mean((1, 2, 3, 4))


class Picks(Means):
    def picks(self, frames: int, fps: int) -> list[int]:
        return [frames - 1]


def assert_scores(got: torch.Tensor, want: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor([*map(float, want)]), equal_nan=True)


NAN = float("nan")


def test_a_guarded_model_is_what_the_model_is():
    for model in (Means(), Picks()):
        guard = guarded(model, "image")
        assert guard.horizon == 3 and isinstance(guard, Picking) == isinstance(model, Picking)
    assert guarded(Picks(), "image").picks(9, 16) == [8]


def test_a_model_without_faults_is_asked_once_and_its_answer_is_untouched():
    class Own(Means):
        def score(self, clip: Clip) -> torch.Tensor:
            self.answer = super().score(clip).double()
            return self.answer

    model: RewardModel = Own()
    guard = guarded(model, "image")
    assert guard.score(clip_of(4)) is model.answer
    assert model.calls == [[0, 1, 2, 3]] and guard.take() == ()


def test_a_model_that_raises_once_is_asked_once_more():
    def trouble(clip, call):
        if call == 1:
            raise ValueError("a hiccup")

    model = Means(trouble)
    guard = guarded(model, "image")
    assert_scores(guard.score(clip_of(3)), [0, 1, 2])
    assert model.calls == [[0, 1, 2]] * 2 and guard.take() == ()


def test_a_clip_that_a_model_cannot_take_is_out_and_the_others_are_not():
    def trouble(clip, call):
        if 2 in clip.frames:
            raise KeyError("a two\nand more lines")

    model = Means(trouble)
    guard = guarded(model, "video")
    assert_scores(guard.score(clip_of(4)), [0, 1, NAN, 3])
    assert model.calls == [[0, 1, 2, 3]] * 2 + [[0], [1], [2], [3]]
    (incident,) = guard.take()
    assert (incident.role, incident.chunk, incident.rows) == ("video", 5, (2,))
    assert incident.kind == "raised" and incident.reason.startswith("KeyError: 'a two")
    assert incident.sentence.startswith(
        "video reward: no score for 1 candidate of chunk 5 (raised)"
    )
    assert guard.take() == ()


def test_a_model_that_takes_no_clip_is_one_incident():
    def trouble(clip, call):
        raise OSError

    model = Means(trouble)
    guard = guarded(model, "image")
    assert_scores(guard.score(clip_of(3)), [NAN] * 3)
    (incident,) = guard.take()
    assert incident.rows == (0, 1, 2) and incident.reason == "OSError"
    assert len(model.calls) == 2 + 3
    guard.score(clip_of(1))
    assert len(model.calls) == 2 + 3 + 2, "one clip is not asked about a third time"


@pytest.mark.parametrize("shape", [(3, 1), (), (2,)], ids=str)
def test_a_wrong_shape_is_a_fault_with_a_name(shape):
    class Wrong(Means):
        def score(self, clip: Clip) -> torch.Tensor:
            return torch.zeros(shape)

    guard = guarded(Wrong(), "image")
    assert_scores(guard.score(clip_of(3)), [NAN] * 3)
    (incident,) = guard.take()
    assert "image reward: want one score per clip [1], got" in incident.reason


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("deadline_s", [0.0, PATIENCE_S])
def test_what_ends_the_process_is_not_a_rewards_fault(interrupt, deadline_s):
    def trouble(clip, call):
        raise interrupt

    model = Means(trouble)
    guard = guarded(model, "image", deadline_s)
    with pytest.raises(interrupt):
        guard.score(clip_of(2))
    assert len(model.calls) == 1 and guard.take() == ()


# Memory.


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_a_batch_that_does_not_fit_is_halved_and_the_scores_are_equal(most, error):
    def trouble(clip, call):
        if len(clip.frames) > most:
            raise error("simulated")

    model = Means(trouble)
    guard = guarded(model, "image")
    assert_scores(guard.score(clip_of(7)), [0, 1, 2, 3, 4, 5, 6])
    assert guard.take() == ()
    tried = len(model.calls)
    guard.score(clip_of(7))
    assert all(len(call) <= most for call in model.calls[tried:]), "what does not fit is tried once"


def test_what_was_judged_before_memory_ran_out_is_not_judged_again():
    def trouble(clip, call):
        if len(clip.frames) > 2:
            raise torch.OutOfMemoryError

    model = Means(trouble)
    guarded(model, "image").score(clip_of(4))
    assert model.calls == [[0, 1, 2, 3], [0, 1], [2, 3]]


def test_one_clip_that_does_not_fit_is_an_incident():
    def trouble(clip, call):
        if 1 in clip.frames:
            raise torch.OutOfMemoryError("tried to allocate 99 GiB")

    guard = guarded(Means(trouble), "video")
    assert_scores(guard.score(clip_of(4)), [0, NAN, 2, 3])
    (incident,) = guard.take()
    assert (incident.kind, incident.rows) == ("memory", (1,)) and "99 GiB" in incident.reason


def test_a_failed_attempts_tensors_are_gone_before_the_next():
    class Big:
        pass

    alive: list[weakref.ref] = []

    def trouble(clip, call):
        assert all(one() is None for one in alive), "a traceback keeps what did not fit"
        big = Big()
        alive.append(weakref.ref(big))
        if len(clip.frames) > 1:
            raise torch.OutOfMemoryError if call % 2 else ValueError

    guard = guarded(Means(trouble), "image")
    assert_scores(guard.score(clip_of(4)), [0, 1, 2, 3])


def test_parts_of_a_batch_keep_their_twins_and_lose_those_elsewhere():
    same, other = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    window = Window(torch.rand(4, 1, 3, 4, 4), ((same,), (other,), (same,), (same,)))
    clip = Clip(window.whole(), "", 16, 1, window.twins(range(3)))
    assert clip.twins == ((0, 0, 0), (1, 1, 1), (0, 0, 2), (0, 0, 3))
    assert clip_rows(clip, range(1, 4)).twins == ((0, 0, 0), (1, 1, 1), (1, 1, 2))
    assert clip_rows(clip, range(2, 3)).twins == ((0, 0, 0),)
    for rows in (range(1, 4), range(2, 3), range(4)):
        part = window[rows.start : rows.stop]
        assert clip_rows(clip, rows).twins == part.twins(range(3))
        assert torch.equal(clip_rows(clip, rows).frames, part.whole())
    assert clip_rows(Clip(clip.frames, "", 16, 1), range(2)).twins == ()


# Deadlines.


def waiting(gate: threading.Event):
    def trouble(clip, call):
        assert gate.wait(PATIENCE_S)

    return trouble


def test_what_is_late_is_no_score_and_dropped_when_it_comes():
    gate, ready = threading.Event(), threading.Event()

    def trouble(clip, call):
        if clip.chunk == 5:
            assert gate.wait(PATIENCE_S)
            ready.set()

    model = Means(trouble)
    guard = guarded(model, "image", SHORT_S)
    assert_scores(guard.score(clip_of(2)), [NAN, NAN])
    (incident,) = guard.take()
    assert (incident.kind, incident.rows) == ("late", (0, 1)) and "0.05 s" in incident.reason
    # It still runs, and what comes next waits for its own deadline and no longer.
    assert_scores(guard.score(clip_of(3, chunk=6)), [NAN] * 3)
    assert len(guard.take()) == 1 and len(model.calls) == 1
    gate.set()
    assert ready.wait(PATIENCE_S)
    guard.deadline_s = PATIENCE_S
    assert_scores(guard.score(clip_of(4, chunk=7)), [0, 1, 2, 3])
    assert guard.take() == () and len(model.calls) == 2


def test_a_model_in_time_is_what_it_is_without_a_deadline():
    def trouble(clip, call):
        if 1 in clip.frames:
            raise ValueError("a one")

    guard = guarded(Means(trouble), "image", PATIENCE_S)
    for _ in range(3):
        assert_scores(guard.score(clip_of(3)), [0, NAN, 2])
        (incident,) = guard.take()
        assert incident.rows == (1,)


def test_parts_of_a_batch_share_one_end():
    model = Means()
    guard = guarded(model, "image", PATIENCE_S)
    end = guard.end
    assert_scores(guard.score(clip_of(2), end), [0, 1])
    assert_scores(guard.score(clip_of(2), end - PATIENCE_S - 1), [NAN] * 2)
    assert len(model.calls) == 1 and [one.kind for one in guard.take()] == ["late"]


def test_the_work_runs_as_the_callers_does():
    seen = []
    guard = guarded(Means(lambda *_: seen.append(torch.is_grad_enabled())), "image", PATIENCE_S)
    with torch.no_grad():
        guard.score(clip_of(1))
    with torch.enable_grad():
        guard.score(clip_of(1))
    assert seen == [False, True]


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_a_thread_is_there_for_deadlines_alone_and_goes_with_its_reward():
    before = threads()
    guard = guarded(Means(), "image")
    guard.score(clip_of(1))
    assert threads() == before
    guard = guarded(Means(), "a role of its own", SHORT_S)
    assert threads() == before
    guard.deadline_s = PATIENCE_S
    guard.score(clip_of(1))
    guard.score(clip_of(1))
    assert threads() - before == {"a role of its own reward"}
    (thread,) = [t for t in threading.enumerate() if t.name == "a role of its own reward"]
    del guard
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_model_that_hangs_holds_the_frames_of_one_clip_alone():
    gate = threading.Event()
    guard = guarded(Means(waiting(gate)), "image", SHORT_S)
    guard.score(clip_of(1))
    frames = []
    for _ in range(3):
        clip = clip_of(1)
        frames.append(weakref.ref(clip.frames))
        guard.score(clip)
        del clip
    gc.collect()
    assert [one() for one in frames] == [None] * 3
    gate.set()


@pytest.mark.gpu
def test_on_a_gpu_work_that_the_device_has_not_done_in_time_is_late_and_holds_up_nobody():
    busy = [True]

    class OnDevice(Means):
        def score(self, clip: Clip) -> torch.Tensor:
            if busy[0]:
                torch.cuda._sleep(4_000_000_000)  # cycles: seconds of device work, queued at once
            return super().score(clip)

    frames = clip_of(3).frames.cuda()
    clip = Clip(frames, "", 16, 5)
    guard = guarded(OnDevice(), "image", 0.2)
    assert_scores(guard.score(clip).cpu(), [NAN] * 3)
    assert [one.kind for one in guard.take()] == ["late"]
    frames.sum().item()  # the caller's stream has nothing of it to wait for
    assert not guard._errand._last.done(), "the caller waited for the late work"
    busy[0] = False
    guard.deadline_s = PATIENCE_S
    assert_scores(guard.score(clip).cpu(), [0, 1, 2])
    assert guard.take() == ()
