"""The layers that both rewards of the embedded world share: frame encoder, word agreement, vocabulary.

Legend: N frames, B clips, W words of the vocabulary, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.weights import read_config

SIDE = 96  # pixels a side that the networks see
PATCH = 6  # pixels
CELLS = SIDE // PATCH  # 16 patches a side
NARROW, WIDE = 40, 72  # channels on the 16x16 and the 8x8 map
WEIGHTS = Path(__file__).parent / "sprites"


class WrapConv(nn.Conv2d):
    """A 3x3 convolution on the torus: the world has no borders for what moves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="circular"))


class FrameEncoder(nn.Module):
    """Frames -> a fine map and a coarse map of features. Strided patches keep a frame cheap."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, NARROW, PATCH, stride=PATCH)
        self.fine = WrapConv(NARROW, NARROW, 3)
        self.coarse = WrapConv(NARROW, WIDE, 3, stride=2)
        self.last = WrapConv(WIDE, WIDE, 3)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [N, 3, 96, 96] in [0, 1] -> fine [N, NARROW, 16, 16], coarse [N, WIDE, 8, 8]."""
        x = F.gelu(self.patches(frames * 4 - 2))
        fine = x + F.gelu(self.fine(x))
        coarse = F.gelu(self.coarse(fine))
        return fine, coarse + F.gelu(self.last(coarse))


def pool(coarse: Tensor) -> Tensor:
    """Mean and maximum over the map: [N, C, h, w] -> [N, 2 * C]."""
    flat = coarse.flatten(2)
    return torch.cat((flat.mean(2), flat.amax(2)), 1)


class WordAgreement(nn.Module):
    """How true each word of the vocabulary is of what was seen: a learned embedding per word against a projection."""

    def __init__(self, width: int, words: int, dim: int = 48) -> None:
        super().__init__()
        self.see = nn.Linear(width, dim)
        self.embed = nn.Embedding(words, dim)
        self.bias = nn.Parameter(torch.zeros(words))
        nn.init.normal_(self.embed.weight, std=dim**-0.5)

    def forward(self, seen: Tensor) -> Tensor:
        """seen [B, width] -> logits [B, W], positive where the word is true."""
        return self.see(seen) @ self.embed.weight.T + self.bias


def agreement(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Mean degree in [0, 1] over the words ``ids`` of a caption: logits [B, W] -> [B]; 0.5 where no word is known."""
    if not ids:
        return logits.new_full((len(logits),), 0.5)
    return logits[:, list(ids)].sigmoid().mean(1)


@lru_cache(maxsize=256)
def known_words(text: str, words: tuple[str, ...]) -> tuple[int, ...]:
    """Indices of the vocabulary entries in ``text``, in order, each once; longer entries win, unknown words are ignored."""
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    found = re.findall(rf"\b(?:{longest_first})\b", text.lower())
    return tuple(dict.fromkeys(words.index(word) for word in found))


def check_shape(frames: Tensor) -> Tensor:
    """``frames`` as they are. Raises ValueError unless they are [B, T, 3, H, W] with at least one frame."""
    if frames.ndim != 5 or frames.shape[2] != 3 or frames.shape[1] < 1:
        raise ValueError(
            f"clip.frames: want [B, T, 3, H, W] with T at least 1, got {list(frames.shape)}"
        )
    return frames


def prepare(frames: Tensor, device: torch.device) -> Tensor:
    """Frames [B, T, 3, H, W] of any float dtype -> [B, T, 3, 96, 96] float32 on ``device``."""
    frames = frames.to(device=device, dtype=torch.float32)
    if frames.shape[-2:] == (SIDE, SIDE):
        return frames
    small = F.interpolate(frames.flatten(0, 1), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small.view(*frames.shape[:3], SIDE, SIDE)


def read_words(path: Path) -> tuple[str, ...]:
    """The vocabulary in the json beside a weights file. ValueError names that json and the key."""
    path = path.with_suffix(".json")
    words = read_config(path).get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{path}: key 'words': want a list of strings, got {type(words).__name__}")
    return tuple(words)
