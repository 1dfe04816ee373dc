"""A search that a page can be shown: events as a worker tells them, of K = 2 histories and M = 2 expansions."""

from __future__ import annotations

import functools
from typing import Any

import torch

from runtime.trace import thumbnails
from runtime.video import VideoWriter

Event = dict[str, Any]
STAGES = {"denoise": 120.0, "decode": 60.0}


@functools.cache
def pictures() -> list[str]:
    """Four thumbnails, as data addresses."""
    shades = torch.linspace(0.2, 0.9, 4).view(4, 1, 1, 1, 1).expand(4, 1, 3, 48, 48)
    return [f"data:image/jpeg;base64,{one}" for one in thumbnails(shades)]


def began(chunks: int) -> Event:
    return {"event": "began", "chunks": chunks, "chunk": 0}


def turn(index: int, kept: tuple[int, int] = (0, 3), *, rows: int = 4) -> Event:
    """Chunk ``index``; ``kept`` are the rows of rank 0 and 1. Half the rows go on from each history."""
    return {
        "event": "turn",
        "index": index,
        "stage_ms": STAGES,
        "histories": 2,
        "expansions": rows // 2,
        "candidates": [candidate(index, row, kept, rows) for row in range(rows)],
    }


def candidate(index: int, row: int, kept: tuple[int, int], rows: int) -> Event:
    return {
        "row": row,
        "parent": row * 2 // rows if index else None,
        "expansion": row % (rows // 2),
        "seed": 2**63
        - 1
        - 1000 * index
        - row,  # more than a number of the page's language can hold
        "short": 0.25 + row / 100,
        "long": 0.5 + row / 100,
        "fused": 1.0 - row / 100 if row else None,  # the reward of the first one failed
        "quality_gain": 0.01,
        "long_drop": -0.02,
        "route": ("append", "ema", "discard", "discard")[row % 4],
        "rank": kept.index(row) if row in kept else None,
        "thumbnail": pictures()[row % 4],
    }


def settled(index: int, row: int, size: int = 1000) -> Event:
    """Row ``row`` of chunk ``index`` became the video."""
    one = candidate(index, row, (row, row), 4)
    scores = {name: one[name] for name in ("seed", "route", "short", "long", "fused")}
    return {"event": "settled", "index": index, "frames": 12, "bytes": size * (index + 1)} | scores


def pieces(path: str, chunks: int) -> list[bytes]:
    """A file of ``chunks`` chunks of half a second each, cut where a chunk ends."""
    found, before = [], 0
    with VideoWriter(path, 24, scale=1) as video:
        for index in range(chunks):
            video.add(torch.full((12, 3, 96, 96), index / chunks))
            with open(path, "rb") as file:
                content = file.read()[: video.size_bytes]
            found.append(content[before:])
            before = video.size_bytes
    return found
