"""The command line of a worker: which engine it serves what it takes on and how it saves."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.arguments import Parser, typed
from runtime.presets import preset
from runtime.request import Limits
from runtime.serve.logs import LEVELS
from runtime.settings import Settings

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
    text = "videos whose memory is set aside (%(default)s); 0: what memory holds"
    add("--videos", type=int, default=4, metavar="N", help=text)
    add("--queued", type=int, default=64, metavar="N", help="jobs that may wait (%(default)s)")
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
        _settings(found), found.link_fd, Limits(videos=found.videos, queued=found.queued), found.snapshot_chunks, found.threads, found.grace,
        found.log_level,
    )  # fmt: skip


def _settings(found: Namespace) -> Settings:
    changes = {}
    for pair in found.set:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: want NAME=VALUE, got {pair!r}")
        changes[name.strip()] = typed(name.strip(), text.strip())
    return preset(found.preset).with_changes(changes)
