"""Starts the worker process, talks JSON lines with it and notices when it dies. Knows nothing of videos, imports no torch.

    link = WorkerLink(["--preset", "sprites"])
    await link.start(on_event)      # called in the event loop, in order
    link.send({"do": "cancel", "job": "v1"})
    await link.stop(grace_s=20)     # snapshots, then the end of the whole process group

The worker gets one end of a socket pair, a session of its own (a terminal's Ctrl-C does not reach it) and an
environment without anything that looks like a secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.serve.backend import OnEvent, WorkerGone
from runtime.serve.wire import LineCutter, Message, line_of, message_of

log = logging.getLogger(__name__)

UNSENT_BYTES = 16 * 2**20  # that may wait for a worker which does not read
LAST_WORDS_S = 1.0  # from the end of the process to the end of what it wrote
INHERITED = re.compile(
    r"(PATH|HOME|USER|LANG|LANGUAGE|TZ|TMPDIR|TEMP|VIRTUAL_ENV|LD_LIBRARY_PATH|LD_PRELOAD|CC|CXX"
    r"|LC_\w+|XDG_\w+|PYTHON\w+|OMP_\w+|MKL_\w+|OPENBLAS_\w+|KMP_\w+|CUDA_\w+|NVIDIA_\w+|NCCL_\w+"
    r"|TORCH\w*|PYTORCH_\w+|TRITON_\w+|HF_HOME|HF_HUB_OFFLINE|STREAM_T1_\w+)"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the link bears silence."""

    quiet_s: float = 3.0  # then the worker does not count as alive
    hung_s: float = 60.0  # then it is killed; loading before "ready" may take longer
    exit_s: float = 5.0  # from closing its end of the link to the end of the process


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of ``environment`` that a worker needs; nothing whose name looks like a secret's."""
    return {
        name: value
        for name, value in environment.items()
        if INHERITED.fullmatch(name) and not SECRET.search(name)
    }


class WorkerLink:
    """The server's side of one worker process. One start, one stop; use it in one event loop."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        module: str = "runtime.serve.worker",
        patience: Patience | None = None,
        handed: Sequence[int] = (),
    ) -> None:
        """``handed``: descriptors that stay open for as long as the worker lives, as a lock's."""
        self._command = [sys.executable, "-m", module, *arguments]
        self._patience = patience or Patience()
        self._handed = tuple(handed)
        self._cutter = LineCutter()
        self._process: asyncio.subprocess.Process | None = None
        self._transport: Any = None
        self._ended: asyncio.Task[None] | None = None
        self._heard = 0.0  # loop time of the last bytes
        self._ready = self._stopping = False
        self._why = ""  # it is gone, when the link or the worker knows better than the exit code

    async def start(self, on_event: OnEvent) -> None:
        """Start the process; returns at once, "ready" is an event. Raises OSError when it cannot be started."""
        assert self._process is None, "a link starts one worker"
        self._on_event = on_event
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    *("--link-fd", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,  # whatever a library prints joins the log
                    env=inherited(os.environ),
                    pass_fds=(theirs.fileno(), *self._handed),
                    start_new_session=True,
                )
            stack.pop_all()
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        closed = asyncio.Event()
        self._transport, _ = await loop.create_unix_connection(
            lambda: _Ear(self._hear, closed), sock=ours
        )
        self._ended = asyncio.create_task(self._watch(self._process, closed))

    @property
    def pid(self) -> int | None:
        """Of the worker, and of its process group."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """The process is there and, once it was ready, was heard from lately."""
        if self._process is None or self._ended is None or self._ended.done() or self._why:
            return False
        quiet = asyncio.get_running_loop().time() - self._heard
        return self._process.returncode is None and (
            not self._ready or quiet <= self._patience.quiet_s
        )

    def send(self, command: Mapping[str, Any]) -> None:
        """Hand ``command`` over without waiting.

        Raises WorkerGone when there is no worker or it has left 16 MiB unread, ValueError for a command that no line holds.
        """
        line = line_of(command)
        if self._transport is None or self._transport.is_closing() or self._why:
            raise WorkerGone(self._why or "the worker does not run")
        if self._transport.get_write_buffer_size() + len(line) > UNSENT_BYTES:
            raise WorkerGone(f"the worker has left {UNSENT_BYTES // 2**20} MiB of commands unread")
        self._transport.write(line)

    async def stop(self, grace_s: float) -> None:
        """Ask the worker to save and end; kill its process group after ``grace_s``. No "gone" follows.

        May be called again meanwhile: the shorter grace wins, so ``stop(0)`` ends it at once.
        """
        if self._process is None or self._ended is None:
            return
        with contextlib.suppress(WorkerGone):
            if not self._stopping:
                self._stopping = True
                self.send({"do": "stop", "grace_s": grace_s})
        await asyncio.wait({self._ended}, timeout=max(grace_s, 0))
        if not self._ended.done():
            self._kill(f"the worker did not end within {grace_s:g} s and was killed")
        await self._ended

    def _hear(self, content: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        for line in self._cutter.feed(content):
            try:
                if line is None:
                    raise ValueError("a line: is too long")
                message = message_of(line)
                kind = message["event"]
            except (ValueError, KeyError) as error:
                self._kill(f"the worker did not speak the protocol ({error}) and was killed")
                return
            if kind == "fatal":  # its last words; the exit follows
                self._why = f"the worker could not go on: {message.get('reason')}"
                continue
            self._ready = self._ready or kind == "ready"
            self._tell(message)

    def _tell(self, message: Message) -> None:
        try:
            self._on_event(message)
        except Exception:  # one listener's mistake must not cut the link for all jobs
            log.exception("an event of the worker was not understood: %s", message.get("event"))

    async def _watch(self, process: asyncio.subprocess.Process, closed: asyncio.Event) -> None:
        """Until the process is gone: kill it when it is silent for too long, then say what became of it."""
        exited = asyncio.ensure_future(process.wait())
        silent = asyncio.ensure_future(closed.wait())
        loop, patience = asyncio.get_running_loop(), self._patience
        ends: set[asyncio.Future[Any]] = {exited, silent}
        while not any(end.done() for end in ends):
            await asyncio.wait(
                ends, timeout=patience.quiet_s / 4, return_when=asyncio.FIRST_COMPLETED
            )
            if self._ready and loop.time() - self._heard > patience.hung_s:
                self._kill(f"the worker said nothing for {patience.hung_s:g} s and was killed")
        # What it wrote before it died is heard first; a child of its own may hold the other end open.
        await asyncio.wait(ends, timeout=LAST_WORDS_S if exited.done() else patience.exit_s)
        if not exited.done():
            self._kill("the worker closed its link, did not end and was killed")
        code = await exited
        _kill_group(process.pid)
        silent.cancel()
        self._transport.abort()
        self._why = self._why or ending(code)
        if not self._stopping:
            self._tell({"event": "gone", "reason": self._why})

    def _kill(self, why: str) -> None:
        assert self._process is not None
        self._why = self._why or why
        _kill_group(self._process.pid)


class _Ear(asyncio.Protocol):
    """Hands on what arrives. Nothing is kept: an event is dealt with before more is read."""

    def __init__(self, hear: Callable[[bytes], None], closed: asyncio.Event) -> None:
        self._hear, self._closed = hear, closed

    def data_received(self, data: bytes) -> None:
        self._hear(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()


def ending(code: int) -> str:
    """What an exit code of the worker means, in words."""
    if code >= 0:
        return f"the worker ended by itself with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    return f"the worker was killed by signal {-code}{name}"


def _kill_group(pid: int) -> None:
    """The worker leads its group, and so its id outlives it for as long as any child of it does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
