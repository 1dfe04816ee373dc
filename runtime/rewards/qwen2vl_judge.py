"""A Qwen2-VL reward's weights, words and batches: what HPSv3 and VideoAlign have in common.

Legend: B clips, N rows, G pictures of a row, P patches of a picture, R read-out tokens, O outputs of the head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.kernels.philox import upload
from runtime.kernels.reward_patches import PATCH, PatchFormat, fit_size, reward_patches
from runtime.rewards.graphs import GraphNetwork, Limits, fill_embedding
from runtime.rewards.qwen2vl import Network, Qwen2VL, Qwen2VLConfig, Words, answer
from runtime.rewards.qwen2vl_kin import Kin, answer_kin, flops_kin
from runtime.rewards.qwen2vl_words import Filler, Rubric, Script
from runtime.types import Clip, Compiled, row_ranges
from runtime.weights import fill_random_, load_weights_, read_config

PROMPTS_KEPT = 16  # the ids of a prompt stay on the device for all its chunks


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """Between which areas a frame is resized before the model sees it."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"min_pixels, max_pixels: want 1 to max_pixels, got {self.least!r}, {self.most!r}"
            )

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels that a frame becomes."""
        return fit_size(height, width, self.least, self.most)


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells one published reward from another, before any weights."""

    name: str
    config: Qwen2VLConfig  # as published; a folder's config.json has the last word
    marks: tuple[str, ...]  # read-out tokens, in order
    head: Callable[[int, Mapping[str, Any]], nn.Module]  # of a width and the table in config.json
    head_dtype: torch.dtype | None  # None: as the rest
    pixels: PixelBounds
    filler_tokens: int  # of text, for random weights


