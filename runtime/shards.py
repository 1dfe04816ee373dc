"""Tensors in safetensors files: read one at a time out of mapped memory, and written whole into a folder or not at all.

    net.safetensors    or net-00001-of-00002.safetensors, ...    or what net.safetensors.index.json lists

A file's header is checked before a byte of data is touched; tensors are views of the mapped file, so a large file costs
memory only where it is copied to.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from runtime import manifest
from runtime.manifest import inside, quote
from runtime.manifest import verify as verify
from runtime.tensorfile import DTYPES, MAX_HEADER_BYTES, NAMES, Entry, read_header, write_file

SHARD_BYTES = 2 << 30
MAX_SHARDS = 1000
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors")


class Stored(Mapping[str, Tensor]):
    """The tensors of a safetensors file or of all its shards; each is a view of the mapped file, made when asked for.

    ``path`` is the file, the index beside its shards, or the name that the one file would have. Headers are read and
    checked at once: ValueError names a file that is missing, cut short or none. The views are private: writing into one
    never reaches the disk. The files must not be cut short while views of them are in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = find_shards(path)
        self.entries: dict[str, Entry] = {}
        self._homes: dict[str, int] = {}  # which of the files
        for number, file in enumerate(self.files):
            for name, entry in read_header(file).items():
                if name in self.entries:
                    other = self.files[self._homes[name]].name
                    raise ValueError(
                        f"{file}: {name[:80]} is in {other} too; convert or fetch again"
                    )
                self.entries[name], self._homes[name] = entry, number
        self._maps: dict[int, mmap.mmap] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """As the headers call them."""
        return {name: entry.dtype for name, entry in self.entries.items()}

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{self.files[self._homes[name]]}: {name}: cannot read dtype {entry.dtype}"
            )
        dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(
            self._map(self._homes[name]), dtype=dtype, count=count, offset=entry.begin
        )
        if entry.begin % dtype.itemsize:
            flat = flat.clone()  # some files lay numbers where loads of whole words may not go
        return flat.view(entry.shape)

    def release(self, name: str) -> None:
        """Give back the memory that reading ``name`` took; it is read from the file again if it is used again.

        Only for a tensor that nobody wrote into: what was written is forgotten.
        """
        entry = self.entries[name]
        first = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = entry.end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map(self._homes[name]).madvise(mmap.MADV_DONTNEED, first, last - first)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            with self.files[number].open("rb") as file:
                self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[number]


def find_shards(path: Path) -> list[Path]:
    """The files that hold the tensors of ``path``, see ``Stored``. ValueError names what is missing."""
    index = path if path.suffix == ".json" else path.with_name(f"{path.name}.index.json")
    if path != index and path.exists():
        return [path]
    if index.is_file():
        return _indexed(index)
    matches = [_NUMBERED.fullmatch(file.name) for file in path.parent.glob("*-of-*.safetensors")]
    mine = sorted(match[0] for match in matches if match and match["stem"] == path.stem)
    if not mine:
        raise ValueError(f"{path}: no such file")
    count = int(mine[0].rpartition("-of-")[2].partition(".")[0])
    wanted = [
        shard_name(path.stem, number, count) for number in range(1, min(count, MAX_SHARDS) + 1)
    ]
    if missing := [name for name in wanted if name not in mine]:
        raise ValueError(f"{path.parent}: missing {quote(missing)}; copy or fetch it again")
    if extra := [name for name in mine if name not in wanted]:
        raise ValueError(
            f"{path.parent}: want {count} shards of {path.stem}, got also {quote(extra)}"
        )
    return [inside(path.parent, name, path.parent / wanted[0]) for name in wanted]


def shard_name(stem: str, number: int, count: int) -> str:
    return (
        f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"
    )


