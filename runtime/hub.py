"""The model hub behind a small seam: what a repository holds at a commit, and one file of it. Only this asks a network.

The hub names a large file by its sha256 and a small one by git's blob id; ``check_file`` knows both by their length.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

COMMIT_DIGITS = 40
DIGESTS = {40: "git's blob id", 64: "sha256"}
HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3")  # the client's, over its releases
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub describes it."""

    bytes: int
    digest: str  # hexadecimal, see ``DIGESTS``

    def __post_init__(self) -> None:
        if type(self.bytes) is not int or self.bytes < 0:
            raise ValueError(f"bytes: want a whole number of at least 0, got {self.bytes!r}")
        if not is_hex(self.digest, *DIGESTS):
            raise ValueError(f"digest: want 40 or 64 hexadecimal digits, got {self.digest!r}")


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    revision: str
    files: Mapping[str, RemoteFile]

    def __post_init__(self) -> None:
        if not is_hex(self.revision, COMMIT_DIGITS):
            raise ValueError(f"revision: want a commit of 40 digits, got {self.revision!r}")


class HubError(RuntimeError):
    """The hub did not give what was asked; ``kind`` says what can be done about it."""

    def __init__(self, kind: str, message: str, repo: str = "") -> None:
        """``kind`` is offline, gated, missing, full or broken."""
        super().__init__(message)
        self.kind, self.repo = kind, repo


class Hub(Protocol):
    """A place that keeps repositories. Every method raises HubError and nothing else when it cannot do its work."""

    @property
    def folder(self) -> Path:
        """Where downloads land."""
        ...

    def resolve(self, repo: str, revision: str) -> Listing:
        """What ``repo`` holds at ``revision``; "" is its default branch."""
        ...

    def held(self, repo: str, path: str, revision: str) -> Path | None:
        """The file, if an earlier download brought it here whole."""
        ...

    def download(self, repo: str, path: str, revision: str) -> Path:
        """The file at a commit, going on from where an earlier download stopped."""
        ...


class HuggingFace:
    """Hugging Face's hub through its own client, whose cache, token and offline switch it keeps to."""

    def __init__(self) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise RuntimeError(
                "huggingface_hub is not installed; run `pip install huggingface_hub`"
            ) from None
        self._client: Any = huggingface_hub

    @property
    def folder(self) -> Path:
        return Path(self._client.constants.HF_HUB_CACHE)

    def resolve(self, repo: str, revision: str) -> Listing:
        try:
            info = self._client.HfApi().model_info(
                repo, revision=revision or None, files_metadata=True
            )
        except Exception as error:  # the client's HTTP library changed three times
            _raise(error, repo)
        files = {}
        for sibling in info.siblings or ():
            digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            if digest and sibling.size is not None:
                files[sibling.rfilename] = RemoteFile(sibling.size, digest)
        return Listing(info.sha, files)

    def held(self, repo: str, path: str, revision: str) -> Path | None:
        found = self._client.try_to_load_from_cache(repo, path, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def download(self, repo: str, path: str, revision: str) -> Path:
        if not is_hex(revision, COMMIT_DIGITS):
            raise ValueError(f"revision: want a commit, for a branch can move, got {revision!r}")
        try:
            return Path(self._client.hf_hub_download(repo, path, revision=revision))
        except Exception as error:  # as above
            _raise(error, f"{repo}/{path}")


def _raise(error: Exception, what: str) -> NoReturn:
    """Raise the HubError that ``error`` from the client means."""
    repo = "/".join(what.split("/")[:2])
    raise HubError(_kind(error), f"{what}: {_sentence(error)}", repo) from error


def _kind(error: BaseException) -> str:
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if {"OfflineModeIsEnabled", "LocalEntryNotFoundError"} & names:
        # What stopped the client may hide behind "not found here and cannot be asked for".
        causes = (error.__cause__, error.__context__)
        inner = {_kind(cause) for cause in causes if cause is not None}
        return next(iter(inner & {"gated", "full"}), "offline")
    if "GatedRepoError" in names:
        return "gated"
    # The hub also answers 401 for what is not there, to whoever it does not know.
    if {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"} & names:
        return "missing"
    if status in (401, 403):
        return "gated"
    if status is not None:
        return "missing" if status == 404 else "broken"
    if isinstance(error, OSError) and error.errno in FULL:
        return "full"
    library = type(error).__module__.split(".")[0]
    if isinstance(error, ConnectionError | TimeoutError) or library in HTTP_LIBRARIES:
        return "offline"
    return "broken"


def _sentence(error: BaseException) -> str:
    """The first line of what ``error`` says, or its name if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def is_hex(text: object, *lengths: int) -> bool:
    """Whether ``text`` is lower-case hexadecimal of one of ``lengths``."""
    return isinstance(text, str) and len(text) in lengths and not text.strip("0123456789abcdef")


def check_file(path: Path, wanted: RemoteFile) -> None:
    """ValueError that names the file unless its size and digest are as ``wanted``."""
    size = path.stat().st_size
    if size != wanted.bytes:
        raise ValueError(f"{path}: want {wanted.bytes} bytes, got {size}")
    if len(wanted.digest) == COMMIT_DIGITS:
        hasher = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        hasher = hashlib.sha256()
    block = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            hasher.update(memoryview(block)[:count])
    if hasher.hexdigest() != wanted.digest:
        kind = DIGESTS[len(wanted.digest)]
        raise ValueError(f"{path}: want {kind} {wanted.digest}, got {hasher.hexdigest()}")


def discard(path: Path) -> None:
    """Remove a damaged download and, where it is a link into the client's cache, what it points at."""
    target = Path(os.path.realpath(path))
    path.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
