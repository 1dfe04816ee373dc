"""The command line of a worker: which engine it serves what it takes on and how it saves."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from runtime.arguments import Parser, typed
from runtime.presets import preset
from runtime.request import Limits
from runtime.serve.logs import LEVELS
from runtime.settings import Settings, one_of

DEFAULT_GRACE_S = 20.0  # of a SIGTERM and of a server that vanished


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    settings: Settings
    link_fd: int
    limits: Limits
    snapshot_chunks: int
    threads: int  # of the CPU; 0: as many as torch likes
    grace_s: float
    log_level: str


def parse(arguments: Sequence[str]) -> Options:
    """Raises ValueError that names the option."""
    parser = Parser(prog="python -m runtime.serve.worker", allow_abbrev=False)
    add = parser.add_argument
    add("--link-fd", type=int, required=True, metavar="FD", help="a socket to the server")
    add("--preset", default="sprites", metavar="NAME", help="settings by name (%(default)s)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting")
    text = "chunks between two snapshots of a job (%(default)s); 0: only when the worker stops"
    add("--snapshot-chunks", type=int, default=4, metavar="N", help=text)
    known = ", ".join(f"{field.name} {field.default}" for field in fields(Limits))
    text = f"what the engine takes on at most ({known}); may be repeated"
    add("--limit", action="append", default=[], metavar="NAME=N", help=text)
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0: all (%(default)s)")
    text = "to save every job in when the server is gone (%(default)s)"
    add("--grace", type=float, default=DEFAULT_GRACE_S, metavar="SECONDS", help=text)
    add("--log-level", default="info", choices=LEVELS, help="of the lines on stderr (%(default)s)")
    found = parser.parse_args(list(arguments))
    for name in ("snapshot_chunks", "threads", "link_fd", "grace"):
        if not getattr(found, name) >= 0:
            raise ValueError(
                f"--{name.replace('_', '-')}: want at least 0, got {getattr(found, name)}"
            )
    return Options(
        settings=_settings(found),
        link_fd=found.link_fd,
        limits=_limits(found.limit),
        snapshot_chunks=found.snapshot_chunks,
        threads=found.threads,
        grace_s=found.grace,
        log_level=found.log_level,
    )


def _settings(found: Namespace) -> Settings:
    changes = {name: typed(name, text) for name, text in map(_pair, found.set)}
    return preset(found.preset).with_changes(changes)


def _limits(pairs: Sequence[str]) -> Limits:
    kinds = {field.name: int if field.type == "int" else float for field in fields(Limits)}
    changes: dict[str, Any] = {}
    for name, text in (_pair(pair, "--limit") for pair in pairs):
        one_of("--limit", name, tuple(kinds))
        try:
            changes[name] = kinds[name](text)
        except ValueError:
            raise ValueError(f"--limit: {name}: want a number, got {text[:40]!r}") from None
    return Limits(**changes)


def _pair(text: str, option: str = "--set") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{option}: want NAME=VALUE, got {text!r}")
    return name.strip(), value.strip()
