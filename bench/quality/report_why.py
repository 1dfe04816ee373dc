"""The diagnosis in the quality report."""

from __future__ import annotations

from pathlib import Path


def section(folder: Path) -> str:
    return ""
