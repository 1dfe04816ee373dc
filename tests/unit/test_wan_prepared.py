"""What is prepared once gives what was computed every time: the vectors of a timestep, and one product for q, k and v."""

import copy

import pytest
import torch

from runtime.generators.wan import DiTConfig, WanDiT
from runtime.generators.wan_layers import dense_attention
from tests.tiny import generator_of, scrambled

CONFIG = DiTConfig(
    dim=48, heads=4, layers=2, ffn_dim=40, freq_dim=16, text_dim=10, text_len=6, channels=4
)


@pytest.fixture
def dit() -> WanDiT:
    torch.manual_seed(0)
    return scrambled(WanDiT(CONFIG)).double()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator_of(len(shape)), dtype=torch.float64)


def attend(layer, q, k, v):
    return dense_attention(q, k, v)


def flow(dit: WanDiT, timestep, x=None) -> torch.Tensor:
    x = normal(2, 3, CONFIG.channels, 4, 6) if x is None else x
    text = dit.text_context(normal(1, 5, CONFIG.text_dim))
    return dit(x, timestep, text, dit.rope(torch.arange(3)[None], 4, 6), attend)


@torch.no_grad()
def test_a_moment_made_once_serves_every_row_and_frame(dit):
    want = flow(dit, torch.full((2, 3), 625.0, dtype=torch.float64))
    moment = dit.moment(torch.full((1, 1), 625.0, dtype=torch.float64))
    assert (flow(dit, moment) - want).abs().max() < 1e-12
    other = dit.moment(torch.full((1, 1), 624.0, dtype=torch.float64))
    assert (flow(dit, other) - want).abs().max() > 1e-6


@torch.no_grad()
def test_joined_weights_keep_their_names_and_values(dit):
    times = torch.full((2, 3), 625.0, dtype=torch.float64)
    want, state = flow(dit, times), copy.deepcopy(dit.state_dict())
    dit.join_()
    assert all(torch.equal(value, state[name]) for name, value in dit.state_dict().items())
    assert len(state) == len(dit.state_dict())
    q, _, v = dit.blocks[0].projected(normal(1, 5, CONFIG.dim))
    assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert (flow(dit, times) - want).abs().max() < 1e-12


@torch.no_grad()
def test_weights_that_moved_or_were_loaded_anew_are_the_ones_that_count(dit):
    times = torch.full((2, 3), 625.0, dtype=torch.float64)
    dit.join_()
    dit.load_state_dict({name: 1.1 * value for name, value in dit.state_dict().items()})
    loaded = WanDiT(CONFIG).double()
    loaded.load_state_dict(dit.state_dict())
    assert (flow(dit, times) - flow(loaded, times)).abs().max() < 1e-12
    dit.float().double()
    dit.blocks[0].self_attn.q.weight.mul_(2)
    loaded.load_state_dict(dit.state_dict())
    assert (flow(dit, times) - flow(loaded, times)).abs().max() < 1e-12


def test_gradients_reach_weights_that_were_joined(dit):
    dit.join_()
    flow(dit, torch.full((2, 3), 625.0, dtype=torch.float64)).square().sum().backward()
    for linear in (dit.blocks[0].self_attn.q, dit.blocks[1].self_attn.v):
        assert linear.weight.grad is not None and linear.weight.grad.abs().max() > 0
