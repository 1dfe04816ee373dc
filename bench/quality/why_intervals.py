"""Numbers with the range they could as well have had: prompts are drawn again, never single candidates.

Candidates of one prompt share its caption, and those of one chunk a history; only prompts are independent.

Legend: P prompts, k sums per prompt, R resampled sets of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

ROUNDS = 2000
SEED = 7


def interval(
    sums: Tensor, combine: Callable[[Tensor], Tensor]
) -> tuple[float | None, float | None, float | None]:
    """Estimate and 95 % interval of ``combine`` (sums [..., k] -> [...]) of per-prompt sums [P, k] added up.

    The interval is None with fewer than three prompts, everything where the estimate does not exist.
    """
    whole = float(combine(sums.sum(0)))
    if not math.isfinite(whole):
        return None, None, None
    if len(sums) < 3:
        return whole, None, None
    source = torch.Generator().manual_seed(SEED)
    picks = torch.randint(len(sums), (ROUNDS, len(sums)), generator=source)
    found = combine(sums[picks].sum(1))
    found = found[found.isfinite()]
    if len(found) < ROUNDS // 2:
        return whole, None, None
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return whole, low, high


def sums_by_prompt(terms: Iterable[tuple[int, Sequence[float]]]) -> Tensor:
    """Terms of each prompt added up: pairs of a prompt and k numbers -> [P, k] in float64."""
    table: dict[int, list[float]] = {}
    for prompt, values in terms:
        before = table.get(prompt, [0.0] * len(values))
        table[prompt] = [a + b for a, b in zip(before, values, strict=True)]
    return torch.tensor(list(table.values()), dtype=torch.float64).reshape(len(table), -1)


def ratio(sums: Tensor) -> Tensor:
    """First over second of [..., 2]: a mean, when the second is a count."""
    return sums[..., 0] / sums[..., 1]


def correlation(sums: Tensor) -> Tensor:
    """Of sums of products xy, xx, yy [..., 3] of numbers that were centred before."""
    return sums[..., 0] / (sums[..., 1] * sums[..., 2]).sqrt()


def mean_of(pairs: Iterable[tuple[int, float]]) -> dict[str, float | int | None]:
    """Mean of (prompt, value) pairs with its interval and count."""
    pairs = list(pairs)
    if not pairs:
        return {"mean": None, "low": None, "high": None, "count": 0}
    mean, low, high = interval(sums_by_prompt((p, (v, 1.0)) for p, v in pairs), ratio)
    return {"mean": mean, "low": low, "high": high, "count": len(pairs)}
