"""What a launch is planned from: the layouts of its tensors. What fits once fits always, so it is checked once.

A launcher calls its cached planner with ``key(...)`` of its tensors; the planner unwraps it with ``layouts`` and hands
those to ``check``, which asks them what it asks tensors. A small launch spends most of its time in such checks.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

Key = tuple[Any, ...]


class Layout(NamedTuple):
    """All of a tensor but its address."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def dim(self) -> int:
        return len(self.shape)

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def numel(self) -> int:
        return self.shape.numel()

    def is_contiguous(self) -> bool:
        like = torch.empty_strided(self.shape, self.strides, device="meta")
        return like.is_contiguous()

    def steps(self, *axes: int) -> tuple[int, ...]:
        """Strides of ``axes``, 0 where one is broadcast: a size of 1 stands for any."""
        return tuple(0 if self.shape[axis] == 1 else self.strides[axis] for axis in axes)


def key(*tensors: Tensor | None) -> Key:
    """Equal for tensors that only differ in what they hold."""
    return tuple([None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors])


def layouts(of: Key) -> list[Any]:
    """A ``Layout`` (or None) for each tensor that ``key`` was made of."""
    return [None if one is None else Layout(*one) for one in of]


def addresses(*tensors: Tensor | None) -> list[int]:
    """Where each begins; 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]
