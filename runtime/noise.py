"""The paper's part 1, noise propagation: where a candidate's draws come from and what its chunk starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.kernels.philox import normal
from runtime.kernels.slerp_noise import blend_reference, slerp_reference
from runtime.settings import NoiseSettings
from runtime.types import Branch, NoiseSource


class PhiloxNoise:
    """Counter-based draws: the same values for the same seed on any device, batch or split."""

    def __init__(self, device: torch.device, dtype: torch.dtype, impl: str = "auto") -> None:
        self.device, self.dtype, self.impl = device, dtype, impl

    def draw(
        self, seeds: Sequence[int], chunks: Sequence[int], draw: int, shape: tuple[int, ...]
    ) -> Tensor:
        """One draw per row, [B, *shape]; see ``runtime.kernels.philox``."""
        return normal(seeds, chunks, draw, shape, self.device, self.dtype, impl=self.impl)


class TableNoise:
    """Recorded draws, for replays: ``table[seed][draw]`` is a tensor of the asked shape."""

    def __init__(self, table: Mapping[int, Sequence[Tensor]]) -> None:
        self.table = table

    def draw(
        self, seeds: Sequence[int], chunks: Sequence[int], draw: int, shape: tuple[int, ...]
    ) -> Tensor:
        missing = [seed for seed in seeds if seed not in self.table]
        if missing:
            raise ValueError(
                f"noise table: no draws for seed {missing[0]}; it holds {len(self.table)} seeds"
            )
        return torch.stack([self.table[seed][draw] for seed in seeds])


def draws(
    branches: Sequence[Branch], source: NoiseSource, draw: int, shape: tuple[int, ...]
) -> Tensor:
    """Draw number ``draw`` of every branch, [B, *shape]."""
    return source.draw([b.seed for b in branches], [b.seed_chunk for b in branches], draw, shape)


def propagate(
    branches: Sequence[Branch],
    source: NoiseSource,
    shape: tuple[int, ...],
    settings: NoiseSettings | None,
) -> Tensor:
    """Initial noise of every candidate, [B, *shape]: fresh, or blended with the parent's when it has one.

    ``settings`` None switches propagation off.
    """
    fresh = draws(branches, source, 0, shape)
    parents = [branch.parent.noise for branch in branches]
    if settings is None or parents[0] is None:
        return fresh
    previous = torch.stack([noise for noise in parents if noise is not None])
    mix = slerp_reference if settings.mode == "slerp" else blend_reference
    return mix(previous, fresh, settings.beta)
