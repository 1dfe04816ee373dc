"""Bring published weights here, checked and converted: ``python -m runtime.fetch longlive hpsv3 videoalign``.

It first shows what it would take: files, sizes, licences and the disk they need. Files come from the hub at a pinned
commit and are checked against the digests that the hub states; then they are converted into ``<home>/<name>/``. Exit
codes: 0 done, 1 the machine or the hub failed, 2 the call was wrong, 130 and 143 stopped. Every error is one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runtime.__main__ import Terminated, complain, say, stopped_by_sigterm
from runtime.catalogue import CATALOGUE, Part, Row, find_row
from runtime.hub import FULL, Hub, HubError, HuggingFace, Listing, RemoteFile, check_file, discard
from runtime.manifest import MANIFEST
from runtime.pins import parse_revisions, read_pins, settle, write_pins
from runtime.settings import weights_home
from runtime.weights import read_config

RUBRIC = "rubric.txt"  # of some rewards; the user put it there
SOURCES = "sources"  # a folder of links for each thing that is being converted


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

    home: Path
    hub: Hub
    files: Mapping[str, tuple[Wanted, ...]]  # of every row by name

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
        return sum(file.file.bytes for files in self.files.values() for file in files)


def main(arguments: Sequence[str] | None = None, hub: Hub | None = None) -> int:
    """The exit code. ``hub`` is Hugging Face's unless a test brings its own."""
    try:
        with stopped_by_sigterm():
            run(_parse(arguments), hub)
        return 0
    except KeyboardInterrupt as stop:
        complain("stopped", "what has arrived is kept; the same command goes on from there")
        return 143 if isinstance(stop, Terminated) else 130
    except (ValueError, RuntimeError, OSError, ImportError, MemoryError) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        advice = "; the disk is full: make room and run the same command again" if full else ""
        complain("error", f"{error}{advice}")
        return 2 if isinstance(error, ValueError) else 1


def run(options: argparse.Namespace, hub: Hub | None = None) -> None:
    """Do what the options say."""
    if options.list:
        say("\n".join(_catalogue()))
        return
    rows = [find_row(name) for name in dict.fromkeys(options.names)]
    home = Path(options.output).expanduser() if options.output else weights_home()
    convert = not options.no_convert
    try:
        order = place_order(rows, home, hub or HuggingFace(), options)
        if not order.files:
            return
        say("\n".join(_shown(order, convert)))
        check_room(order, convert)
        if not options.yes:
            _confirm()
        carry_out(order, convert)
    except HubError as error:
        raise RuntimeError(f"{error}; {_advice(error, rows, home)}") from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m runtime.fetch",
        description="Fetch published weights at pinned commits, check them and convert them.",
        epilog=f"NAME is one of {', '.join(CATALOGUE)}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="what to fetch, see --list")
    add("-o", "--output", metavar="DIR", help="where weights live (default: $STREAM_T1_WEIGHTS or ~/.cache/stream-t1-runtime)")  # fmt: skip
    add("--yes", action="store_true", help="do not ask before downloading")
    add("--list", action="store_true", help="show everything that can be fetched and stop")
    add("--no-convert", action="store_true", help="download and check, but do not convert")
    add("--update", action="store_true", help="settle on commits anew instead of keeping the pinned ones")  # fmt: skip
    add("--revision", action="append", default=[], metavar="REPO=COMMIT", help="take this commit of a repository")  # fmt: skip
    options = parser.parse_args(arguments)
    if not options.list and not options.names:
        raise ValueError(f"say what to fetch: {', '.join(CATALOGUE)}; --list tells more")
    return options


def place_order(rows: Sequence[Row], home: Path, hub: Hub, options: argparse.Namespace) -> Order:
    """Settle every repository to a commit and write the pins down."""
    chosen = parse_revisions(options.revision)
    known = {part.repo for row in rows for part in row.parts}
    if strange := sorted(chosen.keys() - known):
        raise ValueError(f"--revision: {strange[0]} is no part of this; known: {', '.join(sorted(known))}")  # fmt: skip
    pins = read_pins(home)
    settled: dict[str, Listing] = {}  # of this call, so that --update asks once
    files: dict[str, tuple[Wanted, ...]] = {}
    for row in rows:
        wanted: list[Wanted] = []
        for part in row.parts:
            before = settled.get(part.repo) or pins.get(part.repo)
            update = options.update and part.repo not in settled
            listing = settle(part, before, hub, chosen.get(part.repo, ""), update)
            if before is None or listing.revision != before.revision:
                say(f"{part.repo}: pinned to {listing.revision}")
            settled[part.repo] = listing
            wanted += _wanted(part, listing, hub)
        if options.no_convert or not _is_done(row, home, wanted, options.update):
            files[row.name] = tuple(wanted)
    if settled != {repo: pins.get(repo) for repo in settled}:
        write_pins(home, pins | settled)
    return Order(home, hub, files)


def _wanted(part: Part, listing: Listing, hub: Hub) -> Iterator[Wanted]:
    for file in part.files:
        held = hub.held(part.repo, file.path, listing.revision)
        yield Wanted(part, file.path, listing.revision, listing.files[file.path], held)


def _is_done(row: Row, home: Path, files: Sequence[Wanted], update: bool) -> bool:
    """Whether what is asked lies there converted. ValueError when something else does and may not be replaced."""
    target = home / row.folder
    if not target.is_dir() or not any(target.iterdir()):
        return False
    made_of = _made_of(target)
    if made_of == _origin(files):
        say(f"{row.name}: is in {target} already; run: {row.use}")
        return True
    if not made_of:
        raise ValueError(f"{target}: was not fetched and will not be replaced; name another place with -o DIR")  # fmt: skip
    if not update:
        raise ValueError(f"{target}: was made of {made_of}; add --update to replace it by {_origin(files)}")  # fmt: skip
    return False


