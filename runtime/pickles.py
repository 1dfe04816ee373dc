"""Tensors out of torch's .pt and .pth archives without running what a pickle may say, and without believing its sizes.

The archive is a zip. Before torch sees it: its records are stored as they are (nothing inflates), no longer together than
the file and few; its pickle is short and names nothing but tensors and dictionaries. Then torch reads it with
``weights_only=True`` into mapped memory. After that no tensor may claim more than its storage holds.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from runtime.manifest import quote
from runtime.shards import Stored
from runtime.tensorfile import DTYPES

MAX_PICKLE_BYTES = 16 << 20
MAX_RECORDS = 1 << 16
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
PLAIN = frozenset(DTYPES.values())
# What a file of tensors is pickled with; whatever else a pickle names is code of somebody's.
ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.storage UntypedStorage",
        "torch.serialization _get_layout",
        "torch Size",
    }
)
Taken = TypeVar("Taken")
ADVICE = (
    "only tensors are read; where you trust the file, save its state dict alone with torch.save"
)


def read_checkpoint(path: Path, nested: Sequence[str] = ()) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file, of its shards, or of a .pt or .pth archive; all of them mapped, none copied.

    ``path`` may be an index, or the name that the one file would have. ``nested`` as for ``read_pickle``; safetensors
    are flat and do without. ValueError names a file that is damaged, foreign or unsafe.
    """
    return read_pickle(path, nested=nested) if path.suffix in SUFFIXES else Stored(path)


def read_pickle(path: Path, *, nested: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a .pt or .pth archive, by name, as views of the mapped file.

    ``nested`` are keys that may hold the state dict, the first that is there is taken; without any, or where none is
    there, the file itself must be one. ValueError names the file and what is wrong with it; nothing of it has run.
    """
    _inspect(path)
    try:
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged pickle makes it raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{path}: torch cannot read it ({reason}); fetch or copy it again"
        ) from None
    state = _state_dict(path, table, nested)
    _measure(path, state)
    return {name: tensor.detach() for name, tensor in state.items()}


def _inspect(path: Path) -> None:
    """ValueError unless the archive is whole, nothing in it inflates and its pickle names nothing but tensors."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    records = _from_archive(path, lambda archive: archive.infolist())
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise ValueError(f"{path}: a TorchScript archive, which is code to run; {ADVICE}")
    _check_records(path, records)
    pickles = [record for record in records if record.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{path}: want one data.pkl in the archive, got {len(pickles)}")
    length = pickles[0].file_size
    if length > MAX_PICKLE_BYTES:
        raise ValueError(f"{path}: want a pickle of at most {MAX_PICKLE_BYTES} bytes, got {length}")
    _check_pickle(path, _from_archive(path, lambda archive: archive.read(pickles[0])))


def _from_archive(path: Path, read: Callable[[zipfile.ZipFile], Taken]) -> Taken:
    try:
        with zipfile.ZipFile(path) as archive:
            return read(archive)
    except Exception as error:  # whatever a damaged archive makes it raise
        raise ValueError(_no_archive(path, error)) from None


def _no_archive(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        begin = file.read(2)
    if begin[:1] == b"\x80":  # how every pickle begins
        return (
            f"{path}: a bare pickle, as torch wrote them before 1.6, is not read: it cannot be mapped or checked; "
            f"where you trust it, load it with weights_only=True and save it with a torch of today"
        )
    return f"{path}: not a whole .pt archive ({error}); fetch or copy it again"


def _check_records(path: Path, records: Sequence[zipfile.ZipInfo]) -> None:
    size = path.stat().st_size
    if len(records) > MAX_RECORDS:
        raise ValueError(f"{path}: want at most {MAX_RECORDS} records, got {len(records)}")
    if records and min(record.header_offset for record in records):
        # Two readers may take different things for the archive, and torch's is the other one.
        raise ValueError(f"{path}: has something before its first record; fetch or copy it again")
    for record in records:
        parts = record.filename.split("/")
        if record.filename.startswith("/") or ".." in parts or "\\" in record.filename:
            raise ValueError(
                f"{path}: a record's name leaves the archive: {record.filename[:80]!r}"
            )
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise ValueError(
                f"{path}: {record.filename[:80]} is compressed, so it may become any size, and torch writes "
                f"tensors as they are; unpack it and save it again where you trust it"
            )
    if (total := sum(record.file_size for record in records)) > size:
        raise ValueError(f"{path}: claims {total} bytes of records in a file of {size}")


def _check_pickle(path: Path, content: bytes) -> None:
    """ValueError that names what is pickled beside tensors. Reads the pickle's instructions and obeys none."""
    try:
        for code, argument, _ in pickletools.genops(io.BytesIO(content)):
            if code.name == "GLOBAL" and not _is_plain(str(argument)):
                name = ".".join(str(argument)[:120].split(" ", 1))
                raise ValueError(f"{path}: holds a pickled {name}, which is code to run; {ADVICE}")
            if code.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                raise ValueError(f"{path}: its pickle looks names up by {code.name}; {ADVICE}")
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path}: its pickle is damaged ({error}); fetch or copy it again"
        ) from None


def _is_plain(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    if name in ALLOWED:
        return True
    kind = (
        getattr(torch, attribute, None) if module == "torch" and attribute.isidentifier() else None
    )
    return isinstance(kind, torch.dtype) or (module == "torch" and attribute.endswith("Storage"))


def _state_dict(path: Path, table: Any, nested: Sequence[str]) -> dict[str, Tensor]:
    where = ""
    if isinstance(table, dict):
        taken = next((key for key in nested if isinstance(table.get(key), dict)), None)
        if taken is not None:
            table, where = table[taken], f" under {taken!r}"
    if not isinstance(table, dict) or not table:
        kind = "an empty one" if isinstance(table, dict) else type(table).__name__
        raise ValueError(f"{path}: want a dictionary of tensors{where}, got {kind}")
    foreign = sorted(
        f"{str(key)[:80]} ({type(value).__name__})"
        for key, value in table.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    )
    if foreign:
        known = f" or one of {', '.join(nested)} that holds one" if nested and not where else ""
        raise ValueError(
            f"{path}: want a dictionary of tensors{where}{known}, got {quote(foreign)}"
        )
    return table


def _measure(path: Path, state: Mapping[str, Tensor]) -> None:
    """ValueError that names a tensor which is more than the bytes behind it, or of no plain dtype."""
    size, total = path.stat().st_size, 0
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in state.items():
        if (
            tensor.dtype not in PLAIN
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
        ):
            kind = f"{tensor.dtype}, {tensor.layout} on {tensor.device}"
            raise ValueError(f"{path}: {name[:80]}: want plain numbers, got {kind}")
        held = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.itemsize
        wide = tensor.numel() * tensor.itemsize
        if wide > held or any(
            s == 0 < n - 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True)
        ):
            raise ValueError(
                f"{path}: {name[:80]}: claims {wide} bytes of shape {list(tensor.shape)} in a storage of {max(held, 0)}"
            )
        if (place := (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())) not in seen:
            seen.add(place)
            total += wide
    if total > size:
        raise ValueError(f"{path}: its tensors claim {total} bytes in a file of {size}")
