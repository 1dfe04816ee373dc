"""Which library builds and runs engines: TensorRT or TensorRT-RTX, one API but for the differences listed here.

Neither raises when something fails: a call returns None, False or -1, and the reason is in the log. ``ensure`` turns such
an answer into an ``EngineError`` that carries the log's lines.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

DTYPES = {  # name of a vendor's DataType -> torch's
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
TROUBLE = ("INTERNAL_ERROR", "ERROR")
SHOWN_LINES, SHOWN_CHARACTERS = 4, 300  # of a log, in an error; the whole of it is in the log file
KEPT_LINES = 20_000
READ_BACK = "Engine Layer Information"  # the one verbose message worth keeping: what was built
NO_DRIVER = "cudaError 35"  # follows every other error on a machine without a GPU


class EngineError(RuntimeError):
    """An engine could not be built, read or run here. Whoever catches it runs the network by torch."""


class EngineDamaged(EngineError):
    """The engine's files are at fault, so building them anew may help."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """One library and what sets it apart."""

    name: str  # as in settings: "tensorrt" or "tensorrt-rtx"
    module: str
    extra: str  # of pyproject.toml, that installs it
    portable: bool  # builds without a GPU, for several compute capabilities at once
    jit: bool  # compiles kernels when a context first runs, and can keep them in a runtime cache
    timings: bool  # times kernels at build, and can keep the timings
    documented: str  # GPUs its documentation names

    def load(self) -> ModuleType:
        """The Python module. EngineError when it is not installed or finds no library."""
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise EngineError(
                f"{self.name}: cannot be imported ({error}); run `pip install 'stream-t1-runtime[{self.extra}]'`"
            ) from error


VENDORS = {
    "tensorrt": Vendor(
        name="tensorrt",
        module="tensorrt",
        extra="tensorrt",
        portable=False,
        jit=False,
        timings=True,
        documented="compute capability 7.5 and newer",
    ),
    "tensorrt-rtx": Vendor(
        name="tensorrt-rtx",
        module="tensorrt_rtx",
        extra="tensorrt-rtx",
        portable=True,
        jit=True,
        timings=False,
        documented="compute capability 7.5, 8.6, 8.9, 12.0 and 12.1",
    ),
}


def vendor(name: str) -> Vendor:
    """The vendor of that name; ValueError lists the known ones."""
    if name not in VENDORS:
        raise ValueError(f"engine vendor: want one of {', '.join(VENDORS)}, got {name!r}")
    return VENDORS[name]


def logger(trt: Any) -> Any:
    """A vendor's logger that keeps its newest lines: ``lines`` holds (severity, message)."""

    class Lines(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[tuple[str, str]] = deque(maxlen=KEPT_LINES)

        def log(self, severity: Any, message: str) -> None:
            if severity.name != "VERBOSE" or message.startswith(READ_BACK):
                self.lines.append((severity.name, message))

    return Lines()


def reasons(lines: Iterable[tuple[str, str]]) -> str:
    """The errors of a log in one line, without those that only say there is no driver if there are others."""
    errors = [message for severity, message in lines if severity in TROUBLE]
    errors = [message for message in errors if NO_DRIVER not in message] or errors
    shown = [" ".join(message.split())[:SHOWN_CHARACTERS] for message in dict.fromkeys(errors)]
    return "; ".join(shown[:SHOWN_LINES]) or "the library gave no reason"


def ensure(answer: Any, what: str, log: Any) -> Any:
    """``answer``, unless it is one that stands for a failure: None, False or -1."""
    # An engine or a context is neither; 0 is a profile's index.
    if answer is None or answer is False or (type(answer) is int and answer == -1):
        raise EngineError(f"{what}: {reasons(log.lines)}")
    return answer


def flag(trt: Any, name: str) -> Any:
    """A builder flag; None where the library has no such flag."""
    return getattr(trt.BuilderFlag, name, None)
