"""A worker that needs no torch and does what it is told, wrong things above all: ``python -m tests.small_worker_process``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

from runtime.serve.wire import LineCutter, line_of, message_of


def main() -> None:
    fd = int(sys.argv[sys.argv.index("--link-fd") + 1])
    link = socket.socket(fileno=fd)
    link.sendall(line_of({"event": "ready", "arguments": sys.argv[1:]}))
    cutter = LineCutter()
    while content := link.recv(65536):
        for line in cutter.feed(content):
            obey(message_of(line), link)


def obey(command: dict, link: socket.socket) -> None:
    verb = command["do"]
    if verb == "echo":
        link.sendall(line_of({"event": "echo", "said": command["say"]}))
    elif verb == "environment":
        link.sendall(line_of({"event": "environment", "of": dict(os.environ)}))
    elif verb == "signal":
        os.kill(os.getpid(), getattr(signal, command["name"]))
    elif verb == "exit":
        os._exit(command["code"])
    elif verb == "say raw":
        link.sendall(command["text"].encode("latin-1"))
    elif verb == "hang up":
        link.shutdown(socket.SHUT_RDWR)
        link.close()
        time.sleep(60)
    elif (
        verb == "child"
    ):  # that holds the link open and outlives its parent, unless somebody sees to it
        child = subprocess.Popen(["sleep", "60"], pass_fds=(link.fileno(),))
        link.sendall(line_of({"event": "child", "pid": child.pid}))
    elif verb == "deaf":
        time.sleep(60)
    elif verb == "stop":
        link.sendall(line_of({"event": "stopping"} | json.loads(json.dumps(command))))
        time.sleep(0.05 if command["grace_s"] < 30 else 60)
        os._exit(0)


if __name__ == "__main__":
    main()
