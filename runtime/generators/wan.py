"""The causal Wan DiT: noisy latents of a chunk in, flow out. Same parameter names as LongLive and Self-Forcing checkpoints.

Legend: B rows, F latent frames (3 in a chunk), C latent channels, h x w latent size, P = h * w / 4 tokens a frame,
S = F * P, E = dim, L = text_len. The module never sees a cache: what a token may attend to beyond its own chunk is the
business of the ``attend`` callable it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.generators.wan_layers import (
    Block,
    KVStore,
    SelfAttention,
    dense_attention,
    gate,
    modulate,
    rope_angles,
    sinusoid,
    wide,
)

PATCH = 2


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a causal Wan DiT. The defaults are Wan2.1-T2V-1.3B at any resolution."""

    dim: int = 1536
    heads: int = 12
    layers: int = 30
    ffn_dim: int = 8960
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    channels: int = 16

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ValueError(
                f"dim: want a multiple of 2 * heads ({2 * self.heads}), got {self.dim}"
            )
        if self.head_dim < 6:
            raise ValueError(
                f"head dim: want at least 6 (one rotary pair per axis), got {self.head_dim}"
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim: want an even number, got {self.freq_dim}")

    @cached_property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class TextContext:
    """Cross-attention keys and values of a prompt, per layer [B or 1, L, H, D]; made once, shared by every candidate."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class Head(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)


class WanDiT(nn.Module):
    """The denoiser. ``forward`` predicts flow for one chunk (or, in training, for many frames at once)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.patch_embedding = nn.Conv3d(
            c.channels, c.dim, (1, PATCH, PATCH), stride=(1, PATCH, PATCH)
        )
        self.text_embedding = nn.Sequential(
            nn.Linear(c.text_dim, c.dim), nn.GELU("tanh"), nn.Linear(c.dim, c.dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(c.freq_dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        self.blocks: Any = nn.ModuleList(Block(c.dim, c.heads, c.ffn_dim) for _ in range(c.layers))
        self.head = Head(c.dim, c.channels * PATCH * PATCH)

    def text_context(self, embeds: Tensor) -> TextContext:
        """Prompt embeddings [B, up to L, text_dim] -> keys and values per layer. Short prompts are zero-padded and
        the padding is not masked, as the model was trained."""
        missing = self.config.text_len - embeds.shape[1]
        if missing < 0:
            raise ValueError(
                f"prompt: want at most {self.config.text_len} tokens, got {embeds.shape[1]}"
            )
        text = self.text_embedding(F.pad(embeds, (0, 0, 0, missing)))
        pairs = [block.cross_kv(text) for block in self.blocks]
        return TextContext(tuple(k for k, _ in pairs), tuple(v for _, v in pairs))

    def rope(self, frames: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """cos and sin [B, S, D / 2] of absolute frame indices [B, F] at latent size height x width."""
        angles = rope_angles(frames, height // PATCH, width // PATCH, self.config.head_dim)
        dtype = wide(self.patch_embedding.weight.dtype)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: TextContext,
        rope: tuple[Tensor, Tensor],
        attend: SelfAttention,
    ) -> Tensor:
        """Flow of x. x [B, F, C, h, w], timestep [B, F], rope two [B, S, D / 2] -> [B, F, C, h, w] in x's dtype."""
        height, width = x.shape[-2:]
        tokens = self.patchify(x)
        e, e0 = self.time(timestep, tokens.dtype)
        for index, block in enumerate(self.blocks):
            tokens = self._block(index, block, tokens, e0, text, rope, attend)
        shift, scale = (
            (self.head.modulation + e[:, :, None]).to(tokens.dtype).unsqueeze(3).unbind(2)
        )
        return self.unpatchify(self.head.head(modulate(tokens, scale, shift)), height, width)

    def remember(
        self,
        x: Tensor,
        timestep: Tensor,
        text: TextContext,
        rope: tuple[Tensor, Tensor],
        attend: SelfAttention,
        store: KVStore,
    ) -> None:
        """Run ``forward`` only for the keys and values it makes: ``store(layer, k, v)`` gets every layer's, and what
        would come after the last layer's is not computed."""
        tokens = self.patchify(x)
        _, e0 = self.time(timestep, tokens.dtype)

        def attend_and_store(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store(layer, k, v)
            return attend(layer, q, k, v)

        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks[:-1]):
            tokens = self._block(index, block, tokens, e0, text, rope, attend_and_store)
        m0, m1, *_ = self.blocks[last].modulated(tokens, e0)
        _, k, v = self.blocks[last].qkv(modulate(tokens, m1, m0), *rope)
        store(last, k, v)

    def _block(
        self,
        index: int,
        block: Block,
        x: Tensor,
        e0: Tensor,
        text: TextContext,
        rope: tuple[Tensor, Tensor],
        attend: SelfAttention,
    ) -> Tensor:
        m0, m1, m2, m3, m4, m5 = block.modulated(x, e0)
        q, k, v = block.qkv(modulate(x, m1, m0), *rope)
        x = gate(x, block.self_attn.o(attend(index, q, k, v).flatten(2)), m2)
        a = block.cross_attn
        q = a.split(a.norm_q(a.q(block.norm3(x))))
        key, value = (t.expand(len(x), -1, -1, -1) for t in (text.keys[index], text.values[index]))
        x = x + a.o(dense_attention(q, key, value).flatten(2))
        return gate(x, block.ffn(modulate(x, m4, m3)), m5)

    def patchify(self, x: Tensor) -> Tensor:
        """[B, F, C, h, w] -> tokens [B, S, E] in the order frame, row, column."""
        return self.patch_embedding(x.transpose(1, 2)).flatten(2).transpose(1, 2)

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, S, 4 * C] (patch row, patch column, channel) -> [B, F, C, h, w]."""
        rows, columns = height // PATCH, width // PATCH
        y = tokens.unflatten(-1, (PATCH, PATCH, self.config.channels))
        y = y.unflatten(1, (-1, rows, columns))  # [B, F, rows, columns, 2, 2, C]
        return y.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """timestep [B, F] -> e [B, F, E] and e0 [B, F, 6, E]."""
        e = self.time_embedding(sinusoid(timestep, self.config.freq_dim, dtype))
        return e, self.time_projection(e).unflatten(-1, (6, -1))
