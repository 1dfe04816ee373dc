"""Triton where it is installed, and enough of its names that every kernel file imports without it.

Kernel files write ``from runtime.kernels.triton_lang import jit, tl, triton``. Without Triton the decorated functions
are never called: ``dispatch.implementation`` refuses ``impl="triton"`` first.
"""

from typing import Any

INTERPRETED = False  # kernels run on the host, on CPU tensors: TRITON_INTERPRET=1
triton: Any
tl: Any
jit: Any

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
    INTERPRETED = bool(triton.knobs.runtime.interpret)
    jit = triton.jit
except ModuleNotFoundError:
    AVAILABLE = False

    class _Names:
        """Stands where a kernel's signature names a type."""

        constexpr = object

    triton, tl = None, _Names()

    def jit(function: Any) -> Any:
        """The function as it is."""
        return function


__all__ = ["AVAILABLE", "INTERPRETED", "jit", "tl", "triton"]
