"""Where draws come from, and that propagated noise stays standard normal in the paper's fidelity."""

import pytest
import torch

from runtime.noise import PhiloxNoise, TableNoise, draws_of, propagate
from runtime.search import build_policy
from runtime.settings import NoiseSettings, SearchSettings
from runtime.types import Branch, Draws, Trajectory

SHAPE = (3, 4, 16, 16)
PHILOX = PhiloxNoise(torch.device("cpu"), torch.float64, "torch")


def branch(seed: int, chunk: int = 0, noise: torch.Tensor | None = None) -> Branch:
    return Branch(Trajectory(noise=noise), 0, 0, seed, chunk)


def chain(chunks: int, beta: float, released: bool, mode: str = "blend") -> list[torch.Tensor]:
    """The initial noise of every chunk of a history that always follows its first expansion."""
    policy = build_policy(SearchSettings(histories=1, expansions=2), released, sinking=True)
    settings, survivor, seen = NoiseSettings(beta=beta, mode=mode), Trajectory(), []
    for index in range(chunks):
        first = policy.expand([survivor], index)[:1]
        (noise,) = propagate(first, PHILOX, SHAPE, settings)
        survivor = Trajectory(seed=first[0].seed, seed_chunk=first[0].seed_chunk, noise=noise)
        seen.append(noise)
    return seen


def test_draws_do_not_know_their_batch():
    rows = [branch(5), branch(6, 2), branch(5, 1)]
    together = PHILOX.draw(draws_of(rows, 1), (3, 5))
    alone = [PHILOX.draw(draws_of([row], 1), (3, 5)) for row in rows]
    assert torch.equal(together, torch.cat(alone))
    assert len({row.sum().item() for row in together}) == 3


def test_a_first_chunk_starts_from_its_draw():
    got = propagate([branch(5), branch(6)], PHILOX, SHAPE, NoiseSettings(beta=0.9))
    assert torch.equal(got, PHILOX.draw(Draws((5, 6), (0, 0), 0), SHAPE))


def test_a_later_chunk_blends_its_draw_with_its_own_parents_noise():
    parents = [torch.full((3, 2), value, dtype=torch.float64) for value in (1.0, 2.0)]
    rows = [branch(5 + i, 1, noise) for i, noise in enumerate(parents)]
    fresh = PHILOX.draw(Draws((5, 6), (1, 1), 0), (3, 2))
    got = propagate(rows, PHILOX, (3, 2), NoiseSettings(beta=0.6))
    assert torch.allclose(got, 0.6 * torch.stack(parents) + 0.8 * fresh, atol=1e-15)
    assert torch.equal(propagate(rows, PHILOX, (3, 2), None), fresh)


@pytest.mark.parametrize("mode", ["blend", "slerp"])
@pytest.mark.parametrize("beta", [-0.7, -0.1, 0.5])
def test_propagated_noise_stays_standard_normal_in_the_paper(beta, mode):
    """300 chunks of 3,072 values: the mean is known to 0.001 and every chunk's deviation to 0.013."""
    noise = torch.stack(chain(300, beta, released=False, mode=mode))
    assert (
        noise.mean().abs() < 4 / noise.numel() ** 0.5 * ((1 + abs(beta)) / (1 - abs(beta))) ** 0.5
    )
    stds = noise.flatten(1).std(1)
    assert stds.mean() == pytest.approx(1.0, abs=0.005)
    assert (stds - 1).abs().max() < 5 * (2 * noise[0].numel()) ** -0.5
    neighbours = (noise[1:] * noise[:-1]).mean()
    assert neighbours == pytest.approx(beta, abs=0.01)


@pytest.mark.parametrize(("beta", "settles_at"), [(-0.1, 0.905), (0.5, 1.73)])
def test_released_seeds_do_not_keep_unit_variance(beta, settles_at):
    """The first expansion draws the same values again and again: sqrt(1 - beta^2) / (1 - beta) of them remain."""
    last = chain(40, beta, released=True)[-1]
    assert last.std() == pytest.approx(settles_at, abs=0.03)
    first = PHILOX.draw(Draws((42,), (0,), 0), SHAPE)[0]
    assert torch.allclose(last, first * (1 - beta**2) ** 0.5 / (1 - beta), atol=1e-9)


def test_slerp_keeps_the_length_of_released_noise():
    first, *_, last = chain(40, -0.1, released=True, mode="slerp")
    assert torch.allclose(last, first, atol=1e-12)


def test_a_table_gives_what_was_recorded():
    table = TableNoise({7: [torch.zeros(2), torch.ones(2)], 8: [torch.full((2,), 5.0)]})
    first = table.draw(Draws((8, 7, 8), (0, 0, 9), 0), (2,))
    assert first.tolist() == [[5, 5], [0, 0], [5, 5]]
    assert table.draw(Draws((7,), (0,), 1), (2,)).tolist() == [[1, 1]]


def test_a_table_names_the_seed_that_it_lacks():
    with pytest.raises(ValueError, match="no draws for seed 9; it holds 1 seeds"):
        TableNoise({7: [torch.zeros(2)]}).draw(Draws((7, 9), (0, 0), 0), (2,))


class Counting(PhiloxNoise):
    """Notes what it was asked to blend."""

    def propagate(self, previous, parents, *rest):
        self.asked = len(previous), list(parents)
        return super().propagate(previous, parents, *rest)


@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_siblings_read_one_copy_of_their_parents_noise(mode):
    first, second = (Trajectory(noise=torch.full((3, 2), value)) for value in (1.0, 2.0))
    parents = [second, first, second, first, first]
    rows = [Branch(parent, 0, 0, 5 + i, 1) for i, parent in enumerate(parents)]
    source, settings = (
        Counting(torch.device("cpu"), torch.float32),
        NoiseSettings(beta=0.6, mode=mode),
    )
    together = propagate(rows, source, (3, 2), settings)
    assert source.asked == (2, [0, 1, 0, 1, 1])
    alone = [propagate([row], source, (3, 2), settings) for row in rows]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_philox_and_a_table_of_its_draws_do_the_same(dtype):
    """A table computes in the references, one row at a time; float32 and wider agree to the last bit."""
    philox = PhiloxNoise(torch.device("cpu"), dtype)
    seeds, shape = (5, 6, 7), (3, 41)
    draws = [Draws(seeds, (4, 4, 4), number) for number in range(2)]
    recorded = torch.stack([philox.draw(which, shape) for which in draws], 1)
    table = TableNoise(dict(zip(seeds, recorded, strict=True)))
    x = philox.draw(Draws((8, 9), (0, 0), 0), shape)
    for mode in ("blend", "slerp"):
        given = x, [1, 0, 1], draws[0], -0.1, mode
        torch.testing.assert_close(philox.propagate(*given), table.propagate(*given))
    x0 = philox.draw(Draws(seeds, (0, 0, 0), 0), shape)
    again = philox.renoise(x0, draws[1], 0.625)
    assert torch.equal(again, table.renoise(x0, draws[1], 0.625))


def test_a_split_batch_is_noised_as_the_whole_one():
    philox = PhiloxNoise(torch.device("cpu"), torch.float32)
    rows = [branch(5 + i, i) for i in range(5)]
    x0 = philox.draw(draws_of(rows, 0), (3, 7))
    whole = philox.renoise(x0, draws_of(rows, 2), 0.3)
    parts = [philox.renoise(x0[i : i + 2], draws_of(rows[i : i + 2], 2), 0.3) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
