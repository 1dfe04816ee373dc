"""A recording does what the call does, at addresses of its own, and gives way where memory does not suffice."""

import logging

import pytest
import torch

from runtime.graph import GraphRunner, out_of_memory


class Lack:
    """Work that doubles its input and runs out of memory when told to."""

    def __init__(self, fails: int = 0) -> None:
        self.fails, self.calls = fails, 0

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        if self.calls <= self.fails:
            raise torch.OutOfMemoryError("no memory")
        return (2 * x,)


@pytest.mark.parametrize("mode", ["off", "rehearsal"])
def test_every_mode_gives_what_the_work_gives(mode):
    runner, work = GraphRunner(mode, "cpu"), Lack()
    for value in (1.0, 2.0, 3.0):
        x = torch.full((3,), value)
        (out,) = runner.run("double", work, (x,))
        assert torch.equal(out, 2 * x) and torch.equal(x, torch.full((3,), value))


def test_a_recording_keeps_its_addresses_and_never_touches_the_callers():
    runner = GraphRunner("rehearsal", "cpu")
    seen = []

    def work(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(x.data_ptr())
        return (x + 1,)

    given = [torch.zeros(4), torch.ones(4)]
    outs = [runner.run("a", work, (x,))[0].data_ptr() for x in given]
    assert len(set(outs)) == 1 and len(set(seen)) == 1
    assert not set(seen) & {x.data_ptr() for x in given}


def test_a_recording_goes_on_with_the_work_it_began_with():
    """Whatever a later call's work closes over, a captured graph would not see it."""
    runner = GraphRunner("rehearsal", "cpu")
    for factor in (2.0, 3.0):
        (out,) = runner.run("same key", lambda x, f=factor: (f * x,), (torch.ones(2),))
        assert torch.equal(out, torch.full((2,), 2.0))
    (other,) = runner.run("another key", lambda x: (3 * x,), (torch.ones(2),))
    assert torch.equal(other, torch.full((2,), 3.0))


def test_what_cannot_be_recorded_is_called_from_then_on(caplog):
    runner, work = GraphRunner("rehearsal", "cpu"), Lack(fails=1)
    with caplog.at_level(logging.WARNING):
        (out,) = runner.run("large", work, (torch.ones(2),))
    assert torch.equal(out, torch.full((2,), 2.0)) and work.calls == 2
    assert "no memory to record large" in caplog.text
    assert runner.too_large == {"large"} and not runner.recordings
    runner.run("large", work, (torch.ones(2),))
    assert work.calls == 3  # once, not recorded and replayed
    runner.run("small", work, (torch.ones(1),))
    assert list(runner.recordings) == ["small"]


def test_what_does_not_even_fit_as_a_call_is_the_callers_business():
    with pytest.raises(torch.OutOfMemoryError):
        GraphRunner("rehearsal", "cpu").run("huge", Lack(fails=2), (torch.ones(2),))


def test_other_errors_are_not_mistaken_for_a_lack_of_memory():
    def broken(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("a bug")

    runner = GraphRunner("rehearsal", "cpu")
    with pytest.raises(RuntimeError, match="a bug"):
        runner.run("broken", broken, (torch.ones(2),))
    assert not runner.too_large


def test_a_capture_that_ends_badly_for_want_of_memory_is_recognised():
    def capture() -> None:
        try:
            raise torch.OutOfMemoryError("the cause")
        finally:
            raise RuntimeError("the capture was invalidated")

    with pytest.raises(RuntimeError) as caught:
        capture()
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("a bug")) and not out_of_memory(None)


def test_modes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="want off, cuda or rehearsal, got 'on'"):
        GraphRunner("on", "cpu")
    with pytest.raises(ValueError, match="'cuda': captures work of a GPU, got device cpu"):
        GraphRunner("cuda", "cpu")


@pytest.mark.gpu
def test_a_captured_graph_gives_what_the_work_gives():
    runner = GraphRunner("cuda", "cuda")
    weight = torch.randn(64, 64, device="cuda")
    for seed in range(3):
        x = torch.randn(8, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
        (out,) = runner.run("product", lambda x: ((x @ weight).relu(),), (x,))
        assert torch.allclose(out, (x @ weight).relu())
    assert len(runner.recordings) == 1


@pytest.mark.gpu
def test_graphs_that_share_a_pool_do_not_disturb_each_other():
    runner = GraphRunner("cuda", "cuda")
    works = {key: (lambda x, k=key: (x.cumsum(0) * k + k,)) for key in (1, 2, 3)}
    for _ in range(2):
        kept = {
            key: runner.run(key, work, (torch.ones(1000, device="cuda"),))
            for key, work in works.items()
        }
        for key, (out,) in kept.items():
            assert torch.equal(out, torch.arange(1, 1001, device="cuda") * key + key)
