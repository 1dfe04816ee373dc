"""A folder's manifest: the bytes and sha256 of every file in it, so that a flipped bit or a stray file has a name.

    manifest.json  {"format": 1, "facts": {"source": ..., "licence": ..., "revision": ...},
                    "files": {"dit.safetensors": {"bytes": 123, "sha256": "..."}, ...}}

Names are plain: a manifest cannot speak of a file outside its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
MAX_BYTES = 1 << 20
MAX_FILES = 1000
HASHERS = 8  # hashing lets go of the interpreter, so files are hashed side by side
LISTED = 4  # names quoted in an error


def quote(keys: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(keys[:LISTED]) + more


def inside(folder: Path, name: str, said_by: Path) -> Path:
    """The file ``name`` of ``folder``. ValueError unless it is a plain name of something that lies in the folder.

    A link may lead to a file of the same folder, or to one beside the file that names it: where a download is kept as
    links into a cache, all of them lead to one place.
    """
    if (
        not isinstance(name, str)
        or not name
        or name in (".", "..")
        or any(sign in name for sign in "/\\\0:")
    ):
        raise ValueError(f"{said_by}: want plain file names, got {str(name)[:80]!r}")
    path = folder / name
    if path.is_symlink():
        homes = (folder.resolve(), said_by.resolve().parent)
        if not any(path.resolve().is_relative_to(home) for home in homes):
            raise ValueError(f"{path}: is a link that leaves its folder; put the file itself there")
    return path


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: Any) -> str:
    digest, block = hashlib.sha256(), bytearray(1 << 20)
    view = memoryview(block)
    while count := file.readinto(block):
        digest.update(view[:count])
    return digest.hexdigest()


def write(folder: Path, facts: Mapping[str, str]) -> None:
    """Write the manifest of what lies in ``folder`` now, and see that everything is on the disk."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    with ThreadPoolExecutor(HASHERS) as pool:
        hashes = list(pool.map(sha256, paths))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, hashes, strict=True)
    }
    table = {"format": FORMAT, "facts": dict(facts), "files": files}
    (folder / MANIFEST).write_text(json.dumps(table, indent=1), encoding="utf-8")
    for path in (*paths, folder / MANIFEST, folder):
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The files that the manifest of ``folder`` lists. ValueError when it is not a manifest."""
    path = folder / MANIFEST
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: want at most {MAX_BYTES} bytes, got {path.stat().st_size}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    files = table.get("files") if isinstance(table, dict) else None
    if not isinstance(files, dict) or table.get("format") != FORMAT or len(files) > MAX_FILES:
        raise ValueError(
            f'{path}: want {{"format": {FORMAT}, "files": {{name: {{"bytes", "sha256"}}}}}} '
            f"of at most {MAX_FILES} files; convert or fetch the weights again"
        )
    for name, entry in files.items():
        inside(folder, name, path)
        if not (
            isinstance(entry, dict)
            and type(entry.get("bytes")) is int
            and isinstance(entry.get("sha256"), str)
        ):
            raise ValueError(f"{path}: {name[:80]}: want bytes and sha256, got {str(entry)[:80]}")
    return files


def verify(folder: Path, beside: Collection[str] = ()) -> None:
    """Compare every file of ``folder`` with its manifest. ValueError names the files that differ.

    Files called as in ``beside`` may lie there unlisted, for their owner puts them there, or be gone: who reads them
    knows better what to do.

    All bytes are read: about a second for 1 to 2 GB and core, and what is read is in the page cache when it is loaded. A
    folder without a manifest has nothing to be compared with, which is no error. Names that begin with a dot are not
    looked at, and neither are folders.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    files = read(folder)
    there = {
        path.name
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name != MANIFEST and not path.is_dir()
    }
    advice = "convert or fetch the weights again"
    gone = files.keys() - there
    if missing := sorted(gone - {*beside}):
        raise ValueError(f"{manifest}: lists files that are not there: {quote(missing)}; {advice}")
    if extra := sorted(there - files.keys() - {*beside}):
        raise ValueError(
            f"{manifest}: does not list {quote(extra)}, which lies beside it; remove what does not belong there, "
            f"or the manifest to go without it"
        )
    files = {name: entry for name, entry in files.items() if name not in gone}
    sized = [n for n, entry in files.items() if (folder / n).stat().st_size != entry["bytes"]]
    if sized:
        raise ValueError(
            f"{folder}: not of the length that its manifest says: {quote(sized)}; {advice}"
        )
    # The longest first, so that one large file does not begin last.
    names = sorted(files, key=lambda name: -files[name]["bytes"])
    with ThreadPoolExecutor(HASHERS) as pool:
        hashes = pool.map(lambda name: sha256(folder / name), names)
        changed = [
            name
            for name, digest in zip(names, hashes, strict=True)
            if digest != files[name]["sha256"]
        ]
    if changed:
        raise ValueError(
            f"{folder}: the bytes of {quote(changed)} are not those of its manifest: damaged or changed; {advice}"
        )
