"""Finds the C++ extension ``runtime._C`` and decides which implementation of a CPU kernel runs.

Every kernel with a C++ side takes ``impl``: ``"native"`` is the extension, ``"torch"`` the reference,
and ``"auto"`` means native for CPU tensors if the extension is built, else torch. A name is never
replaced by another in silence: asking for ``"native"`` without the extension raises.
"""

import functools
import importlib
import logging
from types import ModuleType

import torch

INTERFACE = 1  # what these Python files call; csrc/binding.cpp has the same number
IMPLEMENTATIONS = ("auto", "native", "torch")
BUILD = "build it with `pip install -e .` or `cmake -S . -B build && cmake --build build`"

log = logging.getLogger(__name__)


@functools.cache
def find() -> tuple[ModuleType | None, str]:
    """Return the extension and ``""``, or ``None`` and the reason why there is none. Looks once."""
    try:
        module = importlib.import_module("runtime._C")
    except ModuleNotFoundError as error:
        if error.name != "runtime._C":
            raise
        return None, "is not built"
    except ImportError as error:
        log.warning("runtime._C cannot be loaded (%s); %s", error, BUILD)
        return None, f"cannot be loaded ({error})"
    built = getattr(module, "INTERFACE", 0)
    if built != INTERFACE:
        log.warning("runtime._C has interface %s, want %s; %s again", built, INTERFACE, BUILD)
        return None, f"was built from other sources (interface {built}, want {INTERFACE})"
    return module, ""


def extension() -> ModuleType:
    """Return ``runtime._C``, or raise RuntimeError that says why it is missing and how to build it."""
    module, reason = find()
    if module is None:
        raise RuntimeError(f"impl='native': runtime._C {reason}; {BUILD}, or use impl='torch'")
    return module


def implementation(impl: str = "auto", device: torch.device | str = "cpu") -> str:
    """Return the name of what runs when ``impl`` is asked for: ``"native"`` or ``"torch"``."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: want one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    on_cpu = torch.device(device).type == "cpu"
    if impl == "auto":
        return "native" if on_cpu and find()[0] is not None else "torch"
    if impl == "native":
        if not on_cpu:
            raise ValueError(
                f"impl='native' runs on the CPU, got device {device}; use impl='torch'"
            )
        extension()
    return impl
