"""A file that grows by whole pieces: whatever stops the writer, what lies on disk ends with the last whole piece."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from pathlib import Path


class OutputFile:
    """Owns one file that a door writes. Opening it proves that it can be written, before any work is done.

    An existing file keeps its content until the first piece replaces it; a new file that never got a piece is removed.

    ``size`` counts the bytes of the pieces. A piece may carry a tail, which makes the file complete as it stands and
    is overwritten by the next piece.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        """``name`` says which option the path came from. Raises ValueError when the file cannot be written."""
        self.path = Path(path)
        self.size = 0
        self._tail = b""
        self._file, self._created = _open(self.path, name)
        mode = os.fstat(self._file.fileno()).st_mode
        self._regular = stat.S_ISREG(mode)
        if not self._regular and not stat.S_ISCHR(mode):
            self.close()
            raise ValueError(f"{name}: want a file, but {self.path} is a pipe or a disk")

    def resume(self, size: int) -> None:
        """Go on behind the first ``size`` bytes that lie in the file; what follows them is cut off.

        Raises ValueError when the file is shorter, RuntimeError when it cannot be cut.
        """
        found = os.fstat(self._file.fileno()).st_size
        if found < size:
            raise ValueError(f"{self.path}: want at least {size} bytes to go on, got {found}")
        try:
            self._file.truncate(size)
        except OSError as error:
            raise RuntimeError(f"cannot write {self.path}: {reason(error)}") from error
        self.size = size

    def append(self, piece: bytes, tail: bytes = b"") -> None:
        """Put ``piece`` after the pieces before it and ``tail`` after that.

        Raises RuntimeError that names the file and the reason (the disk is full, ...); the file is then as it was.
        """
        whole = False
        try:
            self._write(piece + tail)
            whole = True
        except OSError as error:
            raise RuntimeError(f"cannot write {self.path}: {reason(error)}") from error
        finally:
            if not whole:
                with contextlib.suppress(OSError):
                    self._write(self._tail)
        self.size, self._tail = self.size + len(piece), tail

    def _write(self, content: bytes) -> None:
        """Make the file its pieces and ``content``, and nothing after it."""
        if self._regular:
            self._file.seek(self.size)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]
        if self._regular:
            self._file.truncate(self.size + len(content))

    def close(self) -> None:
        """Close the file; again is harmless. Raises RuntimeError when the system reports a late write error."""
        if self._file.closed:
            return
        try:
            self._file.close()
        except OSError as error:
            raise RuntimeError(f"cannot write {self.path}: {reason(error)}") from error
        finally:
            if self._created and not self.size:
                self.path.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """The system's own words, without number and path."""
    return error.strerror or str(error)


def _open(path: Path, name: str) -> tuple[io.FileIO, bool]:
    """The open file and whether it is new."""
    try:
        try:
            return io.FileIO(path, "x"), True
        except FileExistsError:
            return io.FileIO(path, "r+"), False
    except IsADirectoryError:
        raise ValueError(f"{name}: {path} is a folder; want the name of a file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{name}: there is no folder {path.parent}; make it first") from None
    except OSError as error:
        raise ValueError(f"{name}: cannot write {path}: {reason(error)}") from error
