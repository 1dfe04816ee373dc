"""Latents and captions made ahead for training, read shard by shard while more are still being encoded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.sprites.student import TEXT_LEN, vocabulary
from runtime.bench.sprites.world import SPEEDS
from runtime.generators.text import word_tokeniser

FAR = 0.35  # share of clean clips whose second chunk lies far from the first in time
FAR_CHUNKS = 40


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips as training sees them."""

    latents: Tensor  # [B, F, C, h, w] float32
    ids: Tensor  # [B, TEXT_LEN]
    mask: Tensor
    ages: tuple[int, ...]  # chunks that went by unseen after the first

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device) for t in (self.latents, self.ids, self.mask)), self.ages)


@dataclass
class Shelf:
    """All shards of one kind that have arrived."""

    paths: list[Path] = field(default_factory=list)
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    captions: list[str] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)  # empty for clean clips

    def refresh(self, paths: list[Path]) -> None:
        new = [path for path in paths if path not in self.paths]
        parts = [torch.load(path, weights_only=True) for path in new]
        if parts:
            old = [self.latents] if self.paths else []
            self.latents = torch.cat([*old, *(part["latents"] for part in parts)])
            self.captions += [caption for part in parts for caption in part["captions"]]
            self.ages += [age for part in parts for age in part.get("ages", ())]
            self.paths += new


class Corpus:
    """Latents and captions made ahead by ``encode_clips``; shards may still be arriving while training runs."""

    def __init__(self, folder: Path, wandering: float = 0.0) -> None:
        """``wandering`` is the share of clips that drift."""
        self.folder, self.wandering = folder, wandering
        self.tokeniser = word_tokeniser(vocabulary())
        self.clean, self.drifting = Shelf(), Shelf()

    def refresh(self) -> None:
        self.clean.refresh(sorted(self.folder.glob("shard_*.pt")))
        self.drifting.refresh(sorted(self.folder.glob("wandering_*.pt")))

    def batch(self, size: int, step: int) -> Batch:
        """``size`` clips. Clean ones jump ahead in time now and then; some captions lose their speed word."""
        rng = random.Random(step)
        latents, texts, ages = [], [], []
        for _ in range(size):
            shelf = self.drifting if rng.random() < self.wandering else self.clean
            row = rng.randrange(len(shelf.captions))
            text = shelf.captions[row]
            for speed in SPEEDS:
                text = text.replace(f" {speed}", "") if rng.random() < 0.03 else text
            far = rng.randint(1, FAR_CHUNKS) if rng.random() < FAR else 0
            latents.append(shelf.latents[row].float())
            texts.append(text)
            ages.append(shelf.ages[row] if shelf is self.drifting else far)
        return Batch(torch.stack(latents), *self.encode(texts), tuple(ages))

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        coded = [self.tokeniser.encode(text).ids for text in texts]
        ids = torch.tensor([c + [0] * (TEXT_LEN - len(c)) for c in coded])
        return ids, (torch.arange(TEXT_LEN) < torch.tensor([len(c) for c in coded])[:, None]).long()
