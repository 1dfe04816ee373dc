"""Ten million draws are standard normal, and what is blended from chunk to chunk stays so and remembers exactly beta.

Seeds are fixed, so nothing here fails by chance; the bounds are what one run of a million with other seeds would break.
"""

import math

import pytest
import torch

from runtime.kernels import native
from runtime.kernels.philox import normal, streams
from runtime.kernels.slerp_noise import slerp_noise

BUILT = native.find()[0] is not None
N = 10_000_000 if BUILT else 1_000_000  # the reference is slower
SIGMAS = 5.0


@pytest.fixture(scope="module")
def draws() -> torch.Tensor:
    """N draws of ten streams."""
    return normal(range(10), [3] * 10, 0, (N // 10,)).flatten()


def test_moments_are_those_of_the_standard_normal(draws):
    """The k-th power of a normal value has mean m_k and variance m_2k - m_k^2: 0, 1, 0, 3 with 1, 2, 15, 96."""
    x = draws.double()
    square = x * x
    for power, mean, variance in (
        (x, 0, 1),
        (square, 1, 2),
        (square * x, 0, 15),
        (square**2, 3, 96),
    ):
        assert abs(power.mean() - mean) < SIGMAS * math.sqrt(variance / N)


def test_the_distribution_is_normal_by_kolmogorov_and_smirnov(draws):
    """sqrt(N) D exceeds x with probability 2 exp(-2 x^2): 6e-7 for 2.74, the two-sided tail of 5 sigma."""
    cumulative = torch.special.ndtr(draws.sort().values.double())
    below = torch.arange(N, dtype=torch.float64) / N  # of the sample, just before each value
    distance = torch.maximum((cumulative - below).max(), (below + 1 / N - cumulative).max())
    assert math.sqrt(N) * distance < 2.74


def test_the_tails_are_there(draws):
    """The number of values beyond 4 and beyond 5 is binomial; both signs count."""
    for edge in (3.0, 4.0, 5.0):
        expected = N * math.erfc(edge / math.sqrt(2))
        assert abs((draws.abs() > edge).sum() - expected) < SIGMAS * math.sqrt(expected) + 1


def test_streams_and_neighbours_are_uncorrelated(draws):
    """The product of independent normal values has variance 1."""
    rows = draws.view(10, -1).double()
    n = rows.shape[1]
    products = rows @ rows.t() / n
    assert (products - products.diag().diag()).abs().max() < SIGMAS / math.sqrt(n)
    for lag in (1, 2, 3, 4):
        assert (rows[:, lag:] * rows[:, :-lag]).mean().abs() < SIGMAS / math.sqrt(N)


@pytest.mark.parametrize("mode", ["blend", "slerp"])
@pytest.mark.parametrize("beta", [-0.1, 0.7])
def test_autocorrelation_over_chunks_is_beta(beta, mode):
    """Chunk n and n + lag correlate by beta^lag. A product of two such values has variance at most 2."""
    chunks, elements = 10, N // 20
    chain = [normal([7], [0], 0, (elements,))]
    for chunk in range(1, chunks):
        chain.append(slerp_noise(chain[-1], None, streams([7], [chunk], 0), beta, mode))
    x = torch.cat(chain).double()
    # Products of neighbouring chunks are correlated too, which widens a mean over chunks.
    widened = math.sqrt(2 * (1 + abs(beta)) / (1 - abs(beta)))
    for lag in range(4):
        found = (x[lag:] * x[: chunks - lag]).mean()
        count = elements * (chunks - lag)
        assert abs(found - beta**lag) < SIGMAS * widened / math.sqrt(count)
    assert (x.mean(1).abs() < SIGMAS / math.sqrt(elements)).all()
    assert ((x * x).mean(1) - 1).abs().max() < SIGMAS * math.sqrt(2 / elements)
