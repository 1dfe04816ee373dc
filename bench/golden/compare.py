"""What a replay found: the largest errors and the first decision that differs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.engine import Engine
from runtime.kernels.rotary import rope_angles, rotate
from runtime.settings import CHUNK_FRAMES
from runtime.types import Slot

KV_TOLERANCE = 2e-5  # keys and values are recorded as float32
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}


@dataclass
class Report:
    """Errors of one case so far."""

    name: str
    dtype: torch.dtype
    tensor_error: float = 0.0
    kv_error: float = 0.0
    score_error: float = 0.0
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    worst: str = ""

    def tensor(self, what: str, got: Tensor, want: Tensor) -> None:
        """A latent, noise or flow tensor against its float64 recording."""
        error = self._error(what, got, want)
        if error > self.tensor_error:
            self.tensor_error, self.worst = error, what

    def kv(self, what: str, got: Tensor, want: Tensor) -> None:
        self.kv_error = max(self.kv_error, self._error(what, got, want))

    def score(self, what: str, got: float, want: float) -> None:
        self.compared += 1
        error = abs(got - want)
        self.score_error = max(self.score_error, error if error == error else float("inf"))

    def decision(self, what: str, got: object, want: object) -> None:
        self.compared += 1
        if got != want:
            self.differences.append(f"{what}: got {got}, want {want}")

    def _error(self, what: str, got: Tensor, want: Tensor) -> float:
        self.compared += 1
        if got.shape != want.shape:
            self.differences.append(f"{what}: got shape {list(got.shape)}, want {list(want.shape)}")
            return float("inf")
        if not want.numel():  # the window after chunk 0
            return 0.0
        error = (got.double() - want.double()).abs().max().item()
        return error if error == error else float("inf")

    @property
    def passed(self) -> bool:
        limit = TOLERANCE[self.dtype]
        close = (
            self.tensor_error <= limit
            and self.score_error <= limit
            and self.kv_error <= KV_TOLERANCE
        )
        return close and not self.differences and self.compared > 0

    def line(self) -> str:
        decisions = "identical" if not self.differences else self.differences[0]
        return (
            f"{self.name} max_tensor_err={self.tensor_error:.3e} max_score_err={self.score_error:.3e} "
            f"decisions={decisions} max_kv_err={self.kv_error:.3e} compared={self.compared}"
        )


def unrotated(engine: Engine, keys: Tensor, starts: list[int]) -> Tensor:
    """Keys [S * blocks, H, D] as they were before rotation, given each block's start frame."""
    generator = engine.parts.generator
    _, height, width = generator.latent_shape
    frames = torch.tensor([[s + f for s in starts for f in range(CHUNK_FRAMES)]])
    angles = rope_angles(frames, height // 2, width // 2, keys.shape[-1])
    dtype = keys.dtype
    return rotate(keys[None], angles.cos().to(dtype), -angles.sin().to(dtype))[0]


def stored(engine: Engine, slots: tuple[Slot, ...], layer: int) -> tuple[Tensor, Tensor]:
    """Rotated keys and values [S * blocks, H, D] of some blocks in one layer."""
    pool = engine.pool.kv
    layers = pool.shape[0] // 2
    blocks = [slot.block for slot in slots]
    return pool[layer, blocks].flatten(0, 1), pool[layers + layer, blocks].flatten(0, 1)
