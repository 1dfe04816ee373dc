"""Flow matching in a few warped steps: which timesteps run, what x0 a flow means, how to noise again.

    sigma(s) = shift * s / (1 + (shift - 1) * s),   timestep = 1000 * sigma
    x_t = (1 - sigma) * x0 + sigma * eps,           flow = eps - x0,   x0 = x_t - sigma * flow

Source: Wan / Self-Forcing flow matching with shift 5; steps 1000, 750, 500, 250 warp to 1000, 937.5, 833.3333, 625.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Schedule:
    """The denoising steps of a chunk. Timesteps and sigmas are Python floats that hold float32 values exactly."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]

    @property
    def passes(self) -> int:
        return len(self.timesteps)

    @staticmethod
    def warped(steps: tuple[int, ...] = (1000, 750, 500, 250), shift: float = 5.0) -> Schedule:
        """Steps of the training clock (1..1000, falling), warped by ``shift``. Raises ValueError for anything else."""
        if (
            not steps
            or any(not 1 <= s <= TRAIN_STEPS for s in steps)
            or list(steps) != sorted(set(steps))[::-1]
        ):
            raise ValueError(f"steps: want falling values in 1..{TRAIN_STEPS}, got {list(steps)}")
        if shift <= 0:
            raise ValueError(f"shift: want a positive number, got {shift}")
        timesteps = (all_sigmas(shift) * TRAIN_STEPS)[[TRAIN_STEPS - s for s in steps]].tolist()
        return Schedule(tuple(timesteps), tuple(sigma_at(t, shift) for t in timesteps))


def sigma_at(timestep: float, shift: float = 5.0) -> float:
    """The noise level of a timestep: nearest neighbour among the 1000 warped ones, as in training."""
    sigmas = all_sigmas(shift)
    return sigmas[(sigmas * TRAIN_STEPS - timestep).abs().argmin()].item()


def all_sigmas(shift: float) -> Tensor:
    """The 1000 warped noise levels, float32, falling from 1."""
    s = torch.linspace(1.0, 0.0, TRAIN_STEPS + 1, device="cpu")[:-1]
    return shift * s / (1 + (shift - 1) * s)


def to_x0(noisy: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """The clean latents that ``flow`` points at, computed in float64 and cast back."""
    return (noisy.double() - sigma * flow.double()).to(noisy.dtype)
