"""One safetensors file: what its header says, and how it is written. A header, then the tensors' bytes one after the other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_HEADER_BYTES = 32 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies in its file."""

    dtype: str  # as the header calls it
    shape: tuple[int, ...]
    begin: int  # bytes from the beginning of the file
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """What the header of a file says, once the library that owns the format has found the file whole."""
    try:
        with safe_open(path, framework="pt") as checked, path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"{path}: want a header of at most {MAX_HEADER_BYTES} bytes")
            table = json.loads(file.read(length))
            names = set(checked.keys())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}); fetch or copy it again"
        ) from None
    table.pop("__metadata__", None)
    size, start = path.stat().st_size, 8 + length
    entries = {}
    for name, said in table.items():
        begin, end = (start + offset for offset in said["data_offsets"])
        entry = Entry(said["dtype"], tuple(said["shape"]), begin, end)
        wide = DTYPES[entry.dtype].itemsize * math.prod(entry.shape) if entry.dtype in DTYPES else 0
        if not start <= begin <= end <= size or (wide and wide != end - begin):
            raise ValueError(
                f"{path}: {name[:80]}: does not lie in the file; fetch or copy it again"
            )
        entries[name] = entry
    if entries.keys() != names:
        raise ValueError(f"{path}: its header has a name twice; fetch or copy it again")
    return entries


def header_of(
    tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> tuple[list[str], bytes]:
    """The order in which ``tensors`` lie in a file, and all that comes before the first one's bytes."""
    table: dict[str, Any] = {}
    # Wide numbers first, so that each lies at a multiple of its size.
    order = sorted(tensors, key=lambda name: -dtypes[name].itemsize)
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        shape = list(tensors[name].shape)
        table[name] = {"dtype": NAMES[dtypes[name]], "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(table, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return order, len(header).to_bytes(8, "little") + header


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, where they lie."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    progress: Callable[[int], object],
) -> None:
    """Write ``tensors`` as ``dtypes``, each turned into what it is to be only when its bytes are due.

    ``progress`` is told how many bytes went. ValueError names a tensor that is not finite.
    """
    order, header = header_of(tensors, dtypes)
    with path.open("xb") as file:
        file.write(header)
        for name in order:
            value = tensors[name].detach().to("cpu", dtypes[name])
            if not is_finite(value):
                raise ValueError(f"{name} is not finite")
            raw = raw_bytes(value.contiguous())
            file.write(raw)
            progress(len(raw))


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor on the CPU has neither NaN nor infinity; numbers that cannot have them have not."""
    if not tensor.is_floating_point() or tensor.itemsize == 1 or not tensor.numel():
        return True
    # The extremes are finite if all are, and finding them takes no memory.
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
