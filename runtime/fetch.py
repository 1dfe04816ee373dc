"""Bring published weights here, checked and converted: ``python -m runtime.fetch longlive hpsv3 videoalign``.

It first shows what it would take: files, sizes, licences and the disk they need. Files come from the hub at a pinned
commit and are checked against the digests that the hub states; then they are converted into ``<home>/<name>/``. Exit
codes: 0 done, 1 the machine or the hub failed, 2 the call was wrong, 130 and 143 stopped. Every error is one line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtime.__main__ import Terminated, complain, say, stopped_by_sigterm
from runtime.arguments import Parser
from runtime.catalogue import CATALOGUE, Row, find_row
from runtime.hub import FULL, Hub, HubError, HuggingFace, check_file, discard
from runtime.order import Order, Wanted, Wish, check_room, existing, in_words, origin, place_order
from runtime.pins import parse_revisions
from runtime.settings import weights_home

RUBRIC = "rubric.txt"  # of some rewards; the user put it there
SOURCES = "sources"  # where what is fetched and not converted can be found


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
    wish = Wish(
        rows=[find_row(name) for name in dict.fromkeys(options.names)],
        home=Path(options.output).expanduser() if options.output else weights_home(),
        revisions=parse_revisions(options.revision),
        update=options.update,
        convert=not options.no_convert,
    )
    try:
        order = place_order(wish, hub or HuggingFace())
        say("\n".join((*order.notes, *_shown(order))))
        check_room(order)
        if order.files and not options.yes:
            _confirm()
        carry_out(order)
    except HubError as error:
        raise RuntimeError(f"{error}; {_advice(error, wish)}") from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m runtime.fetch",
        description="Fetch published weights at pinned commits, check them and convert them.",
        epilog=f"NAME is one of {', '.join(CATALOGUE)}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="what to fetch, see --list")
    add(
        "-o",
        "--output",
        metavar="DIR",
        help="where weights live (default: $STREAM_T1_WEIGHTS or ~/.cache/stream-t1-runtime)",
    )
    add("--yes", action="store_true", help="do not ask before downloading")
    add("--list", action="store_true", help="show everything that can be fetched and stop")
    add("--no-convert", action="store_true", help="download and check, but do not convert")
    add(
        "--update",
        action="store_true",
        help="settle on commits anew instead of keeping the pinned ones",
    )
    add(
        "--revision",
        action="append",
        default=[],
        metavar="REPO=COMMIT",
        help="take this commit of a repository",
    )
    options = parser.parse_intermixed_args(arguments)
    if not options.list and not options.names:
        raise ValueError(f"say what to fetch: {', '.join(CATALOGUE)}; --list tells more")
    return options


def carry_out(order: Order) -> None:
    """Download what is missing, check everything, convert."""
    brought = {
        key: order.hub.download(file.part.repo, file.path, file.revision)
        for key, file in order.missing.items()
    }
    for name, files in order.files.items():
        row, home = find_row(name), order.wish.home
        with _source(home, name, order.wish.convert) as source:
            for file in files:
                path = file.held or brought[file.part.repo, file.path]
                _check(path, file)
                _link(source / file.place, Path(os.path.realpath(path)))
            target = home / row.folder
            if order.wish.convert:
                _convert(row, source, target, files)
            else:
                command = f"python -m runtime.convert {row.folder} {source} -o {target}"
                say(f"{name}: checked, in {source}; convert it with: {command}")


@contextmanager
def _source(home: Path, name: str, passing: bool) -> Iterator[Path]:
    """A folder for the links that are converted: one that goes away, or one that stays and has a name."""
    home.mkdir(parents=True, exist_ok=True)
    if passing:
        with tempfile.TemporaryDirectory(dir=home, prefix=f".{name}.") as folder:
            yield Path(folder)
    else:
        source = home / SOURCES / name
        shutil.rmtree(source, ignore_errors=True)
        yield source


def _link(place: Path, path: Path) -> None:
    """A second name of a downloaded file: of the file itself, or of its path where that is on another disk."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, place)
    except OSError:
        place.symlink_to(path)


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


def _convert(row: Row, source: Path, target: Path, files: Sequence[Wanted]) -> None:
    """Convert; what lies at ``target`` is replaced once the new folder is whole, and its rubric goes over."""
    from tqdm import tqdm

    from runtime.convert import find_conversion
    from runtime.shards import FolderWriter

    convert = find_conversion(row.folder, None)
    fresh, old = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    if (target / RUBRIC).is_file():
        shutil.copyfile(target / RUBRIC, source / RUBRIC)
    with (
        tqdm(unit="B", unit_scale=True, desc=row.name, disable=None) as bar,
        FolderWriter(fresh, progress=bar.update) as out,
    ):
        convert(source, out)
        out.facts(source=origin(files), licence=", ".join(row.licences))
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
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
        about = "" if row.exact else "about "
        mark = "; NOT for commercial use" if row.restricted else ""
        yield f"{row.name:20}{about + in_words(row.bytes):>16}  {row.what}"
        yield f"{'':38}{', '.join(row.licences)}{mark}"


def _shown(order: Order) -> Iterator[str]:
    for name, files in order.files.items():
        row = find_row(name)
        yield f"{name}: {row.what}"
        for part in row.parts:
            own = [file for file in files if file.part is part]
            mark = ", NOT for commercial use" if part.restricted else ""
            yield f"  {part.repo} at {own[0].revision[:12]}, {part.licence}{mark}"
            for file in own:
                here = "" if file.held is None else "  here already"
                yield f"    {file.path:44} {in_words(file.file.bytes):>10}{here}"
    if order.files:
        folder, home = order.hub.folder, order.wish.home
        yield f"to download: {in_words(order.download_bytes)} into {folder} ({_free(folder)})"
        if order.wish.convert:
            yield f"to convert: at most {in_words(order.converted_bytes)} into {home} ({_free(home)})"


def _advice(error: HubError, wish: Wish) -> str:
    """What the user can do about it."""
    what = " ".join(row.name for row in wish.rows)
    folders = ", ".join(f"weights/{row.folder}" for row in wish.rows)
    return {
        "offline": f"no network: on a machine that has one run `python -m runtime.fetch {what} -o weights`, "
        f"then copy {folders} into {wish.home} here",
        "gated": f"the hub wants to know you: agree to the terms at huggingface.co/{error.repo}, "
        "then run `hf auth login` or set HF_TOKEN",
        "missing": f"it was moved, removed or closed to whom the hub does not know; look at huggingface.co/{error.repo}, "
        f"then give another commit with --revision {error.repo}=COMMIT --update, or run `hf auth login`",
        "full": "the disk is full: make room, or set HF_HOME to another disk, and run the same command again",
    }.get(error.kind, "run the same command again; what has arrived is kept")


def _free(folder: Path) -> str:
    return f"{in_words(shutil.disk_usage(existing(folder)).free)} free"


if __name__ == "__main__":
    sys.exit(main())
