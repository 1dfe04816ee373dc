"""Streams beside the main one, for work that nobody on the main one waits for yet.

    with lanes.beside("image reward"):    begins after all that the main stream was given so far
        ...
    lanes.join()                          what the main stream gets from here on begins after all of it

What a lane reads must stay referenced until ``join``. On a CPU, and switched off, everything runs where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Lanes:
    """One stream per name, kept as long as this object."""

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.device = device
        self.enabled = enabled and device.type == "cuda"
        self.streams: dict[str, torch.cuda.Stream] = {}
        self.open: set[str] = set()

    @contextmanager
    def beside(self, name: str) -> Iterator[None]:
        """Runs what is inside on the lane called ``name``."""
        if not self.enabled:
            yield
            return
        if name not in self.streams:
            self.streams[name] = torch.cuda.Stream(self.device)
        lane = self.streams[name]
        lane.wait_stream(torch.cuda.current_stream(self.device))
        self.open.add(name)
        with torch.cuda.stream(lane):
            yield

    def join(self) -> None:
        """The current stream waits, without the host, for every lane that was used."""
        for name in sorted(self.open):
            torch.cuda.current_stream(self.device).wait_stream(self.streams[name])
        self.open.clear()
