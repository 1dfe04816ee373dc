"""What a Triton kernel was launched with, as far as the compiler makes a program of its own for it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.kernels.build import Build, pointer


class Given(NamedTuple):
    """One argument. ``value`` is None for tensors and for numbers that a program does not depend on."""

    type: str
    value: Any
    divisible: bool  # by 16: a number, or a tensor's address

    @staticmethod
    def of(value: Any, parameter: inspect.Parameter) -> Given:
        said = str(parameter.annotation)
        if isinstance(value, Tensor):
            kind = "*fp64" if value.dtype == torch.float64 else pointer(value.dtype)
            return Given(kind, None, value.data_ptr() % 16 == 0)
        if value is None or "constexpr" in said:
            return Given("constant", value, False)
        if isinstance(value, float):
            return Given("fp32", None, False)
        small = -(2**31) <= value < 2**31 and "int64" not in said
        return Given("i32" if small else "i64", 1 if value == 1 else None, value % 16 == 0)

    def fits(self, name: str, build: Build) -> bool:
        """Whether the program of ``build`` takes this."""
        if name in build.constants:
            return self.type == "constant" and build.constants[name] == self.value
        if build.signature.get(name) != self.type:
            return False
        return self.divisible or name not in build.aligned


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments by name, and the options (num_warps, num_stages)."""

    kernel: Any  # the function under ``jit``
    given: tuple[tuple[str, Given], ...]
    options: tuple[tuple[str, int], ...]

    @staticmethod
    def of(kernel: Any, args: Any, kwargs: Any) -> Launch:
        signature = inspect.signature(kernel.fn)
        own = {name: value for name, value in kwargs.items() if name in signature.parameters}
        bound = signature.bind(*args, **own)
        bound.apply_defaults()
        given = (
            (name, Given.of(value, signature.parameters[name]))
            for name, value in bound.arguments.items()
        )
        rest = {name: value for name, value in kwargs.items() if name.startswith("num_")}
        return Launch(kernel.fn, tuple(given), tuple(sorted(rest.items())))

    def differs(self, build: Build) -> list[str]:
        """How this needs another program than that of ``build``; empty if it does not."""
        found = []
        for name, given in self.given:
            if not given.fits(name, build):
                wanted = build.constants.get(name, build.signature.get(name))
                what = f"{name}: launched with {given}, built for {wanted}"
                found.append(what + ", aligned" * (name in build.aligned))
        built = {"num_warps": build.num_warps, "num_stages": build.num_stages}
        found += [
            f"{name}: launched with {value}, built for {built[name]}"
            for name, value in self.options
            if built.get(name, value) != value
        ]
        return found