def _indexed(index: Path) -> list[Path]:
    if index.stat().st_size > MAX_HEADER_BYTES:
        raise ValueError(f"{index}: want at most {MAX_HEADER_BYTES} bytes of JSON")
    try:
        table = json.loads(index.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{index}: not a JSON file ({error})") from None
    places = table.get("weight_map") if isinstance(table, dict) else None
    named = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not named or not places:
        raise ValueError(f"{index}: want file names under the key 'weight_map'")
    names = list(dict.fromkeys(places.values()))
    if len(names) > MAX_SHARDS:
        raise ValueError(f"{index}: want at most {MAX_SHARDS} files, got {len(names)}")
    files = [inside(index.parent, name, index) for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{index}: lists files that are not there: {quote(missing)}")
    return files


class FolderWriter:
    """Writes a folder of weights beside its place, as ``NAME.part``, and moves it there when the block ends well.

    With every file goes a manifest of bytes and hashes. However else the block ends, nothing is left. ``dtype`` is what
    floating-point weights are stored in, None: as they come. ``progress`` is told how many bytes were written, and
    ``planned`` how many ``reserve`` was asked for.

    Raises ValueError when the folder exists and holds something; OSError when the disk does not take it.
    """

    def __init__(
        self,
        target: Path,
        dtype: torch.dtype | None = None,
        progress: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.target, self.dtype, self.progress = target, dtype, progress
        self.part = target.with_name(f"{target.name}.part")
        self.planned: Callable[[int], object] = lambda count: None
        self._facts: dict[str, str] = {}

    def __enter__(self) -> FolderWriter:
        if self.target.exists() and not (self.target.is_dir() and not any(self.target.iterdir())):
            raise ValueError(f"{self.target}: exists and is not an empty folder; name another one")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.part.mkdir()
        except FileExistsError:
            raise ValueError(
                f"{self.part}: exists: something writes it, or was killed while it did; then remove it"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                manifest.write(self.part, self._facts)
                self.part.replace(self.target)
                manifest.sync(self.target.parent)
        finally:
            shutil.rmtree(self.part, ignore_errors=True)

    def reserve(self, count: int) -> None:
        """Raises OSError unless the disk has room for ``count`` more bytes; ask before the first one is written."""
        self.planned(count)
        self._check_room(count)

    def _check_room(self, count: int) -> None:
        free = shutil.disk_usage(self.part).free
        if free < count:
            need, have = (f"{value / 2**30:.2f} GiB" for value in (count, free))
            raise OSError(f"{self.target}: wants {need} of disk, {have} are free")

    def stored_bytes(self, tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> int:
        """What ``weights`` would take for them."""
        return sum(t.numel() * self._stored_dtype(t, dtype).itemsize for t in tensors)

    def weights(
        self,
        name: str,
        tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write ``name.safetensors``, or its shards where it is longer than ``SHARD_BYTES``.

        Tensors are taken one after the other and kept until their shard is full. ValueError for a name that comes
        twice, a number that is not finite or a dtype that the format does not have.
        """
        shards: list[Path] = []
        waiting: dict[str, Tensor] = {}
        seen: set[str] = set()
        filled = 0
        for key, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
            if key in seen or tensor.dtype not in NAMES:
                reason = "comes twice" if key in seen else f"cannot be stored as {tensor.dtype}"
                raise ValueError(f"{name}: {key}: {reason}")
            seen.add(key)
            size = tensor.numel() * self._stored_dtype(tensor, dtype).itemsize
            if waiting and filled + size > SHARD_BYTES:
                shards.append(self._write_shard(name, len(shards), waiting, dtype))
                waiting, filled = {}, 0
            waiting[key] = tensor
            filled += size
        shards.append(self._write_shard(name, len(shards), waiting, dtype))
        for number, path in enumerate(shards, 1):
            path.rename(self._place(shard_name(name, number, len(shards))))

    def json(self, name: str, table: Any) -> None:
        """Write ``table`` as ``name``.json, or as ``name`` if that ends so already."""
        file = name if name.endswith(".json") else f"{name}.json"
        self.text(file, json.dumps(table, indent=1, ensure_ascii=False))

    def text(self, name: str, text: str) -> None:
        self._place(name).write_text(text, encoding="utf-8")

    def copy(self, name: str, path: Path) -> None:
        """Copy a file into the folder as ``name``."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        self.progress(shutil.copyfile(path, self._place(name)).stat().st_size)

    def facts(self, **strings: str) -> None:
        """What the manifest shall say beside the hashes: source, licence, revision."""
        self._facts |= strings

    def _place(self, name: str) -> Path:
        path = inside(self.part, name, self.target)
        if path.exists() or name == manifest.MANIFEST:
            raise ValueError(f"{self.target}: {name} is there already")
        return path

    def _stored_dtype(self, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
        wanted = dtype or self.dtype
        return wanted if wanted and tensor.is_floating_point() else tensor.dtype

    def _write_shard(
        self, name: str, number: int, tensors: Mapping[str, Tensor], dtype: torch.dtype | None
    ) -> Path:
        self._check_room(self.stored_bytes(tensors.values(), dtype))
        path = self._place(f"{name}.{number}.unfinished")
        dtypes = {key: self._stored_dtype(tensor, dtype) for key, tensor in tensors.items()}
        try:
            write_file(path, tensors, dtypes, self.progress)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return path
