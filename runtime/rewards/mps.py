"""Rates single frames against the prompt under a condition: MPS, a CLIP ViT-H-14 whose picture reads the prompt.

    fit_j  = max over tokens c of the condition of (text_j . condition_c)
    kept   = tokens j of the prompt with fit_j / max fit > threshold
    read   = four layers over the picture's tokens: cross attention to the kept tokens, then self attention
    score  = mean over frames of exp(logit_scale) cos(end of the text, first token of read)

The condition is a list of words in condition.txt beside the weights: the authors' own for overall preference, or another.

Source  Zhang et al., "Learning Multi-dimensional Human Preference for Text-to-Image Generation", 2024. Structure, sizes and
        the threshold 0.3 are those of the evaluation that the authors published for ImageReward's test set; the ``forward``
        inside their pickled module keeps tokens above 0.01 instead, so config.json may set ``mask_threshold``. The layers
        are PaLM's: one key and value for all heads, SwiGLU beside the attention, norms without bias.
Legend: N pictures, S tokens of one, L tokens of the text, E width, H heads, D = 64 head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.kernels.philox import upload
from runtime.rewards.clip import ClipConfig, ClipText, ClipTowers
from runtime.rewards.clip_h import read_setup, scaled_direction
from runtime.rewards.graphs import PictureLimits, fill_part_
from runtime.rewards.pictures import PictureReward, Script, hidden
from runtime.rewards.qwen2vl_rotary import Turn, rotate, token_turns
from runtime.types import Compiled
from runtime.weights import fill_random_, load_weights_, read_config

LAYERS, HEADS, HEAD_DIM, WIDER = 4, 16, 64, 4  # of the published cross model
THRESHOLD = 0.3
THETA = 10_000.0
MAX_CONDITION_BYTES = 1 << 12
RANDOM_CONDITION = "shape, light, hands"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossConfig:
    """Sizes of the layers that read the text, and which of its tokens they see."""

    layers: int = LAYERS
    heads: int = HEADS
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        for name in ("layers", "heads"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 256:
                raise ValueError(f"cross_{name}: want a whole number of 1 to 256, got {value!r}")
        if not (isinstance(self.threshold, float) and 0.0 <= self.threshold < 1.0):
            raise ValueError(f"mask_threshold: want a number in [0, 1), got {self.threshold!r}")


class Scale(nn.Module):
    """A layer norm without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight)


class Gated(nn.Module):
    """First half times SiLU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, -1)
        return F.silu(gate) * x


class Residual(nn.Module):
    """Named as published."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *rest: Tensor | Turn) -> Tensor:
        return x + self.fn(x, *rest)


def shared_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q [N, H, S, D], k and v [N or 1, 1, L, D] that all heads share -> [N, S, H D]."""
    k, v = (x.expand(*q.shape[:2], -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """The picture's tokens read the text's; SwiGLU beside it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Scale(width)
        self.to_q = nn.Linear(width, heads * HEAD_DIM, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD_DIM, bias=False)
        self.to_out = nn.Linear(heads * HEAD_DIM, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * WIDER * width, bias=False),
            Gated(),
            nn.Linear(WIDER * width, width, bias=False),
        )

    def forward(self, x: Tensor, text: Tensor, mask: Tensor, turn: Turn) -> Tensor:
        x = self.norm(x)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(text)[:, None].chunk(2, -1)  # each [1, 1, L, D]
        return self.to_out(shared_attention(q, k, v, mask)) + self.ff(x)


class ParallelBlock(nn.Module):
    """Self attention with rotary positions; SwiGLU beside it, out of the same product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.sizes = (heads * HEAD_DIM, HEAD_DIM, HEAD_DIM, 2 * WIDER * width)
        self.norm = Scale(width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.sizes), bias=False)
        self.attn_out = nn.Linear(heads * HEAD_DIM, width, bias=False)
        self.ff_out = nn.Sequential(Gated(), nn.Linear(WIDER * width, width, bias=False))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor, turn: Turn) -> Tensor:
        q, k, v, wide = self.fused_attn_ff_proj(self.norm(x)).split(self.sizes, -1)
        q = rotate(q.unflatten(-1, (self.heads, -1)).transpose(1, 2), turn)
        seen = shared_attention(q, rotate(k[:, None], turn), v[:, None])
        return self.attn_out(seen) + self.ff_out(wide)


class CrossModel(nn.Module):
    """The picture's tokens [N, S, E] and the text's [1, L, E] -> [N, S, E]."""

    def __init__(self, width: int, config: CrossConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    Residual(CrossAttention(width, config.heads)),
                    Residual(ParallelBlock(width, config.heads)),
                )
            )
            for _ in range(config.layers)
        )

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        turn = token_turns(x.shape[1], HEAD_DIM, THETA, x.dtype, x.device)
        for pair in self.layers:
            for layer in pair.children():
                x = layer(x, text, mask, turn)
        return x


class MPSReader(nn.Module):
    """Reads prompts for ``MPSNet``."""

    inputs = ("pixels", "tokens", "hidden", "text")

    def __init__(self, model: ClipText, cross: CrossConfig) -> None:
        super().__init__()
        self.model, self.cross, self.side = model, cross, model.side
        self.condition: Tensor | None = None  # token ids [L] on the device

    def read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ids [L] -> tokens [1, L, J], what hides those that are not kept [1, 1, 1, L], direction times scale [J] float32.

        Padding takes part, as it did when the published model was trained.
        """
        if self.condition is None:
            raise RuntimeError("MPS: set ``condition``, the token ids to compare with, first")
        tokens, ends = self.model.texts(torch.stack((ids, self.condition)))
        text, condition = tokens.float().unbind(0)
        fit = (text @ condition.T).amax(1)
        kept = fit / fit.amax() > self.cross.threshold
        return tokens[:1], hidden(kept, tokens.dtype), scaled_direction(self.model, ends[0])

    def flops(self, text_tokens: int) -> int:
        """Of one picture: two for every multiplication of its matrices and of attention."""
        vision, E, S = self.model.config.vision, self.model.config.projection_dim, 1 + self.model.config.vision.patches  # fmt: skip
        inner = self.cross.heads * HEAD_DIM
        ff = 2 * S * E * 3 * WIDER * E
        cross = (
            4 * S * E * inner + 4 * S * text_tokens * inner + ff + 4 * text_tokens * E * HEAD_DIM
        )
        own = 4 * S * E * inner + 4 * S * E * HEAD_DIM + 4 * S * S * inner + ff
        return self.model.flops() + 2 * S * vision.hidden_size * E + self.cross.layers * (cross + own)  # fmt: skip


