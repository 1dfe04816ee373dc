"""Which noise levels run, and what a flow means at each."""

import pytest
import torch

from runtime.generators.schedule import Schedule, all_sigmas, sigma_at, to_x0
from runtime.kernels.slerp_noise import renoise_reference

WARPED = [1000.0, 937.5, 833.3333, 625.0]


def test_the_released_steps_warp_to_the_published_timesteps():
    schedule = Schedule.warped()
    assert schedule.timesteps == pytest.approx(WARPED, abs=1e-4)
    assert schedule.sigmas == pytest.approx([t / 1000 for t in WARPED], abs=1e-7)
    assert schedule.passes == 4


def test_timesteps_and_sigmas_hold_float32_values_exactly():
    schedule = Schedule.warped()
    for value in schedule.timesteps + schedule.sigmas:
        assert torch.tensor(value, dtype=torch.float32).item() == value


def test_without_a_shift_steps_stay_where_they_are():
    schedule = Schedule.warped((900, 333, 1), shift=1.0)
    assert schedule.timesteps == pytest.approx((900, 333, 1), abs=1e-3)


def test_all_sigmas_fall_from_one():
    sigmas = all_sigmas(5.0)
    assert sigmas.shape == (1000,) and sigmas.dtype == torch.float32
    assert sigmas[0] == 1 and (sigmas.diff() < 0).all() and sigmas[-1] > 0


def test_the_clean_pass_maps_to_the_nearest_level():
    assert sigma_at(0.0) == pytest.approx(0.00498, abs=1e-5)
    assert sigma_at(0.0) == all_sigmas(5.0)[-1].item()


@pytest.mark.parametrize("step", [1, 250, 501, 1000])
def test_a_timestep_finds_its_own_level(step):
    sigma = all_sigmas(5.0)[1000 - step]
    assert sigma_at((sigma * 1000).item()) == sigma.item()
    assert sigma_at((sigma * 1000).item() + 0.01) == sigma.item()


@pytest.mark.parametrize(
    "steps", [(), (0,), (1001,), (500, 750), (750, 750), (-1,), (1000, 500, 750)], ids=str
)
def test_steps_that_do_not_fall_are_refused(steps):
    with pytest.raises(ValueError, match=r"steps: want falling values in 1..1000, got \["):
        Schedule.warped(steps)


@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_a_shift_that_is_not_positive_is_refused(shift):
    with pytest.raises(ValueError, match="shift: want a positive number, got"):
        Schedule.warped(shift=shift)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sigma", Schedule.warped().sigmas)
def test_a_flow_points_from_the_clean_latents_to_the_noise(sigma, dtype):
    source = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 3, 4, 5, 6, generator=source, dtype=torch.float64) for _ in range(2))
    noisy = renoise_reference(x0, eps, sigma).to(dtype)
    got = to_x0(noisy, (eps - x0).to(dtype), sigma)
    assert got.dtype == dtype
    assert (got.double() - x0).abs().max() <= 8 * torch.finfo(dtype).eps


def test_x0_is_computed_in_float64_and_rounded_once():
    source = torch.Generator().manual_seed(0)
    noisy, flow = (torch.randn(1001, generator=source) for _ in range(2))
    want = (noisy.double() - 0.9375 * flow.double()).float()
    assert torch.equal(to_x0(noisy, flow, 0.9375), want)
