"""How the server is set up: its address, its folder, its key and every limit. Frozen; the door fills it in."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from runtime.settings import PROMPT_CHARACTERS, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most that one client may ask for. Checked before anything is allocated."""

    body_bytes: int = 2**20
    body_s: float = 20.0  # to send a body in
    header_bytes: int = 16 * 1024
    message_bytes: int = 32 * 1024  # of one WebSocket message
    messages_per_s: float = 2.0
    messages_at_once: int = 10
    prompt_characters: int = PROMPT_CHARACTERS
    scenes: int = 64
    seconds: float = 120.0
    histories: int = 16
    expansions: int = 32
    candidates: int = 64  # histories times expansions
    window_frames: int = 63  # of memory and of the rewards' window, in latent frames
    jobs: int = 64  # that are not finished
    streams: int = 64  # readers of videos and events that are being made
    sockets: int = 32
    connections: int = 512
    disk_bytes: int = 50 * 2**30  # of all videos together
    free_bytes: int = 256 * 2**20  # that the disk must have left
    stalled_s: float = 600.0  # a reader that takes nothing for so long is let go

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"limit {name}: want more than 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """One server. ``settings`` are those the worker loads; a request may change some of them for its video."""

    settings: Settings = field(default_factory=Settings)
    model: str = "sprites"  # the name that clients see
    host: str = "127.0.0.1"
    port: int = 8000
    folder: Path = Path("stream-t1-data")
    key: str | None = field(default=None, repr=False)  # never logged
    allowed_hosts: tuple[str, ...] = ()  # (): the names of this machine on loopback, else any
    allowed_origins: tuple[str, ...] = ()  # web pages elsewhere that may use this server
    keep_hours: float = 0.0  # finished videos older than this are removed; 0: none
    grace_s: float = 20.0  # between SIGTERM and the end
    slot: str = ""  # what the ids of its videos begin with, in hex; "": nothing
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port: want 0 to 65535, got {self.port}")
        if not self.keep_hours >= 0:
            raise ValueError(f"keep_hours: want at least 0, got {self.keep_hours}")
        if not 0 < self.grace_s <= 3600:
            raise ValueError(f"grace_s: want a time in (0, 3600], got {self.grace_s}")
        if not re.fullmatch(r"[0-9a-f]{0,16}", self.slot):
            raise ValueError(f"slot: want at most 16 hex digits, got {self.slot!r}")
        if self.key is not None and (len(self.key) < 8 or not self.key.isascii()):
            raise ValueError("API key: want at least 8 ASCII characters")

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names under which a client may call this server; (): any."""
        if self.allowed_hosts or not loopback(self.host):
            return self.allowed_hosts
        return ("localhost", "127.0.0.1", "[::1]")

    @property
    def videos(self) -> Path:
        return self.folder / "videos"


def loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
