"""What the command line of the server asks for, checked before anything is opened."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import runtime
from runtime.arguments import typed
from runtime.presets import PRESETS, preset
from runtime.serve.options import Bounds, ServeOptions, loopback
from runtime.settings import api_key

KEY_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """A server, and the arguments that its worker gets."""

    options: ServeOptions
    worker: tuple[str, ...]
    log_level: str


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and leaves the exit to ``main``."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m runtime.serve",
        description="Serve videos over HTTP as OpenAI's clients ask for them, and a page that shows the search.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", default="sprites", metavar="NAME", help=f"{', '.join(PRESETS)} (default: %(default)s)")  # fmt: skip
    text = "any setting of runtime/settings.py, as in run.device=cuda; may be repeated"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    text = "folder for videos and the list of jobs; one server's alone (default: %(default)s)"
    add("--data", default="stream-t1-data", metavar="DIR", help=text)
    text = "file with the key that clients send as a Bearer token (default: $STREAM_T1_API_KEY)"
    add("--api-key-file", metavar="FILE", help=text)
    text = "listen beyond this machine without a key: whoever reaches the port may use it"
    add("--without-key", action="store_true", help=text)
    text = "name under which clients may call this server; may be repeated (default: this machine's on loopback, else any)"  # fmt: skip
    add("--allowed-host", action="append", default=[], metavar="NAME", help=text)
    text = "web page elsewhere that may use this server, as in https://example.org; may be repeated"
    add("--allowed-origin", action="append", default=[], metavar="ORIGIN", help=text)
    text = "remove finished videos after H hours (default: never)"
    add("--keep-hours", type=float, default=0.0, metavar="H", help=text)
    text = "time to save what is being made when the server is stopped (default: %(default)s)"
    add("--grace", type=float, default=20.0, metavar="S", help=text)
    text = "chunks between two snapshots of a video; 0: only when the server stops (default: %(default)s)"  # fmt: skip
    add("--snapshot-chunks", type=int, default=4, metavar="N", help=text)
    add("--threads", type=int, default=0, metavar="N", help="of the worker on the CPU (default: all)")  # fmt: skip
    text = "that the engine has memory for at once (default: %(default)s; 0: what memory holds)"
    add("--videos", type=int, default=4, metavar="N", help=text)
    text = f"the most that may be asked for: {', '.join(Bounds.__slots__)}; may be repeated"
    add("--limit", action="append", default=[], metavar="NAME=N", help=text)
    add("--log-level", default="info", metavar="NAME", help="debug, info, warning or error")
    add("--version", action="version", version=f"stream-t1-runtime {runtime.__version__}")
    return parser


def parse(arguments: Sequence[str]) -> Call:
    """The server that the arguments describe. Raises ValueError, with a guess for an option that does not exist."""
    parser = build_parser()
    asked, extra = parser.parse_known_args(list(arguments))
    if extra:
        known = re.findall(r"--[a-z-]+", parser.format_help())
        found = difflib.get_close_matches(extra[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {found[0]}?" if found else ""
        raise ValueError(f"{extra[0]}: no such option{hint}")
    changes = {}
    for pair in asked.set:
        name, text = _pair("--set", pair)
        changes[name] = typed(name, text)
    key = _key(asked.api_key_file)
    if key is None and not loopback(asked.host) and not asked.without_key:
        raise ValueError(
            f"--host: {asked.host} can be reached from other machines, and there is no key; give "
            "--api-key-file FILE, or --without-key if something else keeps strangers out"
        )
    options = ServeOptions(
        settings=preset(asked.preset).with_changes(changes),
        model=asked.preset,
        host=asked.host,
        port=asked.port,
        folder=Path(asked.data),
        key=key,
        allowed_hosts=tuple(name.lower() for name in asked.allowed_host),
        allowed_origins=tuple(asked.allowed_origin),
        keep_hours=asked.keep_hours,
        grace_s=asked.grace,
        bounds=_bounds(asked.limit),
    )
    for name in ("snapshot_chunks", "threads", "videos"):
        if getattr(asked, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')}: want at least 0, got {getattr(asked, name)}")  # fmt: skip
    told = {"--preset": asked.preset, "--log-level": asked.log_level, "--grace": options.grace_s,
            "--snapshot-chunks": asked.snapshot_chunks, "--threads": asked.threads}  # fmt: skip
    worker = [str(word) for pair in told.items() for word in pair]
    bounds = options.bounds
    limits = [f"queued={bounds.jobs}", f"candidates={bounds.candidates}", f"seconds={bounds.seconds:g}",
              f"batch_rows={max(64, bounds.candidates)}", f"videos={asked.videos}"]  # fmt: skip
    repeated = [("--set", pair) for pair in asked.set] + [("--limit", pair) for pair in limits]
    worker += [word for pair in repeated for word in pair]
    return Call(options, tuple(worker), asked.log_level)


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{option}: want NAME=VALUE, got {text!r}")
    return name.strip(), value.strip()


def _bounds(pairs: Sequence[str]) -> Bounds:
    kinds = {field.name: int if field.type == "int" else float for field in dataclasses.fields(Bounds)}  # fmt: skip
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, text = _pair("--limit", pair)
        if name not in kinds:
            found = difflib.get_close_matches(name, kinds, n=1)
            hint = f"; did you mean {found[0]}?" if found else f"; known: {', '.join(kinds)}"
            raise ValueError(f"--limit {name}: no such limit{hint}")
        try:
            changes[name] = kinds[name](text)
        except ValueError:
            raise ValueError(f"--limit {name}: want a number, got {text[:40]!r}") from None
    return Bounds(**changes)


def _key(path: str | None) -> str | None:
    """The first line of a file, else the environment's. Raises ValueError that does not repeat it."""
    if path is None:
        return api_key()
    try:
        with open(path, "rb") as file:
            content = file.read(KEY_FILE_BYTES + 1)
        lines = content.decode("ascii").split()
    except OSError as error:
        raise ValueError(f"--api-key-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        lines = []
    if len(lines) != 1 or len(content) > KEY_FILE_BYTES:
        raise ValueError(f"--api-key-file: want one key of ASCII characters in {path}")
    return lines[0]
