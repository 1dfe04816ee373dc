"""The precision benchmark measures what it says: float32 against itself is nothing, 8 bits are something, and not much."""

import sys

import pytest
import torch

from runtime.bench import precision
from runtime.settings import LINEARS


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    return list(precision.measure("sprites", torch.device("cpu"), torch.float32, samples=1))


def test_every_way_has_a_row_that_says_what_ran(rows):
    assert [row.linears.split(" ")[0] for row in rows] == list(LINEARS)
    assert all(row.passes == 4 and row.pass_ms > 0 for row in rows)


def test_dense_in_the_same_dtype_is_exact_but_for_the_kernels(rows):
    assert rows[0].max_error < 1e-4 and rows[0].relative_error < 1e-5


def test_eight_bits_cost_a_few_per_cent_of_the_trained_model_s_x0(rows):
    for row in rows[1:]:
        assert 1e-3 < row.relative_error_1 < 0.15 and 1e-3 < row.relative_error < 0.15
        assert row.relative_error < row.max_error


def test_the_error_is_of_the_whole_relative_to_the_whole():
    assert precision.error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == (1.0, 0.2)


def test_draws_and_weights_are_the_same_in_every_precision():
    exact = precision.subject("sprites-256", torch.device("cpu"))
    other = exact.to(torch.bfloat16, "dense")
    assert other.noise is exact.noise and other.dtype == torch.bfloat16
    weight = exact.dit.blocks[0].ffn[0].weight
    assert torch.equal(other.dit.blocks[0].ffn[0].weight, weight.bfloat16())
    assert exact.dtype == torch.float32 and exact.dit.linears == "dense"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["precision", "--device", "cuda"])
    with pytest.raises(SystemExit):
        precision.main()
    assert "this machine has no usable GPU" in capsys.readouterr().err
