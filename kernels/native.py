"""Finds the C++ extension ``runtime._C``, and says why when there is none."""

import functools
import importlib
import logging
from types import ModuleType

INTERFACE = 3  # what these Python files call; csrc/binding.cpp has the same number
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


def extension(impl: str = "native") -> ModuleType:
    """Return ``runtime._C``, or raise RuntimeError that says why ``impl`` cannot have it and how to build it."""
    module, reason = find()
    if module is None:
        raise RuntimeError(f"impl={impl!r}: runtime._C {reason}; {BUILD}, or use impl='torch'")
    return module
