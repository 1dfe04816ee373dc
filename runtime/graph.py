"""Replays recorded device work: the only home of ``torch.cuda.graph``.

    runner = GraphRunner("cuda", device)
    outputs = runner.run(key, work, inputs)     the first call of a key records, every later one replays

``work`` is pure device work: tensors in, tensors out, no wait for the device, the same shapes under the same key. What it
reads besides its inputs must lie at fixed addresses (weights, the KV pool, plan buffers). Inputs are copied to addresses of
the runner's own; outputs lie at fixed addresses too and hold until the next call of the same key.

Modes: "off" calls the work; "cuda" captures it; "rehearsal" does on any device all that "cuda" does but for the capture:
the same fixed inputs and outputs, replay by calling. A graph that no memory is left for stays uncaptured, by its key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.portions import release

log = logging.getLogger(__name__)

Work = Callable[..., tuple[Tensor, ...]]
WARMUPS = 2  # kernels are compiled and libraries find their workspaces before a capture, which allows neither


@dataclass(frozen=True, slots=True)
class Recording:
    """One piece of work at fixed addresses."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    work: Work  # keeps alive whatever the recording reads


class GraphRunner:
    """Recordings by key. They share one memory pool, so only one of them runs at a time."""

    def __init__(self, mode: str, device: torch.device | str) -> None:
        """``mode`` is "off", "cuda" or "rehearsal". ValueError for "cuda" on another device."""
        self.device = torch.device(device)
        if mode not in ("off", "cuda", "rehearsal"):
            raise ValueError(f"graphs: want off, cuda or rehearsal, got {mode!r}")
        if mode == "cuda" and self.device.type != "cuda":
            raise ValueError(
                f"run.graphs='cuda': captures work of a GPU, got device {self.device}; use 'off' or 'rehearsal'"
            )
        self.mode = mode
        self.recordings: dict[Hashable, Recording] = {}
        self.too_large: set[Hashable] = set()  # keys that are called, for want of memory
        self.pool: Any = None

    def run(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs of ``work(*inputs)``. Out of memory while recording: called instead, now and from now on.

        Raises torch.OutOfMemoryError when not even the call fits.
        """
        if self.mode == "off" or key in self.too_large:
            return work(*inputs)
        try:
            return self._replay(key, work, inputs)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        # Out of the handler, whose traceback holds what the attempt had made.
        log.warning("no memory to record %s: it is called instead", key)
        self._forget(key)
        return work(*inputs)

    def _replay(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if key not in self.recordings:
            self.recordings[key] = self._record(work, inputs)
        recording = self.recordings[key]
        for fixed, given in zip(recording.inputs, inputs, strict=True):
            fixed.copy_(given)
        recording.replay()
        return recording.outputs

    def _forget(self, key: Hashable) -> None:
        self.recordings.pop(key, None)
        self.too_large.add(key)
        release(self.device)

    def _record(self, work: Work, inputs: Sequence[Tensor]) -> Recording:
        fixed = tuple(torch.empty_like(given).copy_(given) for given in inputs)
        if self.mode == "cuda":
            return self._capture(work, fixed)
        outputs = work(*fixed)

        def call_again() -> None:
            for kept, made in zip(outputs, work(*fixed), strict=True):
                kept.copy_(made)

        return Recording(fixed, outputs, call_again, work)

    def _capture(self, work: Work, fixed: tuple[Tensor, ...]) -> Recording:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                work(*fixed)
        torch.cuda.current_stream(self.device).wait_stream(side)
        # Nothing of the warm-up may still run, or be freed, while the capture lasts.
        torch.cuda.synchronize(self.device)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads (a second engine, a writer) may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = work(*fixed)
        return Recording(fixed, outputs, graph.replay, work)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is a lack of device memory.

    A capture that runs out of memory ends with an error of its own, with the first one as its context.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
