"""Writes an exported reward's folder all at once: beside its place first, flushed, then renamed. A failure leaves nothing.

What stands in its place is replaced when it is an export itself, and never otherwise.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.exported import FILE
from runtime.manifest import sync


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """An empty folder that becomes ``target`` when the block ends well. ValueError when something else stands there."""
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            sync(path)
        old = draft.with_suffix(".old")
        if target.exists():
            target.rename(old)
        draft.rename(target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_free(target: Path) -> None:
    """ValueError unless ``target`` is nothing, an empty folder or an export."""
    if target.is_dir() and not target.is_symlink():
        if (target / FILE).is_file() or not any(target.iterdir()):
            return
    elif not os.path.lexists(target):
        return
    raise ValueError(
        f"{target}: is there already and is no export (it has no {FILE}); name another folder with -o"
    )
