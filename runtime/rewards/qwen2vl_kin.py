"""Rows that begin with the same pictures: each different picture is looked at once, each common beginning read once.

    row = [before | picture 0 | picture 1 | ... | after]

Attention is causal, so what a row makes of its beginning does not depend on what follows: sharing it is exact. All is
decided on the host from who holds which frame; rows may branch off one another several times, as histories do.

Legend: N rows, G pictures of a row, U different pictures, V visual tokens of a picture, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from runtime.rewards.qwen2vl import Branching, Network, Part, Qwen2VLConfig, Words
from runtime.rewards.qwen2vl_rotary import MERGE
from runtime.rewards.qwen2vl_words import TokenIds
from runtime.types import row_ranges, take_rows


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pictures that groups of rows have in common, and for each group the group before that it branches off from."""

    pictures: tuple[tuple[int, ...], ...]  # of each group
    parents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Kin:
    """Which of U different pictures each row shows, in order."""

    pictures: tuple[tuple[int, ...], ...]  # [N][G], numbers from 0 by first appearance

    @staticmethod
    def of(twins: Sequence[Sequence[int]], frames: int) -> Kin:
        """Of rows that show ``frames`` frames to a picture; ``twins[row][frame]`` as in ``Clip``."""
        numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        rows = []
        for row in twins:
            owners = [tuple(row[at : at + frames]) for at in range(0, len(row), frames)]
            rows.append(tuple(numbers.setdefault(key, len(numbers)) for key in enumerate(owners)))
        return Kin(tuple(rows))

    @property
    def seats(self) -> tuple[tuple[int, int], ...]:
        """Row and place of each different picture where it first appears."""
        first: dict[int, tuple[int, int]] = {}
        for row, shown in enumerate(self.pictures):
            for place, picture in enumerate(shown):
                first.setdefault(picture, (row, place))
        return tuple(first.values())

    @property
    def shares(self) -> bool:
        return len(self.seats) < sum(map(len, self.pictures))

    def rows(self, rows: range) -> Kin:
        """Some rows; pictures keep their numbers."""
        return Kin(self.pictures[rows.start : rows.stop])

    def stretches(self) -> tuple[Stretch, ...]:
        """The rows' pictures cut where rows part; the groups of the last stretch are the rows. At most N stretches."""
        G = len(self.pictures[0])
        groups = [len({shown[: place + 1] for shown in self.pictures}) for place in range(G)]
        cuts = [place for place in range(1, G) if groups[place] > groups[place - 1]]
        found: list[Stretch] = []
        before: list[tuple[int, ...]] = [()]
        for first, last in pairwise((0, *cuts, G)):
            begun = list(dict.fromkeys(shown[:last] for shown in self.pictures))
            now = list(self.pictures) if last == G else begun
            parents = tuple(before.index(shown[:first]) for shown in now)
            found.append(Stretch(tuple(shown[first:] for shown in now), parents))
            before = now
        return tuple(found)


def flops_kin(config: Qwen2VLConfig, kin: Kin, patches: int, ids: TokenIds, rows: int) -> int:
    """Of ``answer_kin``, without the head: as ``Qwen2VLConfig.flops`` of every row, but what is shared counts once."""
    text, tokens = config.text, patches // MERGE**2
    total = len(kin.seats) * config.vision.flops(patches, text.hidden_size)
    for some in row_ranges(len(kin.pictures), rows):
        *shared, last = kin.rows(some).stretches()
        past, fresh = 0, len(ids.before)
        for stretch in shared:
            fresh += len(stretch.pictures[0]) * tokens
            total += len(stretch.pictures) * text.flops(fresh, (), past)
            past, fresh = past + fresh, 0
        fresh += len(last.pictures[0]) * tokens + len(ids.after)
        seen = tuple(past + fresh - steps for steps in ids.back)
        total += len(last.pictures) * text.flops(fresh, seen, past)
    return total


def answer_kin(
    net: Network, patches: Tensor, grid: tuple[int, int], words: Words, kin: Kin, rows: int
) -> Tensor:
    """The head's outputs [N, R, O] for rows of kin, patches [U, P, 1176] of the different pictures; ``rows`` at a time."""
    most = rows * len(kin.pictures[0])
    looked = [net.look(patches[r.start : r.stop], grid) for r in row_ranges(len(patches), most)]
    tokens = torch.cat(looked)  # [U, V, E]
    ranges = row_ranges(len(kin.pictures), rows)
    return torch.cat([_read(net, tokens, words, kin.rows(some)) for some in ranges])


def _read(net: Network, tokens: Tensor, words: Words, kin: Kin) -> Tensor:
    """Outputs [N, R, O] of rows that show ``tokens`` [U, V, E]."""
    stretches = kin.stretches()
    if not isinstance(net, Branching):
        stretches = (Stretch(kin.pictures, (0,) * len(kin.pictures)),)
    parts = []
    for stretch in stretches:
        pieces = [_shown(tokens, stretch.pictures)]
        if stretch is stretches[0]:
            pieces.insert(0, net.embed(words.before).expand(len(pieces[0]), -1, -1))
        if stretch is stretches[-1]:
            pieces.append(net.embed(words.after).expand(len(pieces[-1]), -1, -1))
        parts.append(Part(torch.cat(pieces, 1), stretch.parents))
    at = words.at + (parts[-1].x.shape[1] - len(words.after))
    if len(parts) == 1 or not isinstance(net, Branching):
        return net.read(parts[0].x, at)
    return net.read_parts(parts, at)


def _shown(tokens: Tensor, pictures: Sequence[tuple[int, ...]]) -> Tensor:
    """tokens [U, V, E] of groups' pictures one after the other, [groups, pictures * V, E]."""
    flat = take_rows(tokens, [picture for shown in pictures for picture in shown])
    return flat.view(len(pictures), -1, flat.shape[-1])
