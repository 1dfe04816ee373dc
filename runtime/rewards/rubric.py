"""Take a reward's rubric out of its authors' code: ``python -m runtime.rewards.rubric hpsv3 --from PATH -o FOLDER``.

PATH is the authors' package or a checkout of their repository. Its files are parsed and never run: the text with the
read-out tokens and one place for the prompt is put together as they would (see ``templates.py``) and written as
``rubric.txt`` beside the converted weights. Exit codes: 0 done, 1 the machine failed, 2 the call was wrong or the text was
not found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from runtime import manifest
from runtime.rewards import hpsv3, videoalign
from runtime.rewards.qwen2vl_words import PLACE, read_rubric
from runtime.rewards.templates import Found, Hole, Template, as_format, find_templates, read_sources

FILE = "rubric.txt"
MARKS = {"hpsv3": hpsv3.KIND.marks, "videoalign": videoalign.KIND.marks}


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    try:
        options = _parse(arguments)
        text, found = extract(options.reward, Path(options.source), options.name)
        path = write_rubric(text, Path(options.output), MARKS[options.reward])
        sys.stdout.write(f"{path}: {len(text)} characters from {found.file}:{found.line}\n")
        return 0
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m runtime.rewards.rubric",
        description="Take a published reward's rubric out of its authors' code, which is read and never run.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("reward", choices=sorted(MARKS), help="whose rubric")
    add(
        "--from",
        dest="source",
        required=True,
        metavar="PATH",
        help="the authors' package, checkout or file",
    )
    add(
        "-o",
        "--output",
        default=FILE,
        metavar="PATH",
        help="the folder of the converted weights, or a file (default: %(default)s)",
    )
    add("--name", default="", metavar="NAME", help="which text, where several fit")
    return parser.parse_args(list(arguments))


def extract(reward: str, source: Path, name: str = "") -> tuple[str, Found]:
    """The rubric of ``reward`` in the authors' ``source``, and where it stood. ValueError lists what fits, if not one text."""
    marks = MARKS[reward]
    fitting: dict[str, Found] = {}
    for found in _templates(source, marks):
        fitting.setdefault(_text(found.template), found)
    chosen = {text: found for text, found in fitting.items() if name in ("", found.label)}
    if len(chosen) == 1:
        return next(iter(chosen.items()))
    places = ", ".join(f"{found.label} ({found.file}:{found.line})" for found in fitting.values())
    if not fitting:
        raise ValueError(
            f"{source}: no text in it has {', '.join(marks)} once each and one place for the prompt; "
            f"is it the code of {reward}? Otherwise write {FILE} by hand, with {PLACE} for the prompt"
        )
    raise ValueError(f"{source}: say with --name which text to take: {places}")


def _templates(source: Path, marks: tuple[str, ...]) -> list[Found]:
    try:
        return list(find_templates(read_sources(source), lambda template: _fits(template, marks)))
    except RecursionError:
        raise ValueError(f"{source}: nests too deeply; name the file that holds the text") from None


def _fits(template: Template, marks: tuple[str, ...]) -> bool:
    """Whether there is one place for the prompt, and every mark once and in order."""
    holes = [piece for piece in as_format(template) if isinstance(piece, Hole)]
    text = _text(template)
    places = [text.find(mark) for mark in marks]
    once = all(text.count(piece) == 1 for piece in (PLACE, *marks))
    return len(holes) == 1 and once and places == sorted(places)


def _text(template: Template) -> str:
    pieces = as_format(template)
    return "".join(piece if isinstance(piece, str) else PLACE for piece in pieces)


def write_rubric(text: str, target: Path, marks: tuple[str, ...]) -> Path:
    """Write ``text`` as a file, or as rubric.txt of a folder whose manifest then lists it. Returns the file."""
    path = target / FILE if target.is_dir() else target
    if not path.parent.is_dir():
        raise ValueError(
            f"{path.parent}: no such folder; convert or fetch the weights first, or name another place with -o"
        )
    # Not tempfile's, whose files nobody else may read: the weights beside it are for all who may read the folder.
    unfinished = path.with_name(f".{FILE}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
        read_rubric(unfinished, marks)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if path.name == FILE and (path.parent / manifest.MANIFEST).is_file():
        _list_in_manifest(path)
    return path


def _list_in_manifest(path: Path) -> None:
    """Put the new file into the manifest of its folder, which would take it for a stray one."""
    listed = path.parent / manifest.MANIFEST
    manifest.read(path.parent)
    table = json.loads(listed.read_text(encoding="utf-8"))
    content = path.read_bytes()
    table["files"][path.name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    unfinished = listed.with_name(f".{listed.name}")
    unfinished.write_text(json.dumps(table, indent=1), encoding="utf-8")
    os.replace(unfinished, listed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
