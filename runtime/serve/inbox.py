"""Commands that wait for the worker, in the order they came: as many as fit into so many bytes, then the link waits."""

from __future__ import annotations

import asyncio
from collections import deque

from runtime.serve.commands import Command

HELD_BYTES = 16 * 2**20


class Inbox:
    """A queue for one event loop, bounded by the bytes that its commands had on the wire."""

    def __init__(self, limit: int = HELD_BYTES) -> None:
        self._limit, self._held = limit, 0
        self._waiting: deque[tuple[Command, int]] = deque()
        self._changed = asyncio.Condition()

    async def put(self, command: Command, size: int) -> None:
        """Wait for room; an empty inbox has room for anything."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._waiting or self._held + size <= self._limit
            )
            self._waiting.append((command, size))
            self._held += size
            self._changed.notify_all()

    async def get(self) -> Command:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting))
            command, size = self._waiting.popleft()
            self._held -= size
            self._changed.notify_all()
            return command
