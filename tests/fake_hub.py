"""A hub that serves files out of memory, counts what it is asked and can fail as the real one does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from runtime.hub import HubError, Listing, RemoteFile

Files = dict[str, bytes]


def commit(text: str) -> str:
    """A commit's 40 digits."""
    return hashlib.sha1(text.encode()).hexdigest()


@dataclass
class FakeHub:
    """Repository -> commit -> files; the last commit is the head of the default branch.

    Files longer than ``large`` have a sha256, the others git's blob id, as on the real hub.
    """

    folder: Path
    repositories: dict[str, dict[str, Files]]
    large: int = 64
    cut_after: int = -1  # bytes that a download brings before the connection is gone; -1: all
    spoiled: str = ""  # a file that arrives with a flipped bit
    lying: str = ""  # a file that the listing calls something else
    refusal: HubError | None = None
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def resolve(self, repo: str, revision: str) -> Listing:
        self.asked.append(("resolve", repo, revision))
        if self.refusal:
            raise self.refusal
        commits = self.repositories[repo]
        revision = revision or list(commits)[-1]
        if revision not in commits:
            raise HubError("missing", f"{repo} has no commit {revision}", repo)
        return Listing(
            revision, {path: self._facts(path, data) for path, data in commits[revision].items()}
        )

    def _facts(self, path: str, data: bytes) -> RemoteFile:
        if path == self.lying:
            data = data[::-1]
        digest = hashlib.sha256(data) if len(data) > self.large else hashlib.sha1(b"blob %d\0" % len(data) + data)  # fmt: skip
        return RemoteFile(len(data), digest.hexdigest())

    def _place(self, repo: str, path: str, revision: str) -> Path:
        return self.folder / repo.replace("/", "--") / revision / path

    def held(self, repo: str, path: str, revision: str) -> Path | None:
        place = self._place(repo, path, revision)
        return place if place.is_file() else None

    def download(self, repo: str, path: str, revision: str) -> Path:
        """Goes on from a ``.incomplete`` file, as the real client does."""
        data = self.repositories[repo][revision][path]
        place = self._place(repo, path, revision)
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + ".incomplete")
        begun = part.stat().st_size if part.exists() else 0
        self.asked.append(("download", repo, path, revision, str(begun)))
        if self.refusal:
            raise self.refusal
        end = len(data) if self.cut_after < 0 else min(begun + self.cut_after, len(data))
        with part.open("ab") as file:
            file.write(data[begun:end])
        if end < len(data):
            raise HubError("offline", f"{repo}/{path}: connection lost", repo)
        if path == self.spoiled:
            content = bytearray(data)
            content[len(data) // 2] ^= 1
            part.write_bytes(content)
        part.replace(place)
        return place

    @property
    def downloads(self) -> list[str]:
        return [what[2] for what in self.asked if what[0] == "download"]
