"""One compiled form of a Triton kernel, named without a GPU: what the ahead-of-time gate compiles and inspects.

A kernel file with a Triton kernel has a function ``builds() -> Iterator[Build]``: every form that a launch could ask for
with a shipped configuration (``tuning.shipped``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

ARCHS = (80, 90, 100)
TRITON_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.float8_e4m3fn: "fp8e4nv",
}


@dataclass(frozen=True)
class Build:
    """``signature`` maps every argument of the kernel that is not a constant to its Triton type, "*bf16" for a pointer.

    ``aligned`` names the arguments that are multiples of 16 in a real launch: pointers of fresh tensors, most strides.
    """

    label: str  # "window_attention bf16 D=128"
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    aligned: frozenset[str] = frozenset()
    dots: bool = False  # must run on tensor cores
    fused: bool = True  # a * b + c may become one instruction; False where bits are specified
    archs: tuple[int, ...] = ARCHS


def pointer(dtype: torch.dtype) -> str:
    """Triton's name of a pointer to ``dtype``."""
    return "*" + TRITON_TYPES[dtype]
