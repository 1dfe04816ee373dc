"""Is there good and bad noise? What a chunk's noise decides, beside the history that it is drawn for.

The same few noises are tried under several histories and at every chunk of a video. What a noise does everywhere it could
hand on. These are upper bounds for propagation: it hands on a share beta of the first draw alone, with its sign.

Legend: H histories, S noises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from runtime.bench.quality.why_intervals import correlation, interval, sums_by_prompt
from runtime.bench.quality.why_judge import MEASURES
from runtime.bench.quality.why_seen import REWARDS, Seen

Grids = dict[int, dict[int, Tensor]]  # prompt -> chunk -> [H, S]
Pairs = Iterator[tuple[int, Tensor, Tensor]]  # prompt, and two tensors of one shape, centred


def noise(walked: Sequence[Seen], probed: Sequence[Seen]) -> dict[str, Any]:
    """By reward and measure, correlations of deviations from what the same history does with the other noises:

    other_history  the same noise under two histories, at one chunk
    next_chunk     the same noise at a chunk and at the next, of one history. With fresh noise it is 0: siblings are drawn
                   alike, so nothing tells which of the next ones belongs to which
    carried        for scale, no noise shared: a video that stands above the prompt's others at a chunk does at the next
    """
    return {
        name: {
            "other_history": _pooled(_other_history(_grids(probed, name))),
            "next_chunk": _pooled(_next_chunk(_grids(probed, name))),
            "carried": _pooled(_next_chunk(_turned(_grids(walked, name)))),
        }
        for name in (*REWARDS, *MEASURES)
    }


def _grids(seen: Sequence[Seen], name: str) -> Grids:
    """Values by history and noise from chunk 1 on; at chunk 0 there is one history alone."""
    table: dict[int, dict[int, dict[tuple[int, int], float]]] = {}
    for one in seen:
        if one.chunk > 0:
            cell = table.setdefault(one.prompt, {}).setdefault(one.chunk, {})
            cell[one.history, one.noise] = (one.rewards | one.shows)[name]
    return {p: {c: _grid(cells) for c, cells in chunks.items()} for p, chunks in table.items()}


def _grid(cells: dict[tuple[int, int], float]) -> Tensor:
    histories, noises = (sorted({key[side] for key in cells}) for side in (0, 1))
    rows = [[cells[h, s] for s in noises] for h in histories]
    return torch.tensor(rows, dtype=torch.float64)


def _turned(grids: Grids) -> Grids:
    """Histories in the place of noises: what is compared are the histories themselves."""
    return {p: {c: grid.T for c, grid in chunks.items()} for p, chunks in grids.items()}


def _centred(grid: Tensor) -> Tensor:
    return grid - grid.mean(1, keepdim=True)


def _other_history(grids: Grids) -> Pairs:
    for prompt, chunks in grids.items():
        for grid in map(_centred, chunks.values()):
            for a, b in combinations(grid, 2):
                yield prompt, a, b


def _next_chunk(grids: Grids) -> Pairs:
    for prompt, chunks in grids.items():
        for chunk, grid in chunks.items():
            if chunk + 1 in chunks:
                yield prompt, _centred(grid), _centred(chunks[chunk + 1])


def _pooled(pairs: Pairs) -> dict[str, float | None]:
    """Correlation of everything that was paired, with its interval."""
    terms = [
        (p, [(a * b).sum().item(), a.square().sum().item(), b.square().sum().item()])
        for p, a, b in pairs
        if a.any() and b.any()  # else this prompt's siblings are alike and it says nothing
    ]
    if not terms:
        return {"r": None, "low": None, "high": None}
    r, low, high = interval(sums_by_prompt(terms), correlation)
    return {"r": r, "low": low, "high": high}
