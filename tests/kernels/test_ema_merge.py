"""Folding a block into a sink: keys land where the sink lies, nothing else moves, roundings are as stated."""

import math

import pytest
import torch

from runtime.generators.wan_layers import rope_angles, rotate
from runtime.kernels.ema_merge import ema_merge_reference, shift_keys, temporal_turn
from runtime.memory import KVPool

SHAPES = [(2, 3, 1, 6), (4, 6, 3, 10), (6, 9, 1, 16), (2, 30, 5, 26)]  # P, S, H, D


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def rotated(plain: torch.Tensor, start_frame: int) -> torch.Tensor:
    """Keys [P, S, H, D] of a chunk of 3 frames born at ``start_frame``; S / 3 tokens a frame, in one row."""
    frames = torch.tensor([[start_frame, start_frame + 1, start_frame + 2]])
    angles = rope_angles(frames, 1, plain.shape[1] // 3, plain.shape[-1])
    return rotate(plain, angles.cos(), angles.sin())


def exact(sink, evicted, alpha, shift):
    """The formula in float64, pair by pair."""
    layers, pairs = sink.shape[0] // 2, sink.shape[-1] // 2
    temporal = pairs - 2 * (pairs // 3)
    moved = evicted.double().clone()
    for j in range(temporal):
        angle = shift * 10000 ** (-j / temporal)
        x, y = evicted[:layers, ..., 2 * j].double(), evicted[:layers, ..., 2 * j + 1].double()
        moved[:layers, ..., 2 * j] = x * math.cos(angle) - y * math.sin(angle)
        moved[:layers, ..., 2 * j + 1] = x * math.sin(angle) + y * math.cos(angle)
    return alpha * sink.double() + (1 - alpha) * moved


@pytest.mark.parametrize("start", [0, 3, 999, 40_000])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shifted_key_is_the_key_born_there(shape, start):
    plain = normal(shape, 0)
    got = shift_keys(rotated(plain, start + 12), -12)
    assert (got - rotated(plain, start)).abs().max() < 1e-10


def test_shifts_add_up_and_zero_is_no_copy():
    keys = normal((2, 6, 1, 12), 0)
    assert (shift_keys(shift_keys(keys, 7), -19) - shift_keys(keys, -12)).abs().max() < 1e-14
    assert shift_keys(keys, 0) is keys


def test_only_temporal_pairs_turn():
    cos, sin = temporal_turn(5.0, 8, 4, torch.device("cpu"))
    assert (cos[4:] == 1).all() and (sin[4:] == 0).all() and (sin[:4] != 0).all()
    keys = normal((1, 3, 2, 16), 0)
    assert torch.equal(shift_keys(keys, 5)[..., 8:], keys[..., 8:])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_merge_is_the_formula(shape, alpha):
    sink, evicted = normal(shape, 0), normal(shape, 1)
    got = ema_merge_reference(sink, evicted, alpha, -9)
    assert got.dtype == torch.float64
    assert (got - exact(sink, evicted, alpha, -9)).abs().max() < 1e-14


def test_keys_average_as_if_both_were_born_at_the_sink():
    """Without positions: alpha * k_sink + (1 - alpha) * k_evicted, then rotated at the sink's place."""
    a, b = normal((2, 6, 2, 12), 0), normal((2, 6, 2, 12), 1)
    sink, evicted = rotated(a, 3), rotated(b, 27)
    sink[1:], evicted[1:] = a[1:], b[1:]  # values carry no position
    got = ema_merge_reference(sink, evicted, 0.9, 3 - 27)
    assert (got[:1] - rotated(0.9 * a + 0.1 * b, 3)[:1]).abs().max() < 1e-14
    assert (got[1:] - (0.9 * a + 0.1 * b)[1:]).abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_merge_is_no_worse_than_torch(shape, dtype):
    sink, evicted = normal(shape, 0, dtype), normal(shape, 1, dtype)
    want = exact(sink, evicted, 0.9, -9)
    plain = ema_merge_reference(sink, evicted, 0.9, -9, rounding="released").double()
    got = ema_merge_reference(sink, evicted, 0.9, -9).to(dtype)
    error = (got.double() - want).abs().max()
    budget = 2 * (plain - want).abs().max()
    assert error <= max(budget, torch.finfo(dtype).eps * want.abs().max())


def test_the_released_rounding_rounds_three_times():
    sink, evicted = normal((2, 3, 1, 6), 0, torch.bfloat16), normal((2, 3, 1, 6), 1, torch.bfloat16)
    moved = torch.cat([shift_keys(evicted[:1], -3), evicted[1:]])
    got = ema_merge_reference(sink, evicted, 0.9, -3, rounding="released")
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, (0.9 * sink).bfloat16() + ((1 - 0.9) * moved).bfloat16())


def test_a_shadow_is_what_is_averaged():
    sink, evicted = normal((2, 3, 1, 6), 0, torch.bfloat16), normal((2, 3, 1, 6), 1, torch.bfloat16)
    shadow = normal((2, 3, 1, 6), 2, torch.float32)
    got = ema_merge_reference(sink, evicted, 0.75, 0, shadow=shadow)
    assert got.dtype == torch.float32
    assert torch.equal(got, 0.75 * shadow + 0.25 * evicted.float())


def test_inputs_are_left_alone():
    sink, evicted = normal((2, 3, 1, 6), 0), normal((2, 3, 1, 6), 1)
    before = sink.clone(), evicted.clone()
    for rounding in ("once", "released"):
        ema_merge_reference(sink, evicted, 0.5, -3, rounding=rounding)
    assert torch.equal(sink, before[0]) and torch.equal(evicted, before[1])


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("target", "source", "evicted"), [(1, 1, 4), (3, 1, 0), (5, 2, 4)])
def test_a_pool_moves_the_target_block_and_no_other(target, source, evicted, dtype, released):
    pool = KVPool(7, (4, 3, 2, 10), dtype, "cpu")
    pool.kv.copy_(normal(tuple(pool.kv.shape), 0, dtype))
    before = pool.kv.clone()
    pool.merge_(target, source, evicted, 0.5, -6, released)
    others = [block for block in range(7) if block != target]
    assert torch.equal(pool.kv[:, others], before[:, others])
    want = exact(before[:, source], before[:, evicted], 0.5, -6)
    error = (pool.kv[:, target].double() - want).abs().max()
    assert error <= 3 * torch.finfo(dtype).eps * want.abs().max()  # three roundings at most


def test_errors_say_what_is_wanted():
    block = torch.zeros(2, 3, 1, 6)
    with pytest.raises(ValueError, match=r"evicted: want \[2, 3, 1, 6\] torch.float32 as the sink"):
        ema_merge_reference(block, torch.zeros(2, 3, 1, 8), 0.9, 0)
    with pytest.raises(ValueError, match=r"got \[2, 3, 1, 6\] torch.float64"):
        ema_merge_reference(block, block.double(), 0.9, 0)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"alpha: want a value in \[0, 1\], got"):
            ema_merge_reference(block, block, alpha, 0)
