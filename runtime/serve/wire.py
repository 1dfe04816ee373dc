"""One message is one line: a JSON object in UTF-8 of at most 4 MiB. Both ends of the link use this and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from runtime.serve.backend import Message

MAX_LINE_BYTES = 4 * 2**20


def line_of(message: Mapping[str, Any]) -> bytes:
    """``message`` as a line; numbers that JSON does not have become null. Raises ValueError when it is too long."""
    line = json.dumps(finite(message), allow_nan=False, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a line: want at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    return line


def message_of(line: bytes) -> Message:
    """The object that a line holds. Raises ValueError that says why it is none."""
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
        if b"\\u" in line:  # may spell half a character, which is no text
            json.dumps(message, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"a line: want UTF-8, got {error.reason}") from None
    except RecursionError:
        raise ValueError("a line: is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"a line: not valid JSON: {error}") from None
    if not isinstance(message, dict):
        raise ValueError(f"a line: want an object, got {type(message).__name__}")
    return message


class LineCutter:
    """Cuts what arrives into lines. Holds at most one unfinished line, and of one that is too long nothing."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._held = 0  # bytes of the unfinished line, kept or not

    def feed(self, content: bytes) -> Iterator[bytes | None]:
        """Yield every line that ``content`` finishes, without its end; None for one that was too long."""
        *whole, rest = content.split(b"\n")
        for piece in whole:
            self._hold(piece)
            yield b"".join(self._parts) if self._held < self._limit else None
            self._parts, self._held = [], 0
        self._hold(rest)

    def _hold(self, piece: bytes) -> None:
        self._held += len(piece)
        if self._held >= self._limit:
            self._parts = []
        elif piece:
            self._parts.append(piece)


def finite(value: Any) -> Any:
    """``value`` with null for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
