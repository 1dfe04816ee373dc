"""Decides which implementation of a kernel runs: one rule for all of them.

Every kernel takes ``impl``:

    "torch"    the reference, in plain torch, on any device
    "native"   C++ on the CPU, from ``runtime._C``
    "triton"   Triton on a GPU; on the CPU only under Triton's interpreter (TRITON_INTERPRET=1), for tests
    "cuda"     CUDA C++ on a GPU, from ``runtime._C``, where a kernel has one
    "auto"     on the CPU native, on a GPU triton; torch where that is not there or does not take the dtype

A name is never replaced by another in silence: asking for what is not there raises and says what is missing.
"""

from collections.abc import Mapping

import torch

from runtime.kernels import native, triton_lang

IMPLEMENTATIONS = ("auto", "native", "triton", "cuda", "torch")
NARROW = frozenset({torch.float32, torch.bfloat16, torch.float16})
# What a kernel offers when it says nothing else: implementation -> dtypes it takes. "torch" takes every dtype.
OFFERS: Mapping[str, frozenset[torch.dtype]] = {"native": NARROW, "triton": NARROW}


def implementation(
    impl: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    offers: Mapping[str, frozenset[torch.dtype]] = OFFERS,
) -> str:
    """The name of what runs when ``impl`` is asked for on ``device``: never "auto".

    Raises ValueError for an unknown name, a device or a dtype that the implementation does not take, and RuntimeError
    for one that is not built or not installed.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: want one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    kind = torch.device(device).type
    if impl == "torch":
        return impl
    if impl == "auto":
        fast = "native" if kind == "cpu" else "triton"
        there = native.find()[0] is not None if kind == "cpu" else triton_lang.AVAILABLE
        known = kind in ("cpu", "cuda") and dtype in offers.get(fast, ())
        return fast if there and known else "torch"
    if impl not in offers:
        raise ValueError(f"impl: this kernel has {', '.join(['torch', *offers])}, got {impl!r}")
    if dtype not in offers[impl]:
        names = ", ".join(sorted(str(known).removeprefix("torch.") for known in offers[impl]))
        raise ValueError(f"impl={impl!r} takes {names}, got {dtype}; use impl='torch'")
    _MUST_RUN[impl](kind)
    return impl


def _native(kind: str) -> None:
    if kind != "cpu":
        raise ValueError(f"impl='native' runs on the CPU, got device {kind}; use impl='triton'")
    native.extension()


def _triton(kind: str) -> None:
    if not triton_lang.AVAILABLE:
        raise RuntimeError(
            "impl='triton': triton is not installed; `pip install triton`, or use impl='torch'"
        )
    if kind != "cuda" and not triton_lang.INTERPRETED:
        raise ValueError(
            f"impl='triton' runs on a GPU, got device {kind}; use impl='native', or set TRITON_INTERPRET=1 to "
            "interpret it (slow, for tests)"
        )


def _cuda(kind: str) -> None:
    if kind != "cuda":
        raise ValueError(f"impl='cuda' runs on a GPU, got device {kind}; use impl='native'")
    if not getattr(native.extension("cuda"), "CUDA", False):
        raise RuntimeError(
            f"impl='cuda': runtime._C was built without nvcc; {native.BUILD} where nvcc is, or use impl='triton'"
        )


_MUST_RUN = {"native": _native, "triton": _triton, "cuda": _cuda}
