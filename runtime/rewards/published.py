"""Conversions of published reward models, by name; see ``runtime/convert.py``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime.shards import FolderWriter

CONVERSIONS: dict[str, Callable[[Path, FolderWriter], None]] = {}