@dataclass(frozen=True, slots=True)
class Questions:
    """Everything a forward pass reads, on the model's device: prepared once, asked as often as one likes."""

    patches: Tensor  # [N, G, P, 1176]; of rows of kin [U, 1, P, 1176], each different picture once
    grid: tuple[int, int]  # rows and columns of patches
    words: Words
    kin: Kin | None = (
        None  # which pictures rows share; None: unknown, or none. Decides shapes: part of a graph's key.
    )

    def rows(self, rows: range) -> Questions:
        return Questions(self.patches[rows.start : rows.stop], self.grid, self.words)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a folder says of a reward before its weights are read."""

    config: Qwen2VLConfig
    head: Callable[[], nn.Module]
    pixels: PixelBounds
    script: Script

    @staticmethod
    def read(kind: Kind, folder: Path | None) -> Setup:
        """Of ``folder``, or of random weights at the published size. ValueError names file and entry."""
        if folder is None:
            wide = kind.config.text.hidden_size
            script = Filler(kind.filler_tokens, len(kind.marks), kind.config.text.vocab_size)
            return Setup(kind.config, lambda: kind.head(wide, {}), kind.pixels, script)
        path = folder / "config.json"
        table = read_config(path)
        try:
            config = Qwen2VLConfig.read(table)
            bounds = (table.get("min_pixels", kind.pixels.least), table.get("max_pixels", kind.pixels.most))  # fmt: skip
            if not all(type(bound) is int for bound in bounds):
                raise ValueError(f"min_pixels, max_pixels: want whole numbers, got {bounds}")
            pixels, head = PixelBounds(*bounds), lambda: kind.head(config.text.hidden_size, table)
            with torch.device("meta"):
                head()  # says what it does not like before any weights are read
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return Setup(config, head, pixels, Rubric(folder, kind.marks, config.text.vocab_size))

    def net(self) -> Qwen2VL:
        """Without values."""
        with torch.device("meta"):
            return Qwen2VL(self.config, self.head())


class Judge:
    """A network, the words it is asked with and the sizes it looks at."""

    def __init__(
        self, kind: Kind, net: Qwen2VL | GraphNetwork, script: Script, pixels: PixelBounds
    ) -> None:
        self.kind, self.script, self.pixels = kind, script, pixels
        self.net: Network = net  # another that computes the same may take its place
        self.config, self.device, self.dtype = net.config, net.device, net.dtype
        held = net.embedding if isinstance(net, GraphNetwork) else net
        held.eval().requires_grad_(False)
        self.nbytes = sum(value.numel() * value.element_size() for value in held.parameters())
        self.words = functools.lru_cache(maxsize=PROMPTS_KEPT)(self._words)

    @staticmethod
    def random(kind: Kind, device: str | torch.device, dtype: torch.dtype) -> Judge:
        """At the published size with random weights: for timing, since speed does not depend on the values."""
        setup = Setup.read(kind, None)
        net = setup.net()
        head_dtype = kind.head_dtype or dtype
        for part, its_dtype in ((net.visual, dtype), (net.model, dtype), (net.rm_head, head_dtype)):
            fill_random_(part, device, its_dtype)
        return Judge(kind, net, setup.script, setup.pixels)

    @staticmethod
    def load(kind: Kind, device: str | torch.device, folder: Path, dtype: torch.dtype) -> Judge:
        """From ``folder``: model.safetensors, config.json, tokenizer.json, rubric.txt. ValueError names file and key.

        config.json is that of the published backbone with the checkpoint's vocab_size; it may also set min_pixels,
        max_pixels and, for VideoAlign, output_dim. The checkpoint has LoRA merged; its vocabulary head is not read.
        """
        setup = Setup.read(kind, folder)
        net = setup.net()
        path = folder / "model.safetensors"
        load_weights_(net, path, unused=("lm_head.weight",), device=device)
        net.visual.to(device, dtype)
        net.model.to(device, dtype)
        net.rm_head.to(device, kind.head_dtype or dtype)
        return Judge(kind, net, setup.script, setup.pixels)

    @staticmethod
    def on_graphs(
        kind: Kind,
        device: str | torch.device,
        folder: Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> Judge:
        """From the same folder (None: random weights) and exported graphs: of the weights, only the embedding is read."""
        setup, limits = Setup.read(kind, folder), Limits.read(constants)
        path = folder and folder / "model.safetensors"
        embedding = fill_embedding(path, setup.config.text, device, limits.dtype)
        net = GraphNetwork(graphs, limits, setup.config, embedding)
        return Judge(kind, net, setup.script, setup.pixels)

    def look(self, frames: Tensor, prompt: str, video: bool) -> Questions:
        """frames [N, T, 3, H, W] -> what the network reads; T is even for a video, else every frame is a picture."""
        N, T, _, H, W = frames.shape
        if frames.dtype == torch.float64:
            frames = frames.float()
        form = PatchFormat(*self.pixels.size(H, W), video, self.dtype)
        patches = reward_patches(frames.to(self.device).reshape(N * T, 3, H, W), form)
        grid = form.height // PATCH, form.width // PATCH
        return Questions(patches.view(N, -1, grid[0] * grid[1], patches.shape[1]), grid, self.words(prompt))  # fmt: skip

    def ask(self, questions: Questions, rows_per_forward: int) -> Tensor:
        """The head's outputs [N, R, O] float32, at most ``rows_per_forward`` rows at a time (0: all at once)."""
        if questions.kin is not None:
            patches, grid, words = questions.patches[:, 0], questions.grid, questions.words
            return answer_kin(self.net, patches, grid, words, questions.kin, rows_per_forward).float()  # fmt: skip
        parts = []
        for rows in row_ranges(len(questions.patches), rows_per_forward):
            some = questions.rows(rows)
            parts.append(answer(self.net, some.patches, some.grid, some.words).float())
        return torch.cat(parts)

    def flops(self, pictures: int, height: int, width: int, prompt: str = "") -> int:
        """Of one row that sees ``pictures`` pictures made of frames of this size; the head's few are not counted."""
        tall, wide = self.pixels.size(height, width)
        ids = self.script.ids(prompt)
        return self.config.flops(ids.tokens, pictures, tall * wide // PATCH**2, ids.back)

    def flops_together(
        self, kin: Kin, height: int, width: int, rows_per_forward: int, prompt: str = ""
    ) -> int:
        """Of all rows of kin, as ``ask`` takes them."""
        tall, wide = self.pixels.size(height, width)
        patches, ids = tall * wide // PATCH**2, self.script.ids(prompt)
        return flops_kin(self.config, kin, patches, ids, rows_per_forward)

    def _words(self, prompt: str) -> Words:
        ids = self.script.ids(prompt)
        parts = ids.before, ids.after, ids.at
        return Words(*(upload(part, torch.int64, self.device) for part in parts))


def check_clip(clip: Clip) -> Tensor:
    """The clip's frames. ValueError unless they are [B, T, 3, H, W] with at least one clip and one frame."""
    frames = clip.frames
    if frames.ndim != 5 or frames.shape[2] != 3 or 0 in frames.shape:
        raise ValueError(f"clip.frames: want [B, T, 3, H, W], none of them 0, got {list(frames.shape)}")  # fmt: skip
    return frames


def spoil_(scores: Tensor, frames: Tensor) -> None:
    """Make scores [B, ...] NaN where the clip has a pixel that is not finite; pictures are bytes and would hide it."""
    doubt = frames.sum((1, 2, 3, 4), dtype=torch.float32).mul(0).to(scores.device)  # 0 or NaN
    scores += doubt.view(-1, *[1] * (scores.ndim - 1))
