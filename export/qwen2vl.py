"""How a Qwen2-VL reward is exported: a graph that looks at pictures of one size, a graph that reads and rates.

    vision    patches [N, P, 1176] -> tokens [N, P / 4, E]
    language  x [N, S, E], at [R]  -> out [N, R, O], S one of a few bucket lengths

Rotary tables are constants. The embedding stays with torch, so a sequence is put together by the runtime as it is without
graphs. Buckets: for every number of pictures a clip can have, the rubric with a short and with a usual prompt; for the
largest number, the longest prompt too; each rounded up to a multiple of 64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runtime.backends import weights_hash, weights_path
from runtime.export.pieces import Piece, Plan, Wanted, port
from runtime.exported import RANDOM
from runtime.kernels.reward_patches import PATCH
from runtime.rewards import hpsv3 as hpsv3_reward
from runtime.rewards import load_reward
from runtime.rewards import videoalign as videoalign_reward
from runtime.rewards.qwen2vl import Qwen2VL
from runtime.rewards.qwen2vl_judge import Judge
from runtime.rewards.qwen2vl_rotary import MERGE, Turn, patch_turns, token_turns
from runtime.rewards.qwen2vl_text import ReadOut
from runtime.rewards.qwen2vl_vision import PATCH_VALUES
from runtime.rewards.qwen2vl_words import Script
from runtime.types import Clip

FRAME_SIZE = (480, 832)
CLIP_FRAMES, FPS = 117, 16  # ten chunks
SHORT_WORDS, USUAL_WORDS = 32, 96  # of prompts
BUCKET_STEP = 64  # tokens
PROMPTS = ("a red circle", "a red circle moving right " * 12, "word " * 80)


class Vision(nn.Module):
    """The vision tower for pictures of one size."""

    def __init__(self, net: Qwen2VL, grid: tuple[int, int]) -> None:
        super().__init__()
        self.tower, self.grid = net.visual, grid
        # Made and kept before anything is traced: a table that is born in a trace is no table afterwards.
        patch_turns(*grid, net.visual.config.head_dim, net.device)

    def forward(self, patches: Tensor) -> Tensor:
        return self.tower(patches, self.grid)


class Language(nn.Module):
    """The decoder and the head for sequences of up to ``longest`` tokens; ``Decoder.forward`` with its tables as buffers."""

    cos: Tensor
    sin: Tensor
    places: Tensor

    def __init__(self, net: Qwen2VL, longest: int) -> None:
        super().__init__()
        self.layers, self.norm, self.head = net.model.layers, net.model.norm, net.rm_head
        self.head_dtype = next(net.rm_head.parameters()).dtype
        config = net.config.text
        turn = token_turns(longest, config.head_dim, config.rope_theta, net.dtype, net.device)
        tables = {"cos": turn.cos, "sin": turn.sin, "places": torch.arange(longest)}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        length = x.shape[1]
        turn = Turn(self.cos[:length], self.sin[:length])
        out = ReadOut(at, self.places[:length] <= at[:, None])
        *first, last = self.layers
        for layer in first:
            x, _ = layer(x, turn)
        x, _ = last(x, turn, out=out)
        return self.head(self.norm(x).to(self.head_dtype))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What fixes the shapes of a reward's graphs."""

    grid: tuple[int, int]
    pictures: Sequence[int]  # that a row can have, rising
    rows: int  # at once
    buckets: tuple[int, ...]

    @property
    def most_pictures(self) -> int:
        """At once."""
        return self.rows * self.pictures[-1]


def hpsv3(wanted: Wanted) -> Plan:
    """Every frame a row with one picture."""
    if wanted.frames:
        raise ValueError("--frames: hpsv3 sees single frames, whatever their number; drop it")
    return _plan(wanted, hpsv3_reward, (1,))


