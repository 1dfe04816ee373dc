"""Which commit of every repository this machine has settled on: a lock file in the weights' home; nothing moves unasked.

    pins.json   {"format": 1, "repositories": {repo: {"revision", "files": {path: {"bytes", "digest"}}}}}

The first fetch takes the catalogue's commit, or the default branch's if the catalogue has none, and writes it down with the
size and the digest of every file. Later fetches take what is written; ``--update`` asks again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from runtime.catalogue import Part
from runtime.hub import COMMIT_DIGITS, Hub, HubError, Listing, RemoteFile, is_hex
from runtime.weights import read_config

NAME = "pins.json"
FORMAT = 1


def read_pins(home: Path) -> dict[str, Listing]:
    """Repository -> what it is pinned to; nothing if ``home`` has no lock file. ValueError names a damaged one."""
    path = home / NAME
    if not path.exists():
        return {}
    table = read_config(path)
    try:
        if table.get("format") != FORMAT:
            raise ValueError(f"want format {FORMAT}, got {table.get('format')!r}")
        return {repo: _listing(entry) for repo, entry in table["repositories"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a lock file of this package ({error}); put it aside and fetch again"
        ) from None


def _listing(entry: Mapping) -> Listing:
    files = {path: RemoteFile(**facts) for path, facts in entry["files"].items()}
    return Listing(entry["revision"], files)


def write_pins(home: Path, pins: Mapping[str, Listing]) -> None:
    """Replace the lock file in one step."""
    repositories = {
        repo: {
            "revision": listing.revision,
            "files": {path: asdict(file) for path, file in sorted(listing.files.items())},
        }
        for repo, listing in sorted(pins.items())
    }
    home.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=home, prefix=NAME)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "repositories": repositories}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, home / NAME)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def parse_revisions(pairs: list[str]) -> dict[str, str]:
    """``REPO=HASH`` -> {repo: commit}. ValueError for anything that is not a whole commit, since a branch can move."""
    chosen = {}
    for pair in pairs:
        repo, _, revision = pair.partition("=")
        if repo.count("/") != 1 or not is_hex(revision, COMMIT_DIGITS):
            raise ValueError(
                f"--revision: want OWNER/NAME=COMMIT with the 40 digits of a commit, got {pair!r}"
            )
        chosen[repo] = revision
    return chosen


def settle(part: Part, pinned: Listing | None, hub: Hub, chosen: str, update: bool) -> Listing:
    """What to take of ``part``: the pin if there is one, else ``chosen``, the catalogue's commit or the default branch's.

    ValueError when ``chosen`` is not the pin and ``update`` is not set; HubError when a file is not there, or is not the
    one that the catalogue or the pin knows by its digest.
    """
    wanted = chosen or part.revision
    if pinned is not None and not update:
        if chosen and chosen != pinned.revision:
            raise ValueError(
                f"{part.repo}: pinned to {pinned.revision} by an earlier fetch, but --revision says {chosen}; "
                "add --update to change the pin"
            )
        wanted = pinned.revision
        if all(file.path in pinned.files for file in part.files):
            return pinned
    found = hub.resolve(part.repo, wanted)
    if wanted and found.revision != wanted:
        raise HubError(
            "broken", f"{part.repo}: asked for {wanted}, got {found.revision}", part.repo
        )
    lost = [file.path for file in part.files if file.path not in found.files]
    if lost:
        raise HubError(
            "missing", f"{part.repo} has no {', '.join(lost)} at {found.revision}", part.repo
        )
    known = (
        {}
        if found.revision != part.revision
        else {f.path: f.sha256 for f in part.files if f.sha256}
    )
    taken = {file.path: found.files[file.path] for file in part.files}
    if pinned is not None and pinned.revision == found.revision:
        taken = dict(pinned.files) | taken
        known |= {path: file.digest for path, file in pinned.files.items()}
    for path, digest in known.items():
        if taken[path].digest != digest:
            raise HubError(
                "broken",
                f"{part.repo}/{path}: known as {digest} at {found.revision}, but the hub says {taken[path].digest}",
                part.repo,
            )
    return Listing(found.revision, taken)
