"""Work beside the main stream changes nothing but time, and is waited for where it must be."""

import pytest
import torch

from runtime.lanes import Lanes


def test_on_a_cpu_everything_runs_where_it_stands():
    lanes = Lanes(torch.device("cpu"), True)
    with lanes.beside("reward"):
        x = torch.ones(3)
    lanes.join()
    assert torch.equal(x, torch.ones(3)) and not lanes.enabled and not lanes.streams


def test_what_fails_inside_fails_outside():
    lanes = Lanes(torch.device("cpu"), True)
    with pytest.raises(ArithmeticError), lanes.beside("reward"):
        raise ArithmeticError
    lanes.join()


@pytest.mark.gpu
@pytest.mark.parametrize("enabled", [False, True])
def test_lanes_begin_after_the_main_stream_and_it_goes_on_after_them(enabled):
    lanes = Lanes(torch.device("cuda"), enabled)
    big = torch.randn(4096, 4096, device="cuda")
    for _ in range(5):
        x = (big @ big).tanh()
        with lanes.beside("one"):
            one = (x @ x).sum()
        with lanes.beside("two"):
            two = (x * x).sum()
        lanes.join()
        both = one + two
        assert torch.equal(both, (x @ x).sum() + (x * x).sum())
    assert len(lanes.streams) == (2 if enabled else 0) and not lanes.open
