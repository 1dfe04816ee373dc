"""Attention functions of other projects, found when asked for: FlashAttention 2, 3 and 4.

They take q [B, S, H, D], k and v [B, T, H, D] in 16 bits on a GPU. ``build_attention`` compares them with the reference
before it trusts them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

# q [B, S, H, D], k and v [B, T, H, D] -> [B, S, H, D], softmax scale 1 / sqrt(D), no mask
Dense = Callable[[Tensor, Tensor, Tensor], Tensor]

LIBRARIES = {  # name -> where its function is, how to get it
    "fa2": ("flash_attn:flash_attn_func", "pip install flash-attn"),
    "fa3": ("flash_attn_interface:flash_attn_func", "build hopper/ of flash-attention"),
    "fa4": ("flash_attn.cute:flash_attn_func", "pip install flash-attn-4"),
}


def library(name: str) -> Dense:
    """The function called ``name``. RuntimeError with the way to get it where it is not installed."""
    where, how = LIBRARIES[name]
    module, function = where.split(":")
    try:
        call = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"run.attention={name!r}: cannot import {function} from {module} ({error}); {how}, or use 'triton' or 'sdpa'"
        ) from error

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = call(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return dense
