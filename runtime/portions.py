"""Work on the rows of a batch, in as many portions as the device has memory for."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)  # of a device, of the host


class Portions:
    """How many rows are worked on at once. The number falls when memory runs out, and stays."""

    def __init__(self, most: int, verb: str, advice: str) -> None:
        """``most`` 0: any number of rows. ``verb`` says what is done with them, ``advice`` what to do if not one fits."""
        self.most = most
        self.verb, self.advice = verb, advice

    def run(self, rows: range, device: torch.device, work: Callable[[range], None]) -> None:
        """``work`` over parts of ``rows`` of at most ``most`` rows; where memory runs out, of half as many from now on.

        What was done is not done again. RuntimeError when there is no memory for one row.
        """
        first = rows.start
        while first < rows.stop:
            size = min(self.most or len(rows), rows.stop - first)
            try:
                work(range(first, first + size))
                first += size
                continue
            except OUT_OF_MEMORY as error:
                if size == 1:
                    raise RuntimeError(
                        f"no memory to {self.verb} one candidate; {self.advice}, or free memory of the device"
                    ) from error
            self.most = size // 2
            log.warning(
                "no memory to %s %d candidates at once: %d from now on", self.verb, size, self.most
            )
            release(device)


def release(device: torch.device) -> None:
    """Give cached memory back before something smaller is tried."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
