"""The tables."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.bench.quality.row import Row


def sections(rows: Sequence[Row]) -> str:
    return ""
