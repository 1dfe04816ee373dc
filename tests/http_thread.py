"""An ASGI application on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

PATIENCE_S = 20.0


@contextlib.contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """The address of ``app``, its lifespan begun; both end with the block."""
    config = uvicorn.Config(
        app,
        port=0,
        log_level="critical",  # streams that a test left open are cut with a word
        ws="websockets-sansio",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    ready = threading.Event()

    async def main() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        ready.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S)
    assert server.started, "the application did not start"
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
