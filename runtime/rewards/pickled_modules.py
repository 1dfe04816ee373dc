"""Takes the tensors out of a pickled ``torch.nn.Module`` without running or importing any of what its pickle names.

Some rewards are published as ``torch.save(model)``: a program that would import their authors' package and call into it.
``runtime/rewards/inert_pickle.py`` reads such a program as a description; here the description is searched for ``_parameters``,
``_buffers`` and ``_modules``, and the tensors are views of the archive's own bytes. Nothing else is taken.

Raises  ValueError that names the file: no zip archive, compressed records, a storage of the wrong size, a tensor that reaches
        outside its storage, a module that holds itself.
"""

from __future__ import annotations

import itertools
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.rewards.inert_pickle import MAX_BYTES, Foreign, Made, Name, run

MAX_RECORDS = 100_000
MAX_DEPTH = 64
MAX_TENSORS = 100_000
MAX_MODULES = 100_000  # a module may stand in two places, which may stand in two places, ...
LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # of a zip record: signature, lengths of the name and of what follows it
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")


@dataclass(frozen=True, slots=True)
class PickledModule:
    """What was found: the name of the module's class, which was not imported, and its tensors by their dotted names."""

    kind: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class TensorNote:
    """A tensor as its pickle describes it, checked only when it is read."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def read_module(path: Path) -> PickledModule:
    """The tensors of the module in ``path``, a zip archive that ``torch.save`` wrote; memory-mapped, so nothing is copied."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, Records(path, archive))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: not a whole zip archive of torch.save ({error}); files of before torch 1.6 are not read"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path, records: Records) -> PickledModule:
    root = run(records.program(), _rebuild)
    if not isinstance(root, Made) or not isinstance(root.what, Name):
        raise ValueError(
            f"want a pickled module, got {type(root).__name__}; a plain state dict is read by runtime.pickles"
        )
    notes: dict[str, TensorNote] = {}
    for name, note in _walk(root, "", (), itertools.count()):
        if len(notes) >= MAX_TENSORS:
            raise ValueError(f"want at most {MAX_TENSORS} tensors")
        notes[name] = note
    if not notes:
        raise ValueError(f"{root.what} holds no parameters")
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    tensors = {name: records.tensor(whole, name, note) for name, note in notes.items()}
    return PickledModule(str(root.what), tensors)


def _rebuild(name: Name, arguments: Any) -> Any:
    """The few calls that describe tensors and dictionaries, as notes; everything else stays a note of a call."""
    if name == Name("collections", "OrderedDict"):
        return {}
    if name.module == "torch._utils" and isinstance(arguments, tuple):
        if name.name == "_rebuild_tensor_v2" and len(arguments) >= 4:
            return TensorNote(*arguments[:4])
        if name.name in PARAMETERS and arguments:
            return arguments[0]
    return None


def _walk(
    module: Made, prefix: str, above: tuple[int, ...], seen: Iterator[int]
) -> Iterator[tuple[str, TensorNote]]:
    """Names and tensors of a module and those inside it; ``seen`` counts the modules."""
    if next(seen) >= MAX_MODULES:
        raise ValueError(f"want at most {MAX_MODULES} modules")
    if id(module) in above or len(above) >= MAX_DEPTH:
        raise ValueError(f"{prefix or 'the module'}: holds itself, or more than {MAX_DEPTH} deep")
    state = module.state
    if not isinstance(state, Mapping):
        return
    for kind in ("_parameters", "_buffers"):
        for name, value in _entries(state.get(kind), prefix + kind):
            if isinstance(value, TensorNote):
                yield prefix + name, value
    for name, value in _entries(state.get("_modules"), prefix + "_modules"):
        if isinstance(value, Made):
            yield from _walk(value, f"{prefix}{name}.", (*above, id(module)), seen)


def _entries(table: Any, where: str) -> Iterator[tuple[str, Any]]:
    if table is None:
        return
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: want a dictionary, got {type(table).__name__}")
    for name, value in table.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{where}: want names without dots, got {str(name)[:40]!r}")
        yield name, value