def videoalign(wanted: Wanted) -> Plan:
    """Every clip a row, two sampled frames a picture."""
    sampled = videoalign_reward.sampled_frames(wanted.frames or CLIP_FRAMES, FPS)
    least = videoalign_reward.LEAST_SAMPLES // 2
    return _plan(wanted, videoalign_reward, tuple(range(min(least, len(sampled) // 2), len(sampled) // 2 + 1)))  # fmt: skip


def bucket_lengths(script: Script, visual: Sequence[int], longest_words: int) -> tuple[int, ...]:
    """Lengths to pad to, for rows with that many visual tokens: see the head of this file."""
    spoken = {words: script.ids("word " * words).tokens for words in (SHORT_WORDS, USUAL_WORDS, longest_words)}  # fmt: skip
    tight = {tokens + spoken[min(words, longest_words)] for tokens in visual for words in (SHORT_WORDS, USUAL_WORDS)}  # fmt: skip
    lengths = tight | {visual[-1] + spoken[longest_words]}
    return tuple(sorted({-(-length // BUCKET_STEP) * BUCKET_STEP for length in lengths}))


def _plan(wanted: Wanted, module: Any, pictures: tuple[int, ...]) -> Plan:
    reward = load_reward(wanted.reward, "cpu", wanted.weights, torch.float32 if wanted.weights != RANDOM else wanted.base)  # fmt: skip
    judge: Judge = reward.judge  # type: ignore[attr-defined]
    tall, wide = judge.pixels.size(*(wanted.frame_size or FRAME_SIZE))
    grid = tall // PATCH, wide // PATCH
    visual = [count * grid[0] * grid[1] // MERGE**2 for count in pictures]
    buckets = bucket_lengths(judge.script, visual, wanted.prompt_words)
    sizes = Sizes(grid, pictures, module.ROWS_PER_FORWARD, buckets)
    net = _cast(judge, wanted.base)
    folder = weights_path(wanted.reward, wanted.weights)
    constants = {
        "dtype": str(wanted.base).removeprefix("torch."),
        "grid": list(grid),
        "buckets": list(buckets),
        "pictures": sizes.most_pictures,
        "rows": sizes.rows,
    }
    kind = type(reward)
    return Plan(
        reward=reward,
        pieces={
            "vision": _vision(net, sizes),
            "language": _language(net, sizes, len(judge.kind.marks)),
        },  # fmt: skip
        on_graphs=lambda graphs: kind.on_graphs("cpu", folder, graphs, constants),  # type: ignore[attr-defined]
        clips=lambda: _clips(wanted, pictures[-1]),
        weights_sha256=weights_hash(wanted.reward, wanted.weights),
        constants=constants,
        rounded=("tower.blocks.", "layers."),
    )


def _cast(judge: Judge, dtype: torch.dtype) -> Qwen2VL:
    """The network with its weights in ``dtype``, the head's in its own; the network itself where that is no change."""
    net = judge.net
    assert isinstance(net, Qwen2VL)
    if net.dtype == dtype:
        return net
    narrow = copy.deepcopy(net)
    narrow.visual.to(dtype)
    narrow.model.to(dtype)
    narrow.rm_head.to(judge.kind.head_dtype or dtype)
    return narrow


def _vision(net: Qwen2VL, sizes: Sizes) -> Piece:
    patches, width = sizes.grid[0] * sizes.grid[1], net.config.text.hidden_size
    most = sizes.most_pictures
    return Piece(
        module=Vision(net, sizes.grid).eval(),
        inputs={"patches": port(net.dtype, "pictures", patches, PATCH_VALUES)},
        outputs={"tokens": port(net.dtype, "pictures", patches // MERGE**2, width)},
        axes={"pictures": (1, most)},
        profiles=[{"patches": _ranged(1, most, patches, PATCH_VALUES)}],
    )


def _language(net: Qwen2VL, sizes: Sizes, marks: int) -> Piece:
    module = Language(net, sizes.buckets[-1]).eval()
    width, least, longest = net.config.text.hidden_size, sizes.buckets[0], sizes.buckets[-1]
    # One length is a constant: nothing about it is decided on the device.
    tokens: int | str = "tokens" if least < longest else longest
    outputs = module.head(torch.zeros(1, width, dtype=module.head_dtype)).shape[-1]
    return Piece(
        module=module,
        inputs={"x": port(net.dtype, "rows", tokens, width), "at": port(torch.int64, marks)},
        outputs={"out": port(module.head_dtype, "rows", marks, outputs)},
        axes={"rows": (1, sizes.rows)} | ({"tokens": (least, longest)} if least < longest else {}),
        profiles=[
            {"x": _ranged(1, sizes.rows, bucket, width), "at": ((marks,),) * 3}
            for bucket in sizes.buckets
        ],
    )


def _ranged(least: int, most: int, *rest: int) -> Any:
    """From ``least`` rows to ``most``, best at ``most``."""
    return (least, *rest), (most, *rest), (most, *rest)


def _clips(wanted: Wanted, pictures: int) -> list[Clip]:
    """Of the frame size that the graphs are made for, with as few frames as there can be and more, and prompts of several lengths."""
    source = torch.Generator().manual_seed(1)
    height, width = wanted.frame_size or FRAME_SIZE
    most = wanted.frames or (CLIP_FRAMES if pictures > 1 else 2)
    shapes = ((1, max(most // 8, 2)), (2, max(most // 2, 2)), (3, most))
    return [
        Clip(
            torch.rand(batch, frames, 3, height, width, generator=source),
            " ".join(prompt.split()[: wanted.prompt_words]),
            FPS,
            0,
        )
        for (batch, frames), prompt in zip(shapes, PROMPTS, strict=True)
    ]
