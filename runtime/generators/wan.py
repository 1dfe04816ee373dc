"""The causal Wan DiT: noisy latents of a chunk in, flow out. Same parameter names as LongLive and Self-Forcing checkpoints.

Legend: B rows, F latent frames (3 in a chunk), C latent channels, h x w latent size, P = h * w / 4 tokens a frame,
S = F * P, E = dim, L = text_len. The module never sees a cache: what a token may attend to beyond its own chunk is the
business of the ``attend`` callable it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.generators.wan_layers import (
    Block,
    Destinations,
    KVStore,
    SelfAttention,
    sinusoid,
    wide,
)
from runtime.kernels.adaln import adaln, residual_adaln, residual_layer_norm
from runtime.kernels.rotary import Positions

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


@dataclass(frozen=True, slots=True)
class Moment:
    """What a timestep means to every layer: the vectors that shift, scale and gate, made once for all its forwards.

    ``blocks`` has six [B, F, 1, E] for each block, ``head`` two; B and F are those of the timestep, 1 for all alike.
    """

    blocks: tuple[tuple[Tensor, ...], ...]
    head: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Given:
    """What every block of one forward is given."""

    text: TextContext
    positions: Positions
    attend: SelfAttention
    destinations: Destinations | None


class Head(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def modulated(self, dtype: torch.dtype, e: Tensor) -> list[Tensor]:
        """Shift and scale per token frame: e [B, F, E] -> two [B, F, 1, E] in ``dtype``."""
        m = (self.modulation + e[:, :, None]).to(dtype)
        return list(m.unsqueeze(3).unbind(2))


class WanDiT(nn.Module):
    """The denoiser. ``forward`` predicts flow for one chunk (or, in training, for many frames at once).

    ``ops`` names the implementation of its kernels; only "torch" has gradients.
    """

    def __init__(self, config: DiTConfig, ops: str = "torch") -> None:
        super().__init__()
        c = config
        self.config = c
        self.ops = ops
        self.linears = "dense"  # what runs the blocks' products, see ``linears.py``
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

    def join_(self) -> None:
        """Prepare for running without gradients: one product for q, k and v. Call it where the weights will stay."""
        for block in self.blocks:
            block.join_()

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

    def rope(self, frames: Tensor, height: int, width: int) -> Positions:
        """Where the tokens of absolute latent frames [B or 1, F] int64 stand, at latent size height x width."""
        dtype = wide(self.patch_embedding.weight.dtype)
        return Positions(frames, height // PATCH, width // PATCH, self.config.head_dim, dtype)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | Moment,
        text: TextContext,
        rope: Positions,
        attend: SelfAttention,
        destinations: Destinations | None = None,
    ) -> Tensor:
        """Flow of x. x [B, F, C, h, w], timestep [B or 1, F or 1] or its ``moment`` -> [B, F, C, h, w] in x's dtype.

        ``destinations(layer)`` says where a layer's q, k and v are written before ``attend`` is called with them; without
        it they are fresh.
        """
        height, width = x.shape[-2:]
        tokens = self.patchify(x)
        moment = self._moment(timestep, tokens.dtype)
        modulations = [*moment.blocks, moment.head]
        y = self._run(tokens, modulations, _Given(text, rope, attend, destinations))
        return self.unpatchify(self.head.head(y), height, width)

    def remember(
        self,
        x: Tensor,
        timestep: Tensor | Moment,
        text: TextContext,
        rope: Positions,
        attend: SelfAttention,
        store: KVStore,
        destinations: Destinations | None = None,
    ) -> None:
        """Run ``forward`` only for the keys and values it makes: ``store(layer, k, v)`` gets every layer's, and what
        would come after the last layer's is not computed."""
        tokens = self.patchify(x)
        moment = self._moment(timestep, tokens.dtype)

        def attend_and_store(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store(layer, k, v)
            return attend(layer, q, k, v)

        y = self._run(tokens, moment.blocks, _Given(text, rope, attend_and_store, destinations))
        last = len(self.blocks) - 1
        into = destinations(last) if destinations else None
        _, k, v = self.blocks[last].qkv(y, rope, into, self.ops)
        store(last, k, v)

    def _run(self, x: Tensor, modulations: Sequence[Sequence[Tensor]], given: _Given) -> Tensor:
        """The blocks before the last of ``modulations``, and the norm that it modulates; x [B, S, E] -> [B, S, E].

        A norm is computed with the residual sum before it, so a block ends with the norm that the next one begins with.
        """
        y = adaln(x, modulations[0][1], modulations[0][0], self.ops)
        for index, (m, after) in enumerate(pairwise(modulations)):
            x, y = self._block(index, x, y, m, (after[1], after[0]), given)
        return y

    def _block(
        self,
        index: int,
        x: Tensor,
        y: Tensor,
        m: Sequence[Tensor],
        after: tuple[Tensor, Tensor],
        given: _Given,
    ) -> tuple[Tensor, Tensor]:
        """One block: x and its norm, and the same for the next one, modulated by scale and shift ``after``."""
        block, ops = self.blocks[index], self.ops
        into = given.destinations(index) if given.destinations else None
        q, k, v = block.qkv(y, given.positions, into, ops)
        y = block.self_attn.o(given.attend(index, q, k, v).flatten(2))
        place = x if ops != "torch" else None  # x is this forward's own; gradients want it kept
        norm = block.norm3
        x, y = residual_layer_norm(x, y, m[2], norm.weight, norm.bias, ops, into=place)
        y = block.cross(y, given.text.keys[index], given.text.values[index], ops)
        x, y = residual_adaln(x, y, None, m[4], m[3], ops, into=place)
        return residual_adaln(x, block.ffn(y), m[5], *after, ops, into=place)

    def patchify(self, x: Tensor) -> Tensor:
        """[B, F, C, h, w] -> tokens [B, S, E] in the order frame, row, column."""
        return self.patch_embedding(x.transpose(1, 2)).flatten(2).transpose(1, 2).contiguous()

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens [B, S, 4 * C] (patch row, patch column, channel) -> [B, F, C, h, w]."""
        rows, columns = height // PATCH, width // PATCH
        y = tokens.unflatten(-1, (PATCH, PATCH, self.config.channels))
        y = y.unflatten(1, (-1, rows, columns))  # [B, F, rows, columns, 2, 2, C]
        return y.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def moment(self, timestep: Tensor, dtype: torch.dtype | None = None) -> Moment:
        """The vectors of a timestep [B, F], or [1, 1] where it is the same for every row and frame."""
        dtype = dtype or self.patch_embedding.weight.dtype
        e, e0 = self.time(timestep, dtype)
        blocks = (tuple(block.modulated(dtype, e0)) for block in self.blocks)
        return Moment(tuple(blocks), tuple(self.head.modulated(dtype, e)))

    def _moment(self, timestep: Tensor | Moment, dtype: torch.dtype) -> Moment:
        return timestep if isinstance(timestep, Moment) else self.moment(timestep, dtype)

    def time(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """timestep [B, F] -> e [B, F, E] and e0 [B, F, 6, E]."""
        e = self.time_embedding(sinusoid(timestep, self.config.freq_dim, dtype))
        return e, self.time_projection(e).unflatten(-1, (6, -1))
