"""Engines on disk: found by everything that went into them, written whole or not at all, checked before they are used.

    <folder>/<key>.engine   the engine            <key>.json  its manifest: what it is, its size and sha256
             <key>.log      how it was built      <key>.jit   kernels compiled when it first ran
             timings-<...>  of kernels, for the next build    lock      held by whoever builds

The key is a hash of the graph's hashes, library, version, GPU, profiles, precision and options: what differs in any of them
is another engine. A lock dies with its process, so a builder that is killed leaves nothing that would be waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.exported import GraphSpec
from runtime.manifest import sync
from runtime.trt.place import EnginePlace
from runtime.trt.vendor import EngineDamaged, EngineError

log = logging.getLogger(__name__)

FORMAT = 1
KEY_DIGITS = 32  # of a sha256, in file names
MANIFEST_BYTES = 1 << 20
ROOM = 1.5  # an engine may be that much larger than its graph's files
SPARE_BYTES = 64 << 20
WAIT_SECONDS = 3600.0  # for another process's build
POLL_SECONDS = 0.2
DIGEST_BYTES = 32

Stamp = tuple[int, int, int]  # tells one file of a name from the next


@dataclass(frozen=True, slots=True)
class Entry:
    """The files of one engine, whether they are there or not."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def key(self) -> str:
        return hashlib.sha256(_canonical(self.facts)).hexdigest()[:KEY_DIGITS]

    @property
    def engine(self) -> Path:
        return self.folder / f"{self.key}.engine"

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.key}.log"

    @property
    def jit(self) -> Path:
        return self.folder / f"{self.key}.jit"

    @property
    def stamp(self) -> Stamp | None:
        """Of the manifest as it is now, which is written last and anew with every build; None: there is no engine."""
        try:
            status = self.manifest.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    @contextlib.contextmanager
    def read(self) -> Iterator[mmap.mmap]:
        """The engine's bytes, mapped. EngineDamaged when they, or the manifest, are not what was written."""
        wanted = self._read_manifest()["engine"]
        try:
            with self.engine.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != wanted["bytes"]:
                    raise EngineDamaged(f"{self.engine}: want {wanted['bytes']} bytes, got {size}")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
                    got = hashlib.sha256(plan).hexdigest()
                    if got != wanted["sha256"]:
                        raise EngineDamaged(
                            f"{self.engine}: want sha256 {wanted['sha256'][:16]}..., got {got[:16]}..."
                        )
                    yield plan
        except OSError as error:
            raise EngineDamaged(f"{self.engine}: cannot be read ({error.strerror})") from error

    def _read_manifest(self) -> Mapping[str, Any]:
        try:
            with self.manifest.open("rb") as file:
                text = file.read(MANIFEST_BYTES + 1)
            if len(text) > MANIFEST_BYTES:
                raise ValueError(f"want at most {MANIFEST_BYTES} bytes")
            table = json.loads(text)
            engine = table["engine"]
            if table["format"] != FORMAT or type(engine["bytes"]) is not int or engine["bytes"] < 1:
                raise ValueError("want a format and a size")
            if not isinstance(engine["sha256"], str):
                raise ValueError("want a sha256")
            if _canonical(table["facts"]) != _canonical(self.facts):
                raise ValueError("it is another engine's")
        except OSError as error:
            raise EngineDamaged(f"{self.manifest}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EngineDamaged(f"{self.manifest}: damaged ({error})") from error
        return table

    def write(self, plan: Any, lines: Sequence[tuple[str, str]], notes: Mapping[str, Any]) -> None:
        """Keep an engine. Its manifest comes last: without one there is no engine."""
        digest = hashlib.sha256(plan).hexdigest()
        table = {
            "format": FORMAT,
            "facts": self.facts,
            "engine": {"bytes": memoryview(plan).nbytes, "sha256": digest},
            "build": {**notes, "log": self.log.name},
        }
        text = "\n".join(f"{severity.lower()}: {message}" for severity, message in lines)
        with _disk(self.folder):
            write_whole(self.log, (text + "\n").encode(errors="replace"))
            write_whole(self.engine, plan)
            write_whole(self.manifest, (json.dumps(table, indent=1) + "\n").encode())

    def set_aside(self) -> None:
        """Rename a damaged engine to ``<key>.damaged``, the newest of which is kept, and forget the rest."""
        with _disk(self.folder):
            self.manifest.unlink(missing_ok=True)
            self.jit.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.engine.replace(self.engine.with_suffix(".damaged"))
            sync(self.folder)


def entries(spec: GraphSpec, place: EnginePlace) -> list[Entry]:
    """The engines that would do, best first; the first is the one to build."""
    version = str(place.kind.load().__version__)
    return [Entry(place.folder, _facts(spec, place, version, target)) for target in place.targets()]


def _facts(spec: GraphSpec, place: EnginePlace, version: str, target: str) -> dict[str, Any]:
    return {
        "graph": spec.name,
        "onnx_sha256": spec.sha256,
        "data_sha256": dict(spec.data),
        "inputs": {name: asdict(port) for name, port in spec.inputs.items()},
        "outputs": {name: asdict(port) for name, port in spec.outputs.items()},
        "profiles": [dict(profile) for profile in spec.profiles],
        "vendor": place.vendor,
        "version": version,
        "target": target,
        "precision": place.precision,
        "options": asdict(place.options),
    }


def _canonical(facts: Any) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the folder's lock. Whoever else builds is waited for, an hour at most; EngineError after that."""
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    with file:
        _wait(file.fileno(), folder, what)
        yield  # closing the file releases the lock


def _wait(descriptor: int, folder: Path, what: str) -> None:
    began = time.monotonic()
    waiting = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            raise EngineError(f"{folder / 'lock'}: cannot be locked ({error.strerror})") from error
        if not waiting:
            log.info("%s: another process builds in %s; waiting for it", what, folder)
            waiting = True
        if time.monotonic() - began > WAIT_SECONDS:
            raise EngineError(f"{folder / 'lock'}: held for {WAIT_SECONDS:.0f} s by another process; is it stuck?")  # fmt: skip
        time.sleep(POLL_SECONDS)


def check_room(onnx: Path, spec: GraphSpec, folder: Path) -> None:
    """EngineError when the disk has no room for what a build leaves."""
    with _disk(folder):
        needed = SPARE_BYTES + int(ROOM * sum((onnx.parent / name).stat().st_size for name in (onnx.name, *spec.data)))  # fmt: skip
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise EngineError(
            f"{folder}: want {needed / 2**20:,.0f} MiB free to build {spec.name}, got {free / 2**20:,.0f} MiB"
        )


def timings_path(place: EnginePlace, version: str, target: str) -> Path:
    """Of the timings that builds for this GPU share."""
    digest = hashlib.sha256(f"{place.vendor} {version} {target}".encode()).hexdigest()
    return place.folder / f"timings-{digest[:KEY_DIGITS]}"


def read_sealed(path: Path) -> bytes:
    """What ``write_sealed`` wrote; empty when it is missing or damaged, since it only saves time."""
    try:
        blob = path.read_bytes()
    except OSError:
        return b""
    digest, content = blob[:DIGEST_BYTES], blob[DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else b""


def write_sealed(path: Path, content: bytes) -> None:
    """Keep bytes behind their own hash."""
    with _disk(path.parent):
        write_whole(path, hashlib.sha256(content).digest() + content)


def write_whole(path: Path, content: Any) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(f"{error.filename or folder}: {error.strerror}; engines are kept there") from error  # fmt: skip


def prune(folder: Path, keep: Sequence[str]) -> list[str]:
    """Delete every engine in ``folder`` whose key is not in ``keep``, and damaged ones; the names of what went."""
    gone = []
    with locked(folder, "prune"), _disk(folder):
        for path in sorted(folder.iterdir()):
            stale = path.suffix in (".engine", ".json", ".log", ".jit") and path.stem not in keep
            if stale or path.suffix in (".damaged", ".part"):
                path.unlink()
                gone.append(path.name)
    return gone
