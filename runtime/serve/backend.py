"""The seam between the HTTP process and whatever makes the videos: commands go in, events come back.

Both are JSON objects. A command has a "do" (submit, cancel, switch, stop), an event an "event" (ready, began, turn,
settled, switched, refused, saved, done, failed, cancelled, stats, gone). Frames never pass here: they lie in the job's
folder, and events say how many of their bytes are valid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Message = dict[str, Any]
OnEvent = Callable[[Message], None]


class WorkerGone(RuntimeError):
    """There is no worker that could take a command."""


class Backend(Protocol):
    """Makes the videos. ``runtime.serve.link.WorkerLink`` is the one that the door uses."""

    async def start(self, on_event: OnEvent) -> None:
        """Begin, and call ``on_event`` in the event loop, in order, for all that happens from now on.

        Returns before the model is loaded: "ready" says when it is. A worker that died is a "gone" with its reason.
        """
        ...

    def send(self, command: Message) -> None:
        """Pass a command on. Never blocks; raises WorkerGone."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Let every video be saved and end within ``grace_s``, and then by force; again is harmless."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the worker is there and was heard from lately."""
        ...
