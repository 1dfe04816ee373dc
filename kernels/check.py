"""What every launcher asks of its tensors, said in one voice: what, wanted, got, what to do."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def shape(name: str, tensor: Tensor, want: Sequence[int | str]) -> None:
    """``want`` holds sizes; a string names a size that may be anything."""
    fits = len(want) == tensor.dim() and all(
        isinstance(size, str) or size == got for size, got in zip(want, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(size) for size in want)
        raise ValueError(f"{name}: want shape [{wanted}], got {list(tensor.shape)}")


def dtype(name: str, tensor: Tensor, want: torch.dtype | Iterable[torch.dtype]) -> None:
    known = (want,) if isinstance(want, torch.dtype) else tuple(want)
    if tensor.dtype not in known:
        names = ", ".join(sorted(map(str, known)))
        raise ValueError(f"{name}: want dtype {names}, got {tensor.dtype}")


def contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name}: want a contiguous tensor, got strides {list(tensor.stride())}; "
            "layout is never repaired in silence"
        )


def dense_rows(name: str, tensor: Tensor, axes: int) -> None:
    """The last ``axes`` axes lie dense in memory; the ones before may have any stride."""
    stride = 1
    for size, step in zip(
        reversed(tensor.shape[-axes:]), reversed(tensor.stride()[-axes:]), strict=True
    ):
        if size != 1 and step != stride:
            raise ValueError(
                f"{name}: want its last {axes} axes dense, got shape {list(tensor.shape)} with strides "
                f"{list(tensor.stride())}"
            )
        stride *= size


def same_device(name: str, tensor: Tensor, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name}: want device {other.device}, got {tensor.device}")


def no_gradient(impl: str, *tensors: Tensor) -> None:
    """Only the reference can be differentiated."""
    if impl != "torch" and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ValueError(f"impl={impl!r} has no gradient; use impl='torch' or torch.no_grad()")
