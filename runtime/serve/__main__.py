"""The server's door: ``python -m runtime.serve --preset sprites --port 8000``.

Exit codes: 0 stopped in peace, 1 the machine failed, 2 the call was wrong, 130 and 143 stopped by a second Ctrl-C or
SIGTERM. The first one ends it gently: no new jobs, what is being made is saved, streams end, then the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from runtime.serve.app import build_app
from runtime.serve.arguments import Call, parse
from runtime.serve.backend import Backend
from runtime.serve.desk import Desk
from runtime.serve.link import WorkerLink
from runtime.serve.logs import log_to
from runtime.serve.options import ServeOptions

LAST_ANSWERS_S = 3  # for answers that are on their way when everything else has ended


class Server(uvicorn.Server):
    """uvicorn without handlers for signals: the door has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Stop:
    """What signals do: the first asks for a gentle end, the second ends it now."""

    def __init__(self, server: Server, desk: Desk, grace_s: float) -> None:
        self.code = 0
        self._server, self._desk, self._grace_s = server, desk, grace_s
        self._tasks: list[asyncio.Task[None]] = []

    def asked(self, number: int) -> None:
        again = bool(self._tasks)
        if again:
            self.code = 128 + number
            self._server.force_exit = True
        self._tasks.append(asyncio.ensure_future(self._end(0.0 if again else self._grace_s)))

    async def _end(self, grace_s: float) -> None:
        try:
            await self._desk.stop(grace_s)
        finally:
            self._server.should_exit = True


def main(
    argv: Sequence[str] | None = None,
    build: Callable[[Call], Backend] = lambda call: WorkerLink(call.worker),
) -> int:
    """Serve until a signal comes, and return the exit code."""
    try:
        call = parse(sys.argv[1:] if argv is None else argv)
        secrets = [call.options.key] if call.options.key else []
        log_to(level=call.log_level, process="server", secrets=secrets)
        return asyncio.run(serve(call.options, build(call)))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:  # before there was a server
        return 130


async def serve(options: ServeOptions, backend: Backend) -> int:
    """Listen, start the worker, answer until told to stop; the exit code."""
    bounds = options.bounds
    app = build_app(backend, options)
    with listening(options) as ear:
        async with app.router.lifespan_context(app):
            config = uvicorn.Config(
                app, lifespan="off", log_config=None, access_log=False, server_header=False,
                proxy_headers=False, http="h11", h11_max_incomplete_event_size=bounds.header_bytes,
                ws="websockets-sansio", ws_max_size=bounds.message_bytes,
                limit_concurrency=bounds.connections, timeout_graceful_shutdown=LAST_ANSWERS_S,
            )  # fmt: skip
            server = Server(config)
            stop = Stop(server, app.state.service.desk, options.grace_s)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.asked, number)
            print(
                f"serving {options.model} on {address(ear)} (data in {options.folder})", flush=True
            )
            await server.serve(sockets=[ear])
    return stop.code


@contextlib.contextmanager
def listening(options: ServeOptions) -> Iterator[socket.socket]:
    """The server's socket. Raises ValueError when the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Said to be TCP, or asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for its second half.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as ear:
        try:
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ear.bind((options.host, options.port))
            ear.listen(512)
        except OSError as error:
            where = f"{options.host} port {options.port}"
            raise ValueError(f"--port: cannot listen on {where}: {error.strerror}") from None
        yield ear


def address(ear: socket.socket) -> str:
    """What to type into a browser."""
    host, port = ear.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
