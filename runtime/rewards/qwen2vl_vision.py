"""Turns patches into visual tokens: Qwen2-VL's vision tower for pictures that all have one size.

    x = patches W;  each block: x += attention(norm x), x += mlp(norm x);  tokens = mlp(norm x, 2 x 2 patches side by side)

One size per call makes attention a plain batch over pictures, the rotary tables constants, and the whole tower a graph
without a decision on the device. A picture is one image or two neighbouring frames of a video; pictures see only themselves.

Legend: N pictures, P patches of one, E width of the tower, H heads, D head dim.
Source  Wang et al., "Qwen2-VL", 2024; parameter names and norms as in the checkpoints of the transformers library.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.qwen2vl_rotary import MERGE, Turn, patch_turns, rotate

PATCH_SHAPE = (3, 2, 14, 14)  # colours, frames, rows, columns
PATCH_VALUES = 3 * 2 * 14 * 14
EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower, under the names of its published configuration."""

    depth: int = 32
    embed_dim: int = 1280
    num_heads: int = 16
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"vision_config.{name}: want a whole number of at least 1, got {value!r}"
                )
        if self.embed_dim % (4 * self.num_heads):
            raise ValueError(
                f"vision_config.embed_dim: want a multiple of 4 x {self.num_heads} heads, got {self.embed_dim}"
            )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def flops(self, patches: int, out: int) -> int:
        """Of one picture: two for every multiplication of its matrices and of attention."""
        wide, tokens = self.embed_dim, patches // MERGE**2
        block = 2 * patches * wide * wide * (4 + 2 * self.mlp_ratio) + 4 * patches**2 * wide
        merged = MERGE**2 * wide
        return (
            2 * patches * PATCH_VALUES * wide
            + self.depth * block
            + 2 * tokens * merged * (merged + out)
        )


class PatchProjection(nn.Module):
    """A convolution whose stride is its size, as the matrix product that it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, *PATCH_SHAPE))  # as published

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.weight.flatten(1))


class PatchEmbed(nn.Module):
    """Patches of 1,176 values to the width of the tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = PatchProjection(width)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class VisionAttention(nn.Module):
    """Every patch of a picture attends to every patch of it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, turn: Turn) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [N, P, 3, H, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, H, P, D]
        seen = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v)
        return self.proj(seen.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Two layers around x * sigmoid(1.702 x)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_ratio * config.embed_dim)
        self.fc2 = nn.Linear(config.mlp_ratio * config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        # In place, for these are the largest tensors of the tower.
        x = self.fc1(x)
        return self.fc2(x.mul_((1.702 * x).sigmoid_()))


class VisionBlock(nn.Module):
    """Attention and MLP, each added to what it read."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, EPS)
        self.norm2 = nn.LayerNorm(config.embed_dim, EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, turn: Turn) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nn.Module):
    """Four neighbouring patches become one token of the language model."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        merged = MERGE**2 * width
        self.ln_q = nn.LayerNorm(width, EPS)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, out))

    def forward(self, x: Tensor) -> Tensor:
        N, P, E = x.shape
        return self.mlp(self.ln_q(x).reshape(N, P // MERGE**2, MERGE**2 * E))


class VisionTower(nn.Module):
    """Pictures of one size to visual tokens."""

    def __init__(self, config: VisionConfig, out: int) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.embed_dim)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config.embed_dim, out)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """patches [N, P, 1176] of pictures with ``grid`` rows and columns of patches -> tokens [N, P / 4, out]."""
        turn = patch_turns(*grid, self.config.head_dim, patches.device)
        x = self.patch_embed(patches)
        for block in self.blocks:
            x = block(x, turn)
        return self.merger(x)
