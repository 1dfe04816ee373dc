"""What ``serve run runtime.serve.ray_app:app name=value ...`` may be told, checked before anything is started."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.serve.arguments import Call, parse

# Options of `python -m runtime.serve` that mean the same here; host and port are Ray's to set.
OF_A_SERVER = ("preset", "data", "api_key_file", "without_key", "allowed_host", "allowed_origin",
               "keep_hours", "grace", "snapshot_chunks", "threads", "log_level", "limit", "set")  # fmt: skip
MANY = ("set", "limit", "allowed_host", "allowed_origin")  # several, with commas between them
WORKER = "runtime.serve.worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """How many replicas there are, what each of them takes, and when there are more or fewer."""

    replicas: int = 1  # to begin with, and at least
    most_replicas: int = 0  # with more work; 0: as many as ``replicas``, always
    videos_each: float = 4.0  # unfinished ones that one replica should have
    up_s: float = 10.0  # more work than that for so long: another replica
    down_s: float = 300.0  # less work for so long: one replica fewer
    fronts: int = 1
    cpus: float = 1.0  # of a replica
    gpus: float = 0.0
    drain_s: float = 60.0  # for a replica that is stopped to finish its videos; then they are saved
    check_s: float = 2.0  # between two looks at a replica's health
    worker: str = WORKER  # module that is run as a replica's worker

    def __post_init__(self) -> None:
        for name in ("replicas", "fronts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: want at least 1, got {getattr(self, name)}")
        if self.most_replicas and self.most_replicas < self.replicas:
            raise ValueError(f"most_replicas: want at least replicas ({self.replicas}), got {self.most_replicas}")  # fmt: skip
        for name in ("videos_each", "check_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: want more than 0, got {getattr(self, name)}")
        for name in ("most_replicas", "up_s", "down_s", "cpus", "gpus", "drain_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: want at least 0, got {getattr(self, name)}")


KINDS = {field.name: {"int": int, "float": float, "str": str}[str(field.type)]
         for field in dataclasses.fields(ClusterOptions)}  # fmt: skip


def cluster_of(arguments: Mapping[str, object]) -> tuple[ClusterOptions, Call]:
    """The cluster and the server that the arguments describe. Raises ValueError, with a guess for an unknown name."""
    own: dict[str, object] = {}
    words: list[str] = []
    for name, value in arguments.items():
        if name in KINDS:
            try:
                own[name] = KINDS[name](str(value))
            except ValueError:
                raise ValueError(f"{name}: want a number, got {value!r}") from None
        elif name in OF_A_SERVER:
            words += _words(name, str(value))
        else:
            known = [*KINDS, *OF_A_SERVER]
            found = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {found[0]}?" if found else f"; known: {', '.join(known)}"
            raise ValueError(f"{name}: no such argument{hint}")
    return ClusterOptions(**own), parse(words)  # type: ignore[arg-type]


def _words(name: str, text: str) -> list[str]:
    option = "--" + name.replace("_", "-")
    if name == "without_key":
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"without_key: want true or false, got {text!r}")
        return [option] if text.lower() in ("true", "1") else []
    values = text.split(",") if name in MANY else [text]
    return [word for value in values for word in (option, value)]


def wanted_replicas(unfinished: float, videos_each: float) -> float:
    """How many replicas so many videos ask for; Ray rounds up, smooths and bounds it."""
    return unfinished / videos_each
