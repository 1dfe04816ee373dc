"""A video between two chunks on disk: written whole or not at all, and read only when every byte is what was written.

A snapshot is a folder of two files. ``state.safetensors`` holds the tensors; ``snapshot.json`` says what they are, under
which settings and weights they were made, and the digests of both files. Nothing in either is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from runtime.manifest import sync
from runtime.output import reason
from runtime.packing import Packed
from runtime.tensorfile import DTYPES, NAMES, Entry, header_of, raw_bytes, read_header

log = logging.getLogger(__name__)

FORMAT, VERSION = "stream-t1-snapshot", 1
TREE_FILE, TENSOR_FILE = "snapshot.json", "state.safetensors"
MAX_TREE_BYTES = 16 << 20
LIMIT_BYTES = 64 << 30  # of tensors, if nobody says
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
# The digest comes first and covers every byte after it, so that nothing is parsed that was not checked.
FRONT = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')
MAX_DIGITS = 40  # of an integer
PIECE_BYTES = 1 << 20
SHOWN = 3  # differences that a refusal names
KINDS = {b"\x80": "a pickle", b"PK": "a zip archive", b"\x1f\x8b": "a gzip archive"}


def write(folder: Path, packed: Packed, config: str, name: str, keep: int = 2) -> Path:
    """Write a snapshot called ``name`` into ``folder``, which one writer owns, and remove all but the newest ``keep``.

    ``config`` is what must be the same when it is read: a JSON object, whose differences a refusal names, or any text.
    A newer snapshot has the longer name, or the greater one of equally long names. Returns the snapshot's folder.
    Raises ValueError for a name or a tree that cannot be written, and RuntimeError with the system's reason when the
    disk fails; nothing but the snapshots before is left then.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"snapshot name: want letters, digits, - and _, got {name[:80]!r}")
    target, temporary = folder / name, folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.tmp"):  # by a writer that was killed
            shutil.rmtree(left)
        try:
            temporary.mkdir()
            _fill(temporary, packed, config)
            _publish(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in snapshots(folder)[keep:]:
            shutil.rmtree(old)
    except OSError as error:
        raise RuntimeError(f"cannot write the snapshot {target}: {reason(error)}") from error
    return target


def snapshots(folder: Path) -> list[Path]:
    """The snapshots of a folder by their names, newest first; none where there is no folder."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def newest(
    folder: Path,
    config: str,
    limit_bytes: int = LIMIT_BYTES,
    tell: Callable[[str], object] = log.warning,
) -> tuple[Path, Packed] | None:
    """The newest snapshot that can be trusted, and where it lies; ``tell`` hears why newer ones cannot."""
    for path in snapshots(folder):
        try:
            return path, read(path, config, limit_bytes)
        except ValueError as error:
            tell(str(error))
    return None


def read(path: Path, config: str, limit_bytes: int = LIMIT_BYTES) -> Packed:
    """What was written to ``path``, its tensors on the CPU.

    ValueError that begins with the file's name for whatever is not exactly that, before anything of its size is
    allocated; also for more than ``limit_bytes`` of tensors.
    """
    if path.is_symlink():
        raise ValueError(f"{path}: is a link; want the snapshot's own folder")
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such snapshot")
    content = _read_content(path / TREE_FILE)
    _check_config(path / TREE_FILE, content["config"], config)
    return Packed(content["tree"], _read_tensors(path / TENSOR_FILE, content, limit_bytes))


def _fill(folder: Path, packed: Packed, config: str) -> None:
    """Both files of a snapshot, safe on the disk."""
    dtypes = {name: tensor.dtype for name, tensor in packed.tensors.items()}
    order, header = header_of(packed.tensors, dtypes)
    digest, size = hashlib.sha256(header), len(header)
    with (folder / TENSOR_FILE).open("xb") as file:
        file.write(header)
        for name in order:
            raw = raw_bytes(packed.tensors[name].detach().to("cpu").contiguous())
            file.write(raw)
            digest.update(raw)
            size += len(raw)
        _flush(file)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": config,
        "tensors_sha256": digest.hexdigest(),
        "tensors_bytes": size,
        "tensors": {name: _described(tensor) for name, tensor in packed.tensors.items()},
        "tree": packed.tree,
    }
    try:
        rest = json.dumps(content, allow_nan=False)[1:].encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"snapshot tree: want finite JSON types, got another ({error})") from None
    front = f'{{"sha256": "{_sha256(rest)}",\n'.encode()
    if len(front) + len(rest) > MAX_TREE_BYTES:
        raise ValueError(
            f"snapshot tree: want at most {MAX_TREE_BYTES} bytes of JSON, got {len(rest)}"
        )
    with (folder / TREE_FILE).open("xb") as file:
        file.write(front + rest)
        _flush(file)


def _publish(temporary: Path, target: Path) -> None:
    """Give a finished folder its name; a snapshot of that name stays whole until the new one takes its place."""
    sync(temporary)
    replaced = target.with_name(f".{target.name}.old.tmp")
    if target.exists():
        target.rename(replaced)
    try:
        temporary.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _described(tensor: Tensor) -> list[Any]:
    return [NAMES[tensor.dtype], list(tensor.shape)]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _open(path: Path) -> BinaryIO:
    """A regular file, and neither what a link points to nor a pipe that would keep its reader waiting."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except OSError as error:
        link = "is a link; want the snapshot's own file"
        why = link if path.is_symlink() else f"cannot be read: {reason(error)}"
        raise ValueError(f"{path}: {why}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path}: want a file, got something else")
    file = os.fdopen(handle, "rb")
    head = file.peek(8)[:8]
    kind = next((kind for magic, kind in KINDS.items() if head.startswith(magic)), None)
    # Ours begin with the length of a header, which may begin like any of those.
    if kind and int.from_bytes(head, "little") > os.fstat(handle).st_size:
        file.close()
        raise ValueError(f"{path}: is {kind}, which is never opened")
    return file


def _read_content(path: Path) -> dict[str, Any]:
    """What snapshot.json says, once its bytes are those that were written."""
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TREE_BYTES:
            raise ValueError(f"{path}: want at most {MAX_TREE_BYTES} bytes, got {size}")
        raw = file.read(size)
    front = FRONT.match(raw)
    if front is None:
        raise ValueError(f"{path}: is not the beginning of a snapshot")
    rest = raw[front.end() :]
    if _sha256(rest) != front[1].decode():
        raise ValueError(f"{path}: was cut short or changed since it was written (sha256)")
    content = _parsed(path, b"{" + rest)
    version = content.get("version")
    if content.get("format") != FORMAT or version != VERSION:
        raise ValueError(
            f"{path}: want {FORMAT} version {VERSION}, got {str(content.get('format'))[:40]} "
            f"version {str(version)[:40]}; make it again with this program"
        )
    kinds = {"config": str, "tensors_sha256": str, "tensors_bytes": int, "tensors": dict}
    for key, kind in {**kinds, "tree": dict}.items():
        if type(content.get(key)) is not kind:
            raise ValueError(
                f"{path}: {key}: want {kind.__name__}, got {type(content.get(key)).__name__}"
            )
    return content


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    """A JSON object without what JSON does not have, names twice or numbers that take for ever to read."""
    try:
        content = json.loads(
            raw,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON that this program writes ({error})") from None
    assert isinstance(content, dict)  # it begins with a brace
    return content


def _no_constant(word: str) -> float:
    raise ValueError(f"want a finite number, got {word}")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_constant(digits[:20])


def _short(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"want an integer of at most {MAX_DIGITS} digits, got {len(digits)}")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _check_config(path: Path, made: str, now: str) -> None:
    """ValueError that says what was different when the snapshot was made."""
    if made == now:
        return
    told = "another configuration"
    try:
        before, after = _flat(json.loads(made)), _flat(json.loads(now))
    except (ValueError, RecursionError):
        before, after = {}, {}
    names = [n for n in before.keys() | after.keys() if before.get(n) != after.get(n)]
    if names:
        told = "; ".join(
            f"{name} {_brief(before.get(name))}, now {_brief(after.get(name))}"
            for name in sorted(names)[:SHOWN]
        )
        told += f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise ValueError(f"{path}: made with other settings or weights: {told}")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Dotted names and what they stand for."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: inner
        for part, below in value.items()
        for key, inner in _flat(below, f"{name}.{part}" if name else part).items()
    }


def _brief(value: Any) -> str:
    return str(value)[:60]


def _read_tensors(path: Path, content: Mapping[str, Any], limit_bytes: int) -> dict[str, Tensor]:
    """Every tensor of a file that is exactly the one that ``content`` was written beside."""
    with _open(path) as file:
        size, want = os.fstat(file.fileno()).st_size, content["tensors_bytes"]
        if size > limit_bytes:
            raise ValueError(f"{path}: want at most {limit_bytes} bytes, got {size}")
        if size != want:
            raise ValueError(f"{path}: want {want} bytes, got {size}; it was cut short or grew")
        digest = hashlib.sha256()
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
        if digest.hexdigest() != content["tensors_sha256"]:
            raise ValueError(f"{path}: changed since it was written (sha256)")
        entries = read_header(path)
        described = {name: [one.dtype, list(one.shape)] for name, one in entries.items()}
        if described != content["tensors"]:
            raise ValueError(f"{path}: its header and {TREE_FILE} name different tensors")
        return {name: _tensor(path, file, name, entry) for name, entry in entries.items()}


def _tensor(path: Path, file: BinaryIO, name: str, entry: Entry) -> Tensor:
    if entry.dtype not in DTYPES:
        raise ValueError(f"{path}: {name[:80]}: want a known dtype, got {entry.dtype[:20]}")
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    file.seek(entry.begin)
    if file.readinto(raw_bytes(tensor)) != tensor.nbytes:  # type: ignore[attr-defined]
        raise ValueError(f"{path}: {name[:80]}: was cut short while it was read")
    return tensor
