"""Starts the processes of a video and brings back what they wrote, for tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120


@dataclass(frozen=True)
class Ended:
    """What became of one process."""

    code: int
    told: dict[str, Any] | None  # what it wrote at its end
    said: str  # on stderr
    printed: str


def spawn(scenario: str, folder: Path, ranks: int, left: Sequence[int] = ()) -> list[Ended]:
    """Run a scenario of ``tests/rank_process.py`` on some ranks; those in ``left`` are killed once all others ended."""
    with ExitStack() as stack:
        ports = [str(free_port(stack)) for _ in range(2)]
    processes = []
    for rank in range(ranks):
        launch = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        extra = {name: str(value) for name, value in launch.items()} | {"OMP_NUM_THREADS": "1"}
        call = [sys.executable, "-m", "tests.rank_process", scenario, str(folder), *ports]
        with (
            open(folder / f"err_{rank}", "wb") as said,
            open(folder / f"out_{rank}", "wb") as printed,
        ):
            processes.append(
                subprocess.Popen(
                    call, cwd=ROOT, env=os.environ | extra, stderr=said, stdout=printed
                )
            )
    try:
        limit = time.monotonic() + SECONDS
        for rank, process in enumerate(processes):
            if rank not in left:
                process.wait(limit - time.monotonic())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [_ended(folder, rank, process.returncode) for rank, process in enumerate(processes)]


def _ended(folder: Path, rank: int, code: int) -> Ended:
    path = folder / f"rank_{rank}.json"
    told = json.loads(path.read_text()) if path.is_file() else None
    return Ended(
        code, told, (folder / f"err_{rank}").read_text(), (folder / f"out_{rank}").read_text()
    )


def free_port(stack: ExitStack) -> int:
    """A port that nobody listens on, and no other call gets while ``stack`` is open."""
    held = stack.enter_context(socket.socket())
    held.bind(("127.0.0.1", 0))
    return held.getsockname()[1]
