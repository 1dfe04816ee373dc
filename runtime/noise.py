"""The paper's part 1, noise propagation: where a candidate's draws come from and what its chunk starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.kernels.philox import normal, streams, upload
from runtime.kernels.slerp_noise import (
    blend_reference,
    renoise,
    renoise_reference,
    slerp_noise,
    slerp_reference,
)
from runtime.settings import NoiseSettings
from runtime.types import Branch, Draws, NoiseSource


class PhiloxNoise:
    """Counter-based draws: the same values for the same seed in any batch or split, and drawn where they are used."""

    fixed = True

    def __init__(self, device: torch.device, dtype: torch.dtype, impl: str = "auto") -> None:
        self.device, self.dtype, self.impl = device, dtype, impl

    def draw(self, draws: Draws, shape: tuple[int, ...]) -> Tensor:
        numbers = draws.seeds, draws.chunks, draws.number
        return normal(*numbers, shape, self.device, self.dtype, impl=self.impl)

    def propagate(
        self, previous: Tensor, parents: Sequence[int], draws: Draws, beta: float, mode: str
    ) -> Tensor:
        index = upload(parents, torch.int32, self.device)
        return slerp_noise(previous, index, self._streams(draws), beta, mode, impl=self.impl)

    def renoise(self, x0: Tensor, draws: Draws, sigma: float) -> Tensor:
        levels = torch.full((len(x0),), sigma, dtype=torch.float32, device=self.device)
        return renoise(x0, self._streams(draws), levels, impl=self.impl)

    def _streams(self, draws: Draws) -> Tensor:
        if draws.streams is not None:
            return draws.streams
        return streams(draws.seeds, draws.chunks, draws.number, self.device)


class TableNoise:
    """Recorded draws, for replays: ``table[seed][number]`` is a tensor of the asked shape. Arithmetic in its dtype."""

    fixed = False

    def __init__(self, table: Mapping[int, Sequence[Tensor]]) -> None:
        self.table = table

    def draw(self, draws: Draws, shape: tuple[int, ...]) -> Tensor:
        missing = [seed for seed in draws.seeds if seed not in self.table]
        if missing:
            raise ValueError(
                f"noise table: no draws for seed {missing[0]}; it holds {len(self.table)} seeds"
            )
        return torch.stack([self.table[seed][draws.number] for seed in draws.seeds])

    def propagate(
        self, previous: Tensor, parents: Sequence[int], draws: Draws, beta: float, mode: str
    ) -> Tensor:
        fresh = self.draw(draws, tuple(previous.shape[1:]))
        mix = slerp_reference if mode == "slerp" else blend_reference
        return mix(previous[list(parents)], fresh, beta)

    def renoise(self, x0: Tensor, draws: Draws, sigma: float) -> Tensor:
        return renoise_reference(x0, self.draw(draws, tuple(x0.shape[1:])), sigma)


def draws_of(branches: Sequence[Branch], number: int) -> Draws:
    """Draw ``number`` of every branch."""
    return Draws(tuple(b.seed for b in branches), tuple(b.seed_chunk for b in branches), number)


def propagate(
    branches: Sequence[Branch],
    source: NoiseSource,
    shape: tuple[int, ...],
    settings: NoiseSettings | None,
) -> Tensor:
    """Initial noise of every candidate, [B, *shape]: fresh, or blended with the parent's when it has one.

    ``settings`` None switches propagation off.
    """
    draws = draws_of(branches, 0)
    before = [branch.parent.noise for branch in branches]
    known = [noise for noise in before if noise is not None]
    if settings is None or not known:
        return source.draw(draws, shape)
    # Siblings share their parent's noise: it is stacked once and read by each of them.
    distinct = {id(noise): noise for noise in known}
    places = {name: place for place, name in enumerate(distinct)}
    parents = [places[id(noise)] for noise in known]
    previous = torch.stack(list(distinct.values()))
    return source.propagate(previous, parents, draws, settings.beta, settings.mode)
