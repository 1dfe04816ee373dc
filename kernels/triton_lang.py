"""Triton where it is installed, and enough of its names that every kernel file imports without it.

Kernel files write ``from runtime.kernels.triton_lang import jit, tl, triton``. Without Triton the decorated functions
are never called: ``dispatch.implementation`` refuses ``impl="triton"`` first.
"""

import importlib.util
from typing import Any

AVAILABLE = importlib.util.find_spec("triton") is not None
INTERPRETED = False  # kernels run on the host, on CPU tensors: TRITON_INTERPRET=1
triton: Any
tl: Any
jit: Any

if AVAILABLE:
    import triton
    import triton.language as tl

    jit = triton.jit
    INTERPRETED = bool(triton.knobs.runtime.interpret)
else:

    class _Names:
        """Stands where a kernel's signature names a type."""

        constexpr = object

    triton, tl = None, _Names()

    def jit(function: Any) -> Any:
        """The function as it is."""
        return function


__all__ = ["AVAILABLE", "INTERPRETED", "jit", "tl", "triton"]
