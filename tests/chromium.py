"""Drives a headless Chromium through its DevTools protocol: open a page, run a line of JavaScript, wait for it to be true.

Nothing but the ``websockets`` package and the browser itself. What the page writes to the console as an error, and what
it throws, is collected in ``Page.errors``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-sandbox",  # tests run as root in containers, where there is no sandbox to be had
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
)
SOCKET: dict[str, Any] = {"max_size": None, "close_timeout": 0.5}
PATIENCE_S = 60.0  # a generous end to every wait


def executable() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._number = 0
        self.errors: list[str] = []  # of the console, and exceptions
        self.requests: list[str] = []  # addresses that the page asked for
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer. Raises RuntimeError with the browser's words when it fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", str(details)))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "assert"):
                self.errors.append(str([one.get("value") for one in told["args"]]))
            case "Log.entryAdded" if told["entry"]["level"] == "error":
                self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])

    def open(self, url: str) -> None:
        """Go to ``url``; the page may still be loading afterwards."""
        self.call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited. Raises RuntimeError when it throws."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE_S) -> Any:
        """The first true value of ``expression``. Raises AssertionError that says what the page knows instead."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # between two documents there is nothing to ask
                if value := self.run(expression):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}; errors of the page: {self.errors}")

    def press(self, key: str) -> None:
        """Press and release a key that writes nothing, such as ``ArrowLeft``, ``Tab`` or ``Enter``."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        # A form is sent by the character that Enter makes, not by the key.
        text = {"text": "\r"} if key == "Enter" else {}
        both = {"key": key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **both, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **both)

    def type(self, text: str) -> None:
        """Write into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def colours(self, scheme: str) -> None:
        """``light`` or ``dark``, as a user's system would say."""
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def size(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def picture(self, path: str | os.PathLike[str]) -> None:
        """Write what the tab shows as PNG."""
        found = self.call("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(found["data"]))


class Browser:
    """A running Chromium with a profile of its own."""

    def __init__(self, path: str, profile: Path) -> None:
        command = [path, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        # A group of its own: the browser is a dozen processes, and all of them must go.
        self._process = subprocess.Popen(
            command, stdout=quiet, stderr=quiet, start_new_session=True
        )
        self._stack = contextlib.ExitStack()
        try:
            self._address = self._wait_for_port(profile / "DevToolsActivePort")
            self._socket = self._stack.enter_context(connect(self._address, **SOCKET))
        except BaseException:
            self.close()
            raise

    def _wait_for_port(self, file: Path) -> str:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if file.exists() and len(lines := file.read_text().splitlines()) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            if self._process.poll() is not None:
                raise RuntimeError(f"Chromium ended with code {self._process.returncode}")
            time.sleep(0.05)
        raise RuntimeError("Chromium did not open its DevTools port")

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """A fresh tab in a context of its own: no cookies, no storage of other tabs."""
        context = self._ask("Target.createBrowserContext")["browserContextId"]
        found = self._ask("Target.createTarget", url="about:blank", browserContextId=context)
        host = self._address.split("/devtools/")[0]
        with connect(f"{host}/devtools/page/{found['targetId']}", **SOCKET) as socket:
            try:
                yield Page(socket)
            finally:
                self._ask("Target.disposeBrowserContext", browserContextId=context)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == 1:
                return answer["result"]

    def close(self) -> None:
        self._stack.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium for a block. Raises RuntimeError where there is none or it does not start."""
    path = executable()
    if path is None:
        raise RuntimeError(f"no Chromium: none of {', '.join(NAMES)} is on PATH")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = Browser(path, Path(profile))
        try:
            yield running
        finally:
            running.close()
