"""Files that grow while others read them: the events of a job, and how to follow a file to its valid end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from runtime.serve.backend import Message

PIECE_BYTES = 64 * 1024


class Bell:
    """Wakes everybody who waits for it, and nobody who comes later."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        rung, self._event = self._event, asyncio.Event()
        rung.set()

    async def wait(self, timeout_s: float) -> bool:
        """Whether it rang in time."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True


class Journal:
    """The events of one job on disk, a JSON line each: late readers get what they missed, and nothing stays in memory."""

    def __init__(self, path: Path) -> None:
        """Goes on behind the last whole line of a file that is there already."""
        self.path = path
        self.size = whole_lines(path)

    def append(self, event: Message) -> None:
        """Add an event. Raises OSError when the disk is full; the file is then as it was for its readers."""
        line = json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with open(self.path, "ab") as file:
            file.truncate(self.size)  # what a write that failed left behind
            file.write(line)
        self.size += len(line)


def whole_lines(path: Path) -> int:
    """How many bytes of a file are whole lines; 0 without a file. A process that was killed may have left half a line."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                begin = max(0, end - PIECE_BYTES)
                file.seek(begin)
                if (found := file.read(end - begin).rfind(b"\n")) >= 0:
                    return begin + found + 1
                end = begin
    except FileNotFoundError:
        pass
    return 0


async def follow(
    path: Path, valid: Callable[[], tuple[int, bool]], bell: Bell, offset: int, quiet_s: float
) -> AsyncGenerator[bytes, None]:
    """The bytes of a growing file from ``offset`` on, each once it is valid; b"" when nothing came for ``quiet_s``.

    ``valid`` tells how many bytes are, and whether that is all there will ever be. Reads in a thread and in pieces, so
    that a slow disk or a slow reader holds up nobody else.
    """
    with contextlib.ExitStack() as stack:
        file = -1
        while True:
            size, over = valid()
            if offset < size:
                if file < 0:
                    file = os.open(path, os.O_RDONLY)
                    stack.callback(os.close, file)
                wanted = min(PIECE_BYTES, size - offset)
                piece = await asyncio.to_thread(os.pread, file, wanted, offset)
                if not piece:
                    return  # the file was taken away
                offset += len(piece)
                yield piece
            elif over:
                return
            elif not await bell.wait(quiet_s):
                yield b""
