"""Rates single frames with a network that sees squares of pixels: what ImageReward, MPS and CLIP have in common.

    byte   = q(255 u(x))                        as a video file holds it: kernels/frame_pack.py; bytes enter as they are
    square = antialiased bicubic of the bytes to the shorter side, rounded to bytes, then its middle: kernels/bicubic.py
    pixel  = (byte / 255 - mean) / std          in float32, rounded once to the network's dtype

The bytes are those of Pillow; what the published code does with them afterwards it does in float32 too.

Legend: B clips, T frames of a clip, N pictures, S side of a square, L tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.kernels.bicubic import resize_reference
from runtime.kernels.frame_pack import quantise_reference
from runtime.kernels.philox import upload
from runtime.kernels.reward_patches import CLIP_MEAN, CLIP_STD
from runtime.rewards.fixed_words import TokenRow
from runtime.rewards.graphs import PictureLimits, WholeNetwork
from runtime.rewards.qwen2vl_judge import check_clip, spoil_
from runtime.types import Clip, Compiled, row_ranges

PROMPTS_KEPT = 16  # what a network makes of a prompt stays on the device for all its chunks
ROWS_PER_FORWARD = 32  # pictures, of 197 or 257 tokens each
RESIZED_AT_ONCE = 16  # pictures; a frame of 832 x 480 is 4.8 MB while it is resized
HIDDEN = -1e4  # added to what attention would give a token; its weight is 0 in any dtype

# Pixels [N, 3, S, S] and what was read of a prompt -> scores [N] float32; reads the device alone, so a graph can capture it.
PictureNet = Callable[..., Tensor]
Kind = TypeVar("Kind", bound="PictureReward")


class Reader(Protocol):
    """What a picture network makes of a prompt, once for all its pictures. Also an ``nn.Module``: the network, or its part."""

    side: int  # of its squares, pixels
    inputs: tuple[
        str, ...
    ]  # of the network, as its graph calls them: pixels, and what ``read`` returns

    def read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Token ids and what is not padding, [L] int64 each -> whatever the network wants to know of the prompt."""
        ...

    def flops(self, text_tokens: int) -> int:
        """Of one picture; what is made once per prompt is not counted."""
        ...


class Script(Protocol):
    """Turns a prompt into rows of one length."""

    def ids(self, prompt: str) -> TokenRow: ...


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything a forward pass reads, on the model's device: prepared once, asked as often as one likes."""

    pixels: Tensor  # [N, 3, S, S]
    words: tuple[Tensor, ...]


def embedded_patches(pixels: Tensor, conv: nn.Conv2d) -> Tensor:
    """pixels [N, 3, S, S] -> [N, P, E]: ``conv``, whose steps are as wide as its patches, as one product.

    ONNX's convolution of the opset that all runtimes read has no bfloat16.
    """
    patch = conv.kernel_size[0]
    count = pixels.shape[-1] // patch
    whole = pixels[..., : count * patch, : count * patch]
    parts = whole.unflatten(3, (count, patch)).unflatten(2, (count, patch))
    rows = parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [N, P, 3 patch^2]
    return F.linear(rows, conv.weight.flatten(1), conv.bias)


def hidden(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Which tokens attention may see, [L] bool -> what it adds to their scores, [1, 1, 1, L]. One at least must be seen."""
    return torch.zeros_like(kept, dtype=dtype).masked_fill_(~kept, HIDDEN).view(1, 1, 1, -1)


def middle(length: int, side: int, halves: str) -> int:
    """Where a crop of ``side`` pixels begins. ``halves``: half a pixel goes "down", or to the "even" number."""
    return (length - side) // 2 if halves == "down" else round((length - side) / 2)


def squares(frames: Tensor, side: int, dtype: torch.dtype, halves: str = "even") -> Tensor:
    """frames [N, 3, H, W] in [0, 1], or bytes -> [N, 3, side, side] as CLIP's preprocessing makes them, same device."""
    parts = []
    for rows in row_ranges(len(frames), RESIZED_AT_ONCE):
        some = frames[rows.start : rows.stop]
        if some.dtype == torch.float64:
            some = some.float()
        some = some if some.dtype == torch.uint8 else quantise_reference(some)
        H, W = some.shape[-2:]
        short = min(H, W)
        tall, wide = (int(side * length / short) for length in (H, W))
        some = resize_reference(some, tall, wide)
        top, left = middle(tall, side, halves), middle(wide, side, halves)
        some = some[..., top : top + side, left : left + side].float() / 255
        colours = zip(some.unbind(1), CLIP_MEAN, CLIP_STD, strict=True)
        parts.append(torch.stack([(x - mean) / std for x, mean, std in colours], 1).to(dtype))
    return torch.cat(parts)


class PictureReward:
    """Mean over a chunk's frames of a network's score; an image reward, so it looks at the newest chunk only."""

    horizon = 1
    halves = "even"  # of a crop: as torchvision rounds; transformers goes "down"

    def __init__(
        self,
        reader: Any,
        script: Script,
        rows_per_forward: int = ROWS_PER_FORWARD,
        net: PictureNet | None = None,
    ) -> None:
        """``reader`` is the whole network, unless there is a ``net`` beside it."""
        self.reader: Any = reader.eval().requires_grad_(False)
        self.net: PictureNet = net or reader  # another that computes the same may take its place
        self.script, self.rows_per_forward = script, rows_per_forward
        self.words = functools.lru_cache(maxsize=PROMPTS_KEPT)(self._words)
        weights = list(reader.parameters())
        self.nbytes = sum(value.numel() * value.element_size() for value in weights)
        # The first is a tower's: heads may be wider.
        self.device, self.dtype = weights[0].device, weights[0].dtype

    @classmethod
    def _whole(
        cls: type[Kind],
        reader: Any,
        script: Script,
        graphs: Mapping[str, Compiled],
        limits: PictureLimits,
    ) -> Kind:
        """On the exported graph, with what ``reader`` needs of the weights."""
        # The next pictures are rated before these scores are read.
        net = WholeNetwork(graphs["whole"], lambda scores: scores.clone(), reader.inputs)
        return cls(reader, script, limits.pictures, net)

    def flops(self, frames: int, height: int, width: int, fps: int, prompt: str = "") -> int:
        """Of one clip, whatever its size and speed; the prompt is read once and not counted."""
        return frames * self.reader.flops(len(self.script.ids(prompt).ids))

    @torch.no_grad()
    def prepare(self, clip: Clip) -> Sight:
        """Every frame of every clip as a row of its own."""
        frames = check_clip(clip).flatten(0, 1).to(self.device)
        pixels = squares(frames, self.reader.side, self.dtype, self.halves)
        return Sight(pixels, self.words(clip.prompt))

    @torch.no_grad()
    def forward(self, sight: Sight) -> Tensor:
        """The score of every row, [B * T] fp32."""
        parts = [
            self.net(sight.pixels[rows.start : rows.stop], *sight.words)
            for rows in row_ranges(len(sight.pixels), self.rows_per_forward)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def score(self, clip: Clip) -> Tensor:
        """[B] fp32, higher is better; NaN for a clip with a pixel that is not finite."""
        scores = self.forward(self.prepare(clip)).view(len(clip.frames), -1).mean(1)
        spoil_(scores, clip.frames)
        return scores

    @torch.no_grad()
    def _words(self, prompt: str) -> tuple[Tensor, ...]:
        row = self.script.ids(prompt)
        ids, mask = (upload(part, torch.int64, self.device) for part in (row.ids, row.mask))
        return self.reader.read(ids, mask)