def _made_of(target: Path) -> str:
    """What the manifest of a converted folder says it was made of; "" without one."""
    path = target / MANIFEST
    facts = read_config(path).get("facts") if path.is_file() else None
    return str(facts.get("source", "")) if isinstance(facts, dict) else ""


def _origin(files: Sequence[Wanted]) -> str:
    return ", ".join(dict.fromkeys(f"{file.part.repo}@{file.revision}" for file in files))


def check_room(order: Order, convert: bool) -> None:
    """RuntimeError when a disk has less room than the order needs."""
    needs = {order.hub.folder: order.download_bytes}
    needs[order.home] = needs.get(order.home, 0) + (order.converted_bytes if convert else 0)
    disks: dict[int, tuple[Path, int]] = {}
    for folder, count in needs.items():
        folder = _existing(folder)
        device = os.stat(folder).st_dev
        disks[device] = (folder, disks.get(device, (folder, 0))[1] + count)
    for folder, count in disks.values():
        free = shutil.disk_usage(folder).free
        if free < count:
            raise RuntimeError(
                f"{folder}: want {_size(count)} of free disk, got {_size(free)}; make room, or name another "
                "disk with -o DIR (and HF_HOME for the downloads)"
            )


def carry_out(order: Order, convert: bool) -> None:
    """Download what is missing, check everything, convert."""
    brought = {
        key: order.hub.download(file.part.repo, file.path, file.revision)
        for key, file in order.missing.items()
    }
    for name, files in order.files.items():
        source = order.home / SOURCES / name
        shutil.rmtree(source, ignore_errors=True)
        for file in files:
            path = file.held or brought[file.part.repo, file.path]
            _check(path, file)
            link = source / file.place
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(os.path.realpath(path)))
        if convert:
            _convert(find_row(name), source, order.home, files)
            shutil.rmtree(source)
        else:
            target = order.home / find_row(name).folder
            say(f"{name}: checked; convert with: python -m runtime.convert {target.name} {source} -o {target}")  # fmt: skip


def _check(path: Path, wanted: Wanted) -> None:
    try:
        check_file(path, wanted.file)
    except ValueError as error:
        discard(path)
        raise HubError(
            "broken",
            f"{error}; the damaged file is removed, the same command fetches it again",
            wanted.part.repo,
        ) from None


def _convert(row: Row, source: Path, home: Path, files: Sequence[Wanted]) -> None:
    """Convert into ``home``; what lies there is replaced once the new folder is whole, and its rubric goes over."""
    from tqdm import tqdm

    from runtime.convert import find_conversion
    from runtime.shards import FolderWriter

    target = home / row.folder
    fresh, old = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    if (target / RUBRIC).is_file():
        shutil.copyfile(target / RUBRIC, source / RUBRIC)
    convert = find_conversion(row.folder, None)
    shutil.rmtree(fresh, ignore_errors=True)
    with tqdm(unit="B", unit_scale=True, desc=row.name, disable=None) as bar:
        with FolderWriter(fresh, progress=bar.update) as out:
            convert(source, out)
            out.facts(source=_origin(files), licence=", ".join(row.licences))
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    fresh.replace(target)
    shutil.rmtree(old, ignore_errors=True)
    say(f"{row.name}: ready in {target}; run: {row.use}")


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise ValueError("this is not a terminal, so nobody can agree; add --yes")
    sys.stdout.write("Go on? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KeyboardInterrupt


def _catalogue() -> Iterator[str]:
    for row in CATALOGUE.values():
        about = "" if all(part.exact for part in row.parts) else "about "
        mark = "; NOT for commercial use" if row.restricted else ""
        yield f"{row.name:20}{about + _size(row.bytes):>16}  {row.what}"
        yield f"{'':38}{', '.join(row.licences)}{mark}"


def _shown(order: Order, convert: bool) -> Iterator[str]:
    for name, files in order.files.items():
        row = find_row(name)
        yield f"{name}: {row.what}"
        for part in row.parts:
            own = [file for file in files if file.part is part]
            mark = ", NOT for commercial use" if part.restricted else ""
            yield f"  {part.repo} at {own[0].revision[:12]}, {part.licence}{mark}"
            for file in own:
                here = "" if file.held is None else "  here already"
                yield f"    {file.path:44} {_size(file.file.bytes):>10}{here}"
    yield f"to download: {_size(order.download_bytes)} into {order.hub.folder} ({_free(order.hub.folder)})"
    if convert:
        yield f"to convert: at most {_size(order.converted_bytes)} into {order.home} ({_free(order.home)})"


def _advice(error: HubError, rows: Sequence[Row], home: Path) -> str:
    """What the user can do about it."""
    what = " ".join(row.name for row in rows)
    folders = ", ".join(f"weights/{row.folder}" for row in rows)
    return {
        "offline": f"no network: on a machine that has one run `python -m runtime.fetch {what} -o weights`, "
        f"then copy {folders} into {home} here",
        "gated": f"the hub wants to know you: agree to the terms at huggingface.co/{error.repo}, "
        "then run `hf auth login` or set HF_TOKEN",
        "missing": "it was moved or removed; look at the hub for its new commit and give it with "
        f"--revision {error.repo}=COMMIT --update",
        "full": "the disk is full: make room, or set HF_HOME to another disk, and run the same command again",
    }.get(error.kind, "run the same command again; what has arrived is kept")


def _existing(folder: Path) -> Path:
    """The nearest folder above, or it itself, that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _free(folder: Path) -> str:
    return f"{_size(shutil.disk_usage(_existing(folder)).free)} free"


def _size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


if __name__ == "__main__":
    sys.exit(main())
