"""A server process for the load test: started on a free port with a folder of its own, watched, and taken away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

START_S = 180.0
STOP_S = 40.0
PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerProcess:
    """``python -m runtime.serve`` and its worker."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.url = url
        self._process = process

    def memory_mb(self) -> float:
        """Resident memory of the server and of every process below it."""
        return sum(map(_resident, _family(self._process.pid))) / 1e6

    def open_files(self) -> int:
        """File descriptors of all of them."""
        found = 0
        for pid in _family(self._process.pid):
            with contextlib.suppress(OSError):
                found += len(os.listdir(f"/proc/{pid}/fd"))
        return found


@contextlib.contextmanager
def server(arguments: Sequence[str]) -> Iterator[ServerProcess]:
    """A server that is ready. Raises RuntimeError with the end of its log when it does not get so far."""
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "runtime.serve", "--port", str(port)]
        command += ["--data", f"{folder}/data", *arguments]
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}/"
            _wait_until_ready(process, url, log)
            yield ServerProcess(process, url)
        finally:
            _end(process)


def free_port() -> int:
    """A port that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        if _ready(url):
            return
        time.sleep(0.2)
    words = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the server did not get ready; its log ends with\n{words}")


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # 503 and a closed port are
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM and time to obey; then force, for the whole family."""
    family = _family(process.pid)
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _family(pid: int) -> list[int]:
    """A process and all below it; only where /proc tells."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                children = Path(f"/proc/{parent}/task/{task}/children").read_text()
                found.extend(map(int, children.split()))
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0
