"""What ranks say to each other as bytes: numbers, JSON and tensors. Nothing here is ever unpickled.

A parcel is a JSON header in a uint8 tensor, which lists the tensors' names, shapes and dtypes, and then their bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 4096
MAX_TENSOR_BYTES = 1 << 36
MAX_TROUBLE_BYTES = 1024
KINDS = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a header says of one tensor that follows it."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * KINDS[self.kind].itemsize


def header_of(tree: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    """The header of a parcel, uint8 on the host. ValueError for what a receiver would refuse."""
    sheets = [
        [name, str(one.dtype).removeprefix("torch."), list(one.shape)]
        for name, one in tensors.items()
    ]
    header = text_tensor(json.dumps({"tree": tree, "tensors": sheets}))
    read_header(header)
    return header


def read_header(header: Tensor) -> tuple[Any, list[Sheet]]:
    """The tree and what follows it. ValueError for what is no header or asks for more than the limits."""
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"parcel: want a header of {MAX_HEADER_BYTES} bytes, got {len(header)}")
    told = json.loads(text_of(header))
    if len(told["tensors"]) > MAX_TENSORS:
        raise ValueError(f"parcel: want at most {MAX_TENSORS} tensors, got {len(told['tensors'])}")
    sheets = [Sheet(name, kind, tuple(shape)) for name, kind, shape in told["tensors"]]
    for sheet in sheets:
        if sheet.kind not in KINDS:
            raise ValueError(f"parcel: {sheet.name}: no tensor travels as {sheet.kind!r}")
        if min(sheet.shape, default=0) < 0 or sheet.nbytes > MAX_TENSOR_BYTES:
            raise ValueError(
                f"parcel: {sheet.name}: want at most {MAX_TENSOR_BYTES} bytes, got {list(sheet.shape)}"
            )
    return told["tree"], sheets


def bytes_of(x: Tensor) -> Tensor:
    """The bytes of x in order, uint8 [n]; a copy only where x is not contiguous."""
    return x.detach().contiguous().view(-1).view(torch.uint8)


def empty_for(sheet: Sheet, device: torch.device) -> Tensor:
    return torch.empty(sheet.shape, dtype=KINDS[sheet.kind], device=device)


def text_tensor(text: str) -> Tensor:
    """A text as uint8 [n] on the host."""
    return torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)


def text_of(raw: Tensor) -> str:
    return bytes(raw.numpy()).decode()


def numbers_tensor(numbers: list[float], trouble: str, width: int) -> Tensor:
    """A rank's numbers, at most ``width``, and what went wrong there, if anything: uint8 of one size on all ranks."""
    if len(numbers) > width:
        raise ValueError(f"numbers: want at most {width}, got {len(numbers)}")
    said = trouble.encode()[:MAX_TROUBLE_BYTES].decode(errors="ignore").encode()
    text = said + bytes(MAX_TROUBLE_BYTES - len(said))
    table = torch.zeros(width + 1, dtype=torch.float64)
    table[0] = len(numbers)
    if numbers:
        table[1 : 1 + len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    return torch.cat(
        [torch.frombuffer(bytearray(text), dtype=torch.uint8), table.view(torch.uint8)]
    )


def read_numbers(raw: Tensor) -> tuple[list[float], str]:
    """The numbers and the trouble of ``numbers_tensor``."""
    table = raw[MAX_TROUBLE_BYTES:].clone().view(torch.float64)
    count = int(table[0])
    return table[1 : 1 + count].tolist(), text_of(raw[:MAX_TROUBLE_BYTES]).rstrip("\0")
