"""Triton where it is installed, and enough of its names that every kernel file imports without it.

Kernel files write ``from runtime.kernels.triton_lang import jit, tl, triton``. Without Triton the decorated functions
are never called: ``dispatch.implementation`` refuses ``impl="triton"`` first.
"""

from importlib import import_module
from typing import Any


class _Names:
    """Stands where a kernel's signature names a type."""

    constexpr = object


def _as_it_is(function: Any) -> Any:
    return function


triton: Any = None
tl: Any = _Names()
jit: Any = _as_it_is
INTERPRETED = False  # kernels run on the host, on CPU tensors: TRITON_INTERPRET=1
try:
    triton = import_module("triton")
    tl = import_module("triton.language")
    jit = triton.jit
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
AVAILABLE = triton is not None

__all__ = ["AVAILABLE", "INTERPRETED", "jit", "tl", "triton"]
