"""How a merged sink is rounded decides whether it moves: three roundings lose the way, the shadow and the dice keep it."""

import math

import pytest
import torch

from runtime.bench import ema_drift
from runtime.kernels import native
from runtime.kernels.ema_merge import (
    STREAM,
    Ema,
    ema_merge_,
    ema_merge_reference,
    shift_keys,
    stochastic_reference,
)
from runtime.kernels.philox import philox_words_reference

BUILT = native.find()[0] is not None
IMPLS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="not built"))]
SHAPE = (4, 27, 4, 32)  # P, S, H, D


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def video(merges: int) -> ema_drift.Blocks:
    """A sink and what leaves after it: channel means, a scene that is not the sink's and drifts, keys where they were
    born."""
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64)

    planes, _, heads, head_dim = SHAPE
    mean, scene = draw(planes, 1, heads, head_dim), 0.2 * draw(*SHAPE)
    blocks = [((mean + 0.2 * draw(*SHAPE)).bfloat16(), 0)]
    for number in range(1, merges + 1):
        scene += 0.02 * draw(*SHAPE)
        block = mean + scene
        block[: planes // 2] = shift_keys(block[: planes // 2], 3 * number)
        blocks.append((block.bfloat16(), 3 * number))
    return blocks


@pytest.fixture(scope="module")
def blocks() -> ema_drift.Blocks:
    return video(100)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_hundred_merges_arrive_with_a_shadow(blocks, impl):
    """Within one rounding of the float64 trajectory, however many merges it was."""
    drift = ema_drift.walk("fp32_shadow", blocks, impl)
    assert abs(drift.reached[-1] - 1) < 1e-3
    assert drift.errors.abs().max() < 0.51


@pytest.mark.parametrize("impl", IMPLS)
def test_a_hundred_merges_arrive_on_average_when_rounded_at_random(blocks, impl):
    drift = ema_drift.walk("stochastic", blocks, impl)
    elements = drift.errors.numel()
    # A rounding moves an element by less than one ulp, so 100 of them have a standard deviation of at most 5.
    assert drift.errors.abs().max() < 5 * 10
    assert drift.errors.std() < 5
    assert drift.errors.mean().abs() < 5 * drift.errors.std() / math.sqrt(elements)
    assert abs(drift.reached[-1] - 1) < 0.03


@pytest.mark.parametrize("impl", IMPLS)
def test_a_hundred_merges_hardly_move_with_the_released_roundings(blocks, impl):
    drift = ema_drift.walk("released", blocks, impl)
    assert drift.reached[-1] < 0.25
    assert drift.unmoved > 0.6


def test_one_bfloat16_rounding_is_what_loses_the_way(blocks):
    """Without a shadow even a single rounding per merge does: the storage is the point, not the arithmetic."""
    assert ema_drift.walk("once", blocks).reached[-1] < 0.25


def test_a_float32_sink_needs_no_trick(blocks):
    wide = [(block.float(), born) for block, born in blocks]
    assert abs(ema_drift.walk("once", wide).reached[-1] - 1) < 1e-5


def test_0_999_times_a_bfloat16_is_the_same_bfloat16():
    every = torch.arange(2**15).to(torch.int16).view(torch.bfloat16)
    finite = every[every.isfinite() & (every > 2.0**-120)]
    assert torch.equal(0.999 * finite, finite)


def test_the_released_rounding_rounds_three_times_and_after_the_turn():
    sink, evicted = (normal(SHAPE, seed, torch.bfloat16) for seed in (0, 1))
    moved = torch.cat([shift_keys(evicted[:2], -3), evicted[2:]])
    assert moved.dtype == torch.bfloat16
    got = ema_merge_reference(sink, evicted, Ema(0.9, -3, "released"))
    assert torch.equal(got, (0.9 * sink).bfloat16() + ((1 - 0.9) * moved).bfloat16())


@pytest.mark.parametrize("impl", IMPLS)
def test_the_shadow_is_what_is_averaged_and_the_sink_is_not_read(impl):
    evicted, shadow = normal(SHAPE, 1, torch.bfloat16), normal(SHAPE, 2, torch.float32)
    out, unread = torch.empty_like(evicted), torch.full_like(evicted, math.nan)
    shadow_out = torch.empty_like(shadow)
    ema_merge_(out, unread, evicted, Ema(0.75, 0, "fp32_shadow"), shadow_in=shadow,
               shadow_out=shadow_out, impl=impl)  # fmt: skip
    assert torch.equal(shadow_out, 0.75 * shadow + 0.25 * evicted.float())
    assert torch.equal(out, shadow_out.bfloat16())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_shadow_may_be_updated_in_place(impl):
    evicted, shadow = normal(SHAPE, 1, torch.bfloat16), normal(SHAPE, 2, torch.float32)
    fresh, out = torch.empty_like(shadow), torch.empty_like(evicted)
    how = Ema(0.75, -6, "fp32_shadow")
    ema_merge_(out, out, evicted, how, shadow_in=shadow, shadow_out=fresh, impl=impl)
    ema_merge_(out, out, evicted, how, shadow_in=shadow, shadow_out=shadow, impl=impl)
    assert torch.equal(shadow, fresh)


# Rounding at random.


def halves(planes: int, elements: int, seed: int, step: int) -> torch.Tensor:
    """The 16 bits of every element, one at a time, by the sentence in ``stochastic_reference``."""
    key = torch.tensor([seed % 2**32, seed // 2**32])
    out = torch.empty(planes, elements, dtype=torch.int64)
    for plane in range(planes):
        for e in range(elements):
            counter = torch.tensor([e // 8, plane, step, STREAM])
            word = philox_words_reference(counter, key)[e % 8 // 2].item()
            out[plane, e] = word >> 16 if e % 2 else word & 0xFFFF
    return out


def test_each_element_takes_the_bits_that_the_sentence_says():
    seed, step, shape = 2**40 + 3, 9, (2, 1, 3, 6)
    random = halves(2, 18, seed, step).view(shape)
    mixed = normal(shape, 0, torch.float32)
    cut = mixed.view(torch.int32) & 0xFFFF  # goes up when these and the random bits carry
    down = (mixed.view(torch.int32) - cut).view(torch.float32)
    up = (down.view(torch.int32) + (1 << 16)).view(torch.float32)
    want = torch.where(cut + random >= 1 << 16, up, down)
    assert torch.equal(stochastic_reference(mixed, seed, step).float(), want)


@pytest.mark.parametrize("impl", IMPLS)
def test_rounding_at_random_is_unbiased_and_never_skips_a_value(impl):
    """The mean over 400 seeds is the value itself, within five standard errors in each element; a bfloat16 stays."""
    shape, seeds = (2, 16, 4, 16), 400
    shadowless = normal(shape, 0, torch.bfloat16), normal(shape, 1, torch.bfloat16)
    mixed = ema_merge_reference(*shadowless, Ema(0.9, -3)).double()
    below = mixed.float().view(torch.int32) >> 16 << 16
    down = below.view(torch.float32).double()
    up = (below + (1 << 16)).view(torch.float32).double()
    total, out = torch.zeros(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.bfloat16)
    for seed in range(seeds):
        ema_merge_(out, *shadowless, Ema(0.9, -3, "stochastic", seed), impl=impl)
        got = out.double()
        assert ((got == down) | (got == up)).all()
        total += got
    share = (mixed - down) / (up - down)  # how often it should go up
    error = (up - down).abs() * (share * (1 - share) / seeds).sqrt()
    likely = (share * seeds > 10) & ((1 - share) * seeds > 10)  # often enough to be near normal
    score = ((total / seeds - mixed) / error.clamp_min(1e-12))[likely]
    assert score.numel() > 1500 and score.abs().max() < 5
    assert score.mean().abs() < 5 / math.sqrt(score.numel())
    assert 0.9 < score.std() < 1.1


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_a_bfloat16_already_stays(impl):
    sink = normal(SHAPE, 0, torch.bfloat16)
    out = torch.empty_like(sink)
    ema_merge_(out, sink, torch.zeros_like(sink), Ema(1.0, 0, "stochastic", 5), impl=impl)
    assert torch.equal(out, sink)


@pytest.mark.parametrize("impl", IMPLS)
def test_infinities_and_nan_survive_the_dice(impl):
    sink = torch.zeros(2, 1, 4, 16, dtype=torch.bfloat16)
    sink[0, 0, 0, 8:] = torch.tensor([math.inf, -math.inf, math.nan, 0, 1, -1, 3e38, -3e38])
    out = torch.empty_like(sink)
    ema_merge_(out, sink, torch.zeros_like(sink), Ema(1.0, 0, "stochastic", 5), impl=impl)
    assert torch.equal(out.isnan(), sink.isnan())
    assert torch.equal(out.nan_to_num(), sink.nan_to_num())


@pytest.mark.parametrize("impl", IMPLS)
def test_seed_step_and_plane_each_change_the_bits(impl):
    one = normal((1, *SHAPE[1:]), 0, torch.bfloat16).expand(SHAPE).contiguous()
    new = normal((1, *SHAPE[1:]), 1, torch.bfloat16).expand(SHAPE).contiguous()

    def merged(**bits: int) -> torch.Tensor:
        out = torch.empty_like(one)
        ema_merge_(out, one, new, Ema(0.9, 0, "stochastic", **bits), impl=impl)
        return out

    base = merged(seed=1, step=1)
    assert torch.equal(merged(seed=1, step=1), base)
    assert (base[0] != base[1]).any()  # the same numbers in two planes
    for bits in (
        {"seed": 2, "step": 1},
        {"seed": 1, "step": 2},
        {"seed": 1 + (1 << 32), "step": 1},
    ):
        changed = (merged(**bits) != base).double().mean()
        assert 0.1 < changed < 0.6


def test_the_drift_command_prints_and_draws(tmp_path, capsys, monkeypatch, blocks):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(ema_drift, "model_blocks", lambda merges: blocks[: merges + 1])
    assert ema_drift.main(["--merges", "5", "--plot", str(tmp_path / "drift.png")]) == 0
    assert (tmp_path / "drift.png").stat().st_size > 10_000
    assert "released" in capsys.readouterr().out


def test_the_drift_plot_takes_the_model_s_own_blocks():
    (sink, born), (_, later), *rest = ema_drift.model_blocks(2)
    assert (born, later, len(rest)) == (0, 3, 1)
    assert sink.dtype == torch.bfloat16 and sink.isfinite().all() and sink.float().std() > 0.01
