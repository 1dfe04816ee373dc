"""Latents and captions made ahead for training, read shard by shard while more are still being encoded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.sprites.student import TEXT_LEN, vocabulary
from runtime.bench.sprites.world import SPEEDS
from runtime.generators.text import word_tokeniser


class Corpus:
    """Latents and captions made ahead by ``encode_clips``; shards may still be arriving while training runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokeniser = folder, word_tokeniser(vocabulary())
        self.latents, self.captions = torch.empty(0), []
        self.shards = 0

    def refresh(self) -> None:
        paths = sorted(self.folder.glob("shard_*.pt"))
        if len(paths) == self.shards:
            return
        parts = [torch.load(path, weights_only=True) for path in paths]
        self.latents = torch.cat([part["latents"] for part in parts])
        self.captions = [caption for part in parts for caption in part["captions"]]
        self.shards = len(paths)

    def batch(self, size: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, F, C, h, w] float32, ids and mask [B, TEXT_LEN]; some captions lose their speed word."""
        rng = random.Random(step)
        rows = [rng.randrange(len(self.captions)) for _ in range(size)]
        texts = [self.captions[row] for row in rows]
        for speed in SPEEDS:
            texts = [t.replace(f" {speed}", "") if rng.random() < 0.03 else t for t in texts]
        ids, mask = self.encode(texts)
        return self.latents[rows].float(), ids, mask

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        coded = [self.tokeniser.encode(text).ids for text in texts]
        ids = torch.tensor([c + [0] * (TEXT_LEN - len(c)) for c in coded])
        return ids, (torch.arange(TEXT_LEN) < torch.tensor([len(c) for c in coded])[:, None]).long()