class Records:
    """The archive's table of contents. Records are stored as they are; a compressed one could be of any size."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        found = archive.infolist()
        if len(found) > MAX_RECORDS:
            raise ValueError(f"want at most {MAX_RECORDS} records, got {len(found)}")
        self.found = {record.filename: record for record in found}
        if len(self.found) < len(found):
            raise ValueError("two records of one name; the file is not what torch.save writes")
        packed = [record.filename for record in found if record.compress_type or record.flag_bits & 1]  # fmt: skip
        if packed:
            raise ValueError(f"{packed[0]}: is compressed or encrypted; torch.save does neither")
        programs = [name for name in self.found if name.count("/") == 1 and name.endswith("/data.pkl")]  # fmt: skip
        if len(programs) != 1:
            raise ValueError(f"want one <name>/data.pkl, got {len(programs)}")
        self.root = programs[0].rpartition("/")[0]
        order = self.found.get(f"{self.root}/byteorder")
        if order is not None and (order.file_size != 6 or archive.read(order) != b"little"):
            raise ValueError("was written on a big-endian machine; save it again on another")
        self.starts = {name: self._start(record) for name, record in self.found.items()}

    def program(self) -> bytes:
        record = self.found[f"{self.root}/data.pkl"]
        if record.file_size > MAX_BYTES:
            raise ValueError(f"data.pkl: want at most {MAX_BYTES} bytes, got {record.file_size}")
        return self.archive.read(record)

    def tensor(self, whole: Tensor, name: str, note: TensorNote) -> Tensor:
        """A view of the file's bytes. ValueError unless the note stays inside its storage, and that inside the file."""
        dtype, start, count = self._storage(name, note.storage)
        numbers = (note.offset, *_numbers(name, note.size), *_numbers(name, note.stride))
        sizes, strides = note.size, note.stride
        if type(note.offset) is not int or min(numbers) < 0 or len(sizes) != len(strides):
            raise ValueError(f"{name}: offset, size and stride make no tensor")
        elements = math.prod(sizes)
        last = note.offset + sum(
            (size - 1) * stride for size, stride in zip(sizes, strides, strict=True)
        )
        if elements and (last >= count or elements > count):
            raise ValueError(f"{name}: reaches outside its storage of {count} elements")
        numbers_here = whole[start : start + count * dtype.itemsize]
        if start % dtype.itemsize:
            numbers_here = numbers_here.clone()
        flat = numbers_here.view(dtype)
        if not elements:
            return flat.new_empty(sizes)
        return flat.as_strided(sizes, strides, flat.storage_offset() + note.offset)

    def _storage(self, name: str, storage: Any) -> tuple[torch.dtype, int, int]:
        """Its dtype, where it begins in the file and how many elements it has."""
        known = storage.identity if isinstance(storage, Foreign) else None
        if not isinstance(known, tuple) or len(known) != 5 or known[0] != "storage":
            raise ValueError(f"{name}: is a tensor without a storage")
        _, kind, key, _, count = known
        dtype = STORAGES.get(kind.name) if isinstance(kind, Name) and kind.module == "torch" else None  # fmt: skip
        record = self.found.get(f"{self.root}/data/{key}") if isinstance(key, str) else None
        if dtype is None or record is None or type(count) is not int:
            label = kind if isinstance(kind, Name) else type(kind).__name__
            raise ValueError(f"{name}: a storage of {label} is not in the archive")
        if record.file_size != count * dtype.itemsize:
            raise ValueError(
                f"{name}: storage {key}: want {count} elements of {dtype}, got {record.file_size} bytes"
            )
        return dtype, self.starts[record.filename], count

    def _start(self, record: zipfile.ZipInfo) -> int:
        """Where a record's bytes begin. The table of contents does not say: it is behind the record's own header."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            file.seek(record.header_offset)
            header = file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{record.filename}: has no header of its own; the file is damaged")
        _, name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
        start = record.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
        if start + record.file_size > size:
            raise ValueError(f"{record.filename}: ends behind the file; copy it again")
        return start


def _numbers(name: str, values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 16 or any(type(v) is not int for v in values):
        raise ValueError(f"{name}: want sizes and strides of whole numbers")
    return values
