"""Blending noise: both forms agree where the paper means them to, and only slerp keeps the length elsewhere."""

import math

import pytest
import torch

from runtime.kernels.slerp_noise import PARALLEL, blend_reference, slerp_reference

BETAS = [-1.0, -0.7, -0.1, 0.0, 0.3, 1.0]
EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64)


def orthogonal(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of vectors of the same length at right angles."""
    a, b = normal(*shape).flatten(1), normal(*shape, seed=1).flatten(1)
    b = b - (a * b).sum(1, keepdim=True) / (a * a).sum(1, keepdim=True) * a
    b = b * a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True)
    return a.reshape(shape), b.reshape(shape)


def norms(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1)


def assert_near(got: torch.Tensor, want: torch.Tensor, roundings: float = 16) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= roundings * EPS * want.abs().max()


@pytest.mark.parametrize("beta", BETAS)
def test_blend_is_the_formula(beta):
    p, e = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    assert torch.equal(blend_reference(p, e, beta), beta * p + math.sqrt(1 - beta**2) * e)


@pytest.mark.parametrize("shape", [(1, 2), (2, 7), (3, 3, 4, 1, 5), (1, 1001)], ids=str)
@pytest.mark.parametrize("beta", BETAS)
def test_right_angles_make_slerp_the_blend(beta, shape):
    p, e = orthogonal(*shape)
    assert_near(slerp_reference(p, e, beta), blend_reference(p, e, beta))


@pytest.mark.parametrize("mix", [blend_reference, slerp_reference])
def test_beta_zero_is_the_fresh_draw_and_one_the_parents(mix):
    p, e = orthogonal(2, 33)
    assert_near(mix(p, e, 0.0), e)
    assert_near(mix(p, e, 1.0), p)
    assert_near(mix(p, e, -1.0), -p)


@pytest.mark.parametrize("share", [-0.95, -0.3, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("beta", BETAS)
def test_slerp_keeps_the_length_of_correlated_noise(beta, share):
    p, e = normal(3, 50), normal(3, 50, seed=1)
    e = share * p + math.sqrt(1 - share**2) * e
    want = beta**2 * norms(p) + (1 - beta**2) * norms(e)
    assert_near(norms(slerp_reference(p, e, beta)), want, roundings=64)


def test_blend_does_not_keep_it():
    p = normal(1, 50)
    assert norms(blend_reference(p, p, -0.1)) < 0.9 * norms(p)
    assert norms(blend_reference(p, p, 0.5)) > 1.3 * norms(p)


@pytest.mark.parametrize("factor", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
def test_parallel_noise_keeps_its_direction(beta, factor):
    p = normal(2, 17)
    scale = beta**2 + (1 - beta**2) * factor
    assert_near(slerp_reference(p, factor * p, beta), scale * p)


@pytest.mark.parametrize(
    ("beta", "sign"), [(-1.0, -1), (-0.1, -1), (0.0, -1), (0.3, -1), (0.8, 1), (1.0, 1)]
)
def test_anti_parallel_noise_goes_where_the_blend_points(beta, sign):
    p = normal(2, 17)
    assert_near(slerp_reference(p, -p, beta), sign * p)


def test_anti_parallel_noise_whose_blend_vanishes_keeps_the_parents_direction():
    p = normal(2, 17)
    assert_near(slerp_reference(p, -p, math.sqrt(0.5)), p)


@pytest.mark.parametrize("around", [0.0, math.pi])
@pytest.mark.parametrize("beta", BETAS)
def test_slerp_is_finite_and_keeps_its_length_near_the_degenerate_angles(beta, around):
    p, e = orthogonal(1, 9)
    for off in (0.0, 1e-12, 0.5 * PARALLEL, 2 * PARALLEL, 1e-3):
        turned = math.cos(around - off) * p + math.sin(around - off) * e
        got = slerp_reference(p, turned, beta)
        # The sine of an angle known to eps / PARALLEL has that error over PARALLEL again.
        assert (norms(got) / norms(p) - 1).abs() < EPS / PARALLEL**2


def test_nothing_to_blend_stays_nothing():
    zero = torch.zeros(1, 5, dtype=torch.float64)
    assert torch.equal(slerp_reference(zero, zero, -0.1), zero)
    assert slerp_reference(zero, normal(1, 5), -0.1).isfinite().all()


@pytest.mark.parametrize("mix", [blend_reference, slerp_reference])
def test_a_row_does_not_know_its_batch(mix):
    p, e = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    e[1] = p[1]
    whole = mix(p, e, -0.1)
    for row in range(3):
        assert torch.equal(whole[row : row + 1], mix(p[row : row + 1], e[row : row + 1], -0.1))


@pytest.mark.parametrize("mix", [blend_reference, slerp_reference])
def test_inputs_are_left_alone(mix):
    p, e = normal(2, 9), normal(2, 9, seed=1)
    before = p.clone(), e.clone()
    mix(p, e, 0.3)
    assert torch.equal(p, before[0]) and torch.equal(e, before[1])


def test_slerp_rounds_once():
    p, e = normal(2, 1001).float(), normal(2, 1001, seed=1).float()
    got = slerp_reference(p, e, -0.1)
    assert got.dtype == torch.float32
    assert torch.equal(got, slerp_reference(p.double(), e.double(), -0.1).float())


@pytest.mark.parametrize("mix", [blend_reference, slerp_reference])
def test_errors_say_what_is_wanted(mix):
    with pytest.raises(ValueError, match=r"eps: want the shape of prev \[1, 3\], got \[1, 4\]"):
        mix(torch.zeros(1, 3), torch.zeros(1, 4), 0.0)
    for beta in (-1.01, 2.0, math.nan):
        with pytest.raises(ValueError, match=r"beta: want a value in \[-1, 1\], got"):
            mix(torch.zeros(1, 3), torch.zeros(1, 3), beta)