class MPSNet(MPSReader):
    """The whole network. ``model`` and ``cross_model`` are the names in the published checkpoint."""

    model: ClipTowers

    def __init__(self, config: ClipConfig, cross: CrossConfig) -> None:
        super().__init__(ClipTowers(config), cross)
        self.cross_model = CrossModel(config.projection_dim, cross)

    def forward(self, pixels: Tensor, tokens: Tensor, hidden: Tensor, text: Tensor) -> Tensor:
        """pixels [N, 3, S, S] -> [N] float32."""
        seen = self.model.visual_projection(self.model.vision_model(pixels))
        first = self.cross_model(seen, tokens, hidden)[:, 0]
        return F.normalize(first.float(), dim=-1) @ text


class MPS(PictureReward):
    """Mean over a chunk's frames of MPS's score."""

    halves = "down"

    @classmethod
    def random(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> MPS:
        """At full size with random weights, for timing."""
        setup = Setup.read(None)
        with torch.device("meta"):
            net = MPSNet(setup.config, setup.cross)
        fill_random_(net, device, dtype)
        return setup.conditioned(cls(net, setup.script))

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> MPS:
        """From folder ``path``: model.safetensors, config.json, tokenizer.json, condition.txt. ValueError names file and key.

        config.json is that of the CLIP; it may also set mask_threshold, cross_layers and cross_heads.
        """
        setup = Setup.read(path)
        with torch.device("meta"):
            net = MPSNet(setup.config, setup.cross)
        load_weights_(net, path / "model.safetensors", device=device)
        return setup.conditioned(cls(net.to(device, dtype), setup.script))

    @classmethod
    def on_graphs(
        cls,
        device: str | torch.device,
        folder: Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> MPS:
        """From the same folder (None: random weights) and the exported graph: of the weights, the text's tower is read."""
        limits, setup = PictureLimits.read(constants), Setup.read(folder)
        with torch.device("meta"):
            model = ClipText(setup.config)
        path = folder and folder / "model.safetensors"
        fill_part_(model, path, "model.", device, limits.dtype)
        reader = MPSReader(model, setup.cross)
        return setup.conditioned(cls._whole(reader, setup.script, graphs, limits))


@dataclass(frozen=True, slots=True)
class Setup:
    """All but the weights."""

    config: ClipConfig
    cross: CrossConfig
    script: Script
    condition: str

    @staticmethod
    def read(path: Path | None) -> Setup:
        """Of folder ``path``, or of random weights."""
        config, script = read_setup(path)
        if path is None:
            return Setup(config, CrossConfig(), script, RANDOM_CONDITION)
        table = read_config(path / "config.json")
        try:
            cross = CrossConfig(
                layers=table.get("cross_layers", LAYERS),
                heads=table.get("cross_heads", HEADS),
                threshold=table.get("mask_threshold", THRESHOLD),
            )
        except ValueError as error:
            raise ValueError(f"{path / 'config.json'}: {error}") from None
        return Setup(config, cross, script, read_condition(path / "condition.txt"))

    def conditioned(self, reward: MPS) -> MPS:
        """``reward``, told what to judge by."""
        ids = self.script.ids(self.condition).ids
        reward.reader.condition = upload(ids, torch.int64, reward.device)
        return reward


def read_condition(path: Path) -> str:
    """The words in ``path``. ValueError for a file that is missing, empty, too long or no text."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; put there the words that pictures are judged by, as the authors' README lists them "
            "for overall preference"
        )
    if path.stat().st_size > MAX_CONDITION_BYTES:
        raise ValueError(f"{path}: want at most {MAX_CONDITION_BYTES} bytes, got {path.stat().st_size}")  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from None
    if not text:
        raise ValueError(f"{path}: is empty; put there the words that pictures are judged by")
    return text
