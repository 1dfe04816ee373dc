"""Do the rewards rank candidates as the judge does, is there anything to rank, and what does their choice win?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runtime.bench.quality.why_intervals import interval, mean_of, ratio, sums_by_prompt
from runtime.bench.quality.why_judge import MEASURES
from runtime.bench.quality.why_seen import REWARDS, Seen, groups, histories
from runtime.bench.sprites.reward_report import spearman

SAME = 1e-6  # differences below this are rounding


def agreement(searched: Sequence[Seen], walked: Sequence[Seen]) -> list[dict[str, Any]]:
    """Rank correlation of every reward with every measure, in three scopes:

    of the chunk     among the search's candidates of one chunk: what selection needs
    of the video     among histories that all go on to the end, at one chunk: does selection look ahead?
    along the video  among the chunks of one history, what gates need
    """
    rows = []
    for reward in REWARDS:
        for measure in MEASURES:
            chunk = [(one, one.shows[measure]) for one in searched]
            video = [(one, one.video[measure]) for one in walked]
            along = [(one, one.shows[measure]) for one in walked]
            rows.append(_row(reward, f"{measure} of the chunk", chunk))
            rows.append(_row(reward, f"{measure} of the video", video))
            rows.append(_row(reward, f"{measure} along the video", along, histories))
    return rows


def _row(
    reward: str,
    measure: str,
    judged: Sequence[tuple[Seen, float]],
    grouped: Callable[[Iterable[Seen]], list[list[Seen]]] = groups,
) -> dict[str, Any]:
    """``within``: mean of Spearman's rho over the groups in which both differ. ``overall``: of all at once."""
    value = {id(one): number for one, number in judged}
    seen = [one for one, _ in judged]
    found = []
    for group in grouped(seen):
        rewards, values = _column(group, reward), torch.tensor([value[id(one)] for one in group])
        if _differ(rewards) and _differ(values):
            found.append((group[0].prompt, spearman(rewards, values)))
    within = mean_of(found)
    everything = torch.tensor([value[id(one)] for one in seen])
    known = bool(seen) and _differ(everything)
    return {
        "reward": reward,
        "measure": measure,
        "within": within["mean"],
        "low": within["low"],
        "high": within["high"],
        "overall": spearman(_column(seen, reward), everything) if known else None,
        "candidates": len(seen),
        "groups": within["count"],
    }


def regret(searched: Sequence[Seen]) -> dict[str, Any]:
    """What choosing by each reward wins over choosing blindly, as a share of what the best choice would win.

    By reward and measure, over the chunks at which the candidates differ in the measure:
    picks_best  how often the reward's favourite is the measure's; ``chance`` is how often a blind choice is
    gained      the favourite's measure minus the mean of the candidates; ``headroom`` the best's minus the mean
    share       gained over headroom, with its interval: 1 is a perfect choice, 0 a blind one
    """
    return {
        reward: {measure: _choice(searched, reward, measure) for measure in MEASURES}
        for reward in REWARDS
    }


def _choice(seen: Sequence[Seen], reward: str, measure: str) -> dict[str, Any]:
    terms = []
    for group in groups(seen):
        values = _column(group, measure)
        if not _differ(values):
            continue
        favourite = values[_column(group, reward).argmax()]
        best, mean = values.max(), values.mean()
        hit = float(favourite >= best - SAME)
        chance = (values >= best - SAME).double().mean().item()
        won = (favourite - mean).item(), (best - mean).item()
        terms.append((group[0].prompt, (*won, hit, chance, 1.0)))
    if not terms:
        return dict.fromkeys(("picks_best", "chance", "gained", "headroom", "share", "low", "high"))
    sums = sums_by_prompt(terms)
    gained, headroom, hits, chance, count = sums.sum(0).tolist()
    share, low, high = interval(sums[:, :2], ratio)
    return {
        "picks_best": hits / count,
        "chance": chance / count,
        "gained": gained / count,
        "headroom": headroom / count,
        "share": share,
        "low": low,
        "high": high,
        "chunks": int(count),
    }


def siblings(searched: Sequence[Seen]) -> dict[str, Any]:
    """Is there anything to choose? For rewards and measures, over the candidates of one chunk:

    spread  mean of the largest minus the smallest    std  standard deviation among them
    share   of all variance that lies among them, and not between prompts and chunks    differ  how often they differ
    """
    return {name: _spread(searched, name) for name in (*REWARDS, *MEASURES)}


def _spread(seen: Sequence[Seen], name: str) -> dict[str, float | None]:
    columns = [_column(group, name) for group in groups(seen) if len(group) > 1]
    if not columns:
        return dict.fromkeys(("spread", "std", "share", "differ"))
    within = sum((c - c.mean()).square().sum().item() for c in columns)
    everything = torch.cat(columns)
    total = (everything - everything.mean()).square().sum().item()
    return {
        "spread": sum((c.max() - c.min()).item() for c in columns) / len(columns),
        "std": (within / (len(everything) - len(columns))) ** 0.5,
        "share": within / total if total > SAME**2 else None,
        "differ": sum(_differ(c) for c in columns) / len(columns),
    }


def _column(seen: Sequence[Seen], name: str) -> Tensor:
    """A reward or a measure of the chunk, [N] in float64."""
    return torch.tensor([_of(one, name) for one in seen], dtype=torch.float64)


def _of(one: Seen, name: str) -> float:
    table: Mapping[str, float] = one.rewards if name in REWARDS else one.shows
    return table[name]


def _differ(values: Tensor) -> bool:
    return bool(values.max() - values.min() > SAME)
