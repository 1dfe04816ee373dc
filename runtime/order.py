"""What a fetch takes: every file settled to a commit, a size and a digest before the first byte is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.catalogue import Part, Row
from runtime.hub import Hub, Listing, RemoteFile
from runtime.manifest import MANIFEST
from runtime.pins import read_pins, settle, write_pins
from runtime.weights import read_config


@dataclass(frozen=True, slots=True)
class Wish:
    """What a call asks for."""

    rows: Sequence[Row]
    home: Path
    revisions: Mapping[str, str] = field(
        default_factory=dict
    )  # commits that it names, by repository
    update: bool = False  # settle anew, and replace what is converted
    convert: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file that must be here."""

    part: Part
    path: str
    revision: str
    file: RemoteFile
    held: Path | None  # where it is already

    @property
    def place(self) -> Path:
        """Where it belongs below the folder that is converted."""
        return Path(self.part.folder, *self.path.split("/"))


@dataclass(frozen=True, slots=True)
class Order:
    """Everything that a call takes, settled to commits and sizes; nothing is downloaded yet."""

    wish: Wish
    hub: Hub
    files: Mapping[str, tuple[Wanted, ...]]  # of every row by name, without those that are done
    notes: tuple[str, ...]

    @property
    def missing(self) -> dict[tuple[str, str], Wanted]:
        """What must be downloaded; rows share files."""
        return {
            (file.part.repo, file.path): file
            for files in self.files.values()
            for file in files
            if file.held is None
        }

    @property
    def download_bytes(self) -> int:
        return sum(file.file.bytes for file in self.missing.values())

    @property
    def converted_bytes(self) -> int:
        """At most: a conversion drops what is not needed and adds next to nothing."""
        return self.wish.convert * sum(
            file.file.bytes for files in self.files.values() for file in files
        )


def place_order(wish: Wish, hub: Hub) -> Order:
    """Settle every repository to a commit and write the pins down.

    ValueError for a commit of a repository that is not asked for, and for a folder that may not be replaced.
    """
    known = {part.repo for row in wish.rows for part in row.parts}
    if strange := sorted(wish.revisions.keys() - known):
        raise ValueError(
            f"--revision: {strange[0]} is no part of this; known: {', '.join(sorted(known))}"
        )
    folders = [row.folder for row in wish.rows]
    if wish.convert and (twice := [name for name in folders if folders.count(name) > 1]):
        rivals = " and ".join(row.name for row in wish.rows if row.folder == twice[0])
        raise ValueError(f"{rivals} make one folder, {wish.home / twice[0]}; fetch one of them")
    pins = read_pins(wish.home)
    settled: dict[str, Listing] = {}  # of this call, so that --update asks once
    files: dict[str, tuple[Wanted, ...]] = {}
    notes: list[str] = []
    for row in wish.rows:
        wanted: list[Wanted] = []
        for part in row.parts:
            before = settled.get(part.repo) or pins.get(part.repo)
            update = wish.update and part.repo not in settled
            listing = settle(part, before, hub, wish.revisions.get(part.repo, ""), update)
            if before is None or listing.revision != before.revision:
                notes.append(f"{part.repo}: pinned to {listing.revision}")
            settled[part.repo] = listing
            wanted += _wanted(part, listing, hub)
        if wish.convert and _is_done(row, wish, wanted):
            notes.append(f"{row.name}: is in {wish.home / row.folder} already; run: {row.use}")
        else:
            files[row.name] = tuple(wanted)
    if any(pins.get(repo) != listing for repo, listing in settled.items()):
        write_pins(wish.home, pins | settled)
    return Order(wish, hub, files, tuple(notes))


def _wanted(part: Part, listing: Listing, hub: Hub) -> Iterator[Wanted]:
    for file in part.files:
        held = hub.held(part.repo, file.path, listing.revision)
        yield Wanted(part, file.path, listing.revision, listing.files[file.path], held)


def _is_done(row: Row, wish: Wish, files: Sequence[Wanted]) -> bool:
    """Whether what is asked lies there converted. ValueError when something else does and may not be replaced."""
    target = wish.home / row.folder
    if not target.is_dir() or not any(target.iterdir()):
        return False
    made_of, asked = _made_of(target), origin(files)
    if made_of == asked:
        return True
    if not made_of:
        raise ValueError(
            f"{target}: was not made of published files and will not be replaced; name another place with -o DIR"
        )
    if not wish.update:
        raise ValueError(f"{target}: was made of {made_of}; add --update to replace it by {asked}")
    return False


def _made_of(target: Path) -> str:
    """What the manifest of a converted folder says it was made of; "" without one."""
    path = target / MANIFEST
    facts = read_config(path).get("facts") if path.is_file() else None
    return str(facts.get("source", "")) if isinstance(facts, dict) else ""


def origin(files: Sequence[Wanted]) -> str:
    """Repositories and commits, as a manifest tells them."""
    return ", ".join(dict.fromkeys(f"{file.part.repo}@{file.revision}" for file in files))


def check_room(order: Order) -> None:
    """RuntimeError when a disk has less room than the order needs."""
    needs = ((order.hub.folder, order.download_bytes), (order.wish.home, order.converted_bytes))
    disks: dict[int, tuple[Path, int]] = {}
    for place, count in needs:
        folder = existing(place)
        device = os.stat(folder).st_dev
        disks[device] = (folder, count + disks.get(device, (folder, 0))[1])
    for folder, count in disks.values():
        free = shutil.disk_usage(folder).free
        if free < count:
            raise RuntimeError(
                f"{folder}: want {in_words(count)} of free disk, got {in_words(free)}; make room, or name "
                "another disk with -o DIR (and HF_HOME for the downloads)"
            )


def existing(folder: Path) -> Path:
    """The nearest folder above, or it itself, that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def in_words(count: int) -> str:
    """A number of bytes."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"
