"""Beam search over the chunks of a streaming video model; ``Engine`` turns a prompt into frames."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.async_engine import AsyncEngine as AsyncEngine
    from runtime.engine import Engine as Engine
    from runtime.job import Job as Job
    from runtime.request import Busy as Busy
    from runtime.request import JobCancelled as JobCancelled
    from runtime.request import JobFailed as JobFailed
    from runtime.request import Limits as Limits
    from runtime.request import Request as Request
    from runtime.settings import Settings as Settings
    from runtime.types import ChunkEvent as ChunkEvent

__version__ = "0.1.0"

# Imported when asked for, so that ``runtime.kernels`` alone stays cheap.
_PUBLIC = {
    "AsyncEngine": "runtime.async_engine:AsyncEngine",
    "Busy": "runtime.request:Busy",
    "ChunkEvent": "runtime.types:ChunkEvent",
    "Engine": "runtime.engine:Engine",
    "Job": "runtime.job:Job",
    "JobCancelled": "runtime.request:JobCancelled",
    "JobFailed": "runtime.request:JobFailed",
    "Limits": "runtime.request:Limits",
    "Request": "runtime.request:Request",
    "Settings": "runtime.settings:Settings",
}

__all__ = [*_PUBLIC, "__version__"]

# In a checkout ``kernels``, ``export`` and ``bench`` are beside this package; in a wheel inside it.
_root = Path(__file__).resolve().parent.parent
if all((_root / name).exists() for name in ("kernels", "bench", "setup.py")):
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(
            f"runtime has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
