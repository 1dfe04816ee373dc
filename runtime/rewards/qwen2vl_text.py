"""Reads embedded tokens and says what it knows at some of them: the decoder of Qwen2-VL without cache or vocabulary head.

Only the read-out tokens leave the last layer, so that layer computes keys and values for all tokens and everything else
for those few: an exact saving. Positions count tokens on one axis; the three-axis positions of the stock model would
score differently, for the published rewards were trained without them.

Legend: N rows, S tokens, R read-out tokens, E width, H heads, G key heads, D head dim.
Source  Wang et al., "Qwen2-VL", 2024; parameter names as in the checkpoints of the transformers library.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.qwen2vl_rotary import Turn, rotate, token_turns


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Sizes of the decoder, under the names of its published configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            if whole and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name}: want a whole number of at least 1, got {value!r}")
            if not whole and not (isinstance(value, (int, float)) and value > 0):
                raise ValueError(f"{field.name}: want a number above 0, got {value!r}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size: want a multiple of 2 x {self.num_attention_heads} heads, got {self.hidden_size}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads: want a divisor of {self.num_attention_heads} heads, "
                f"got {self.num_key_value_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def flops(self, tokens: int, seen: tuple[int, ...]) -> int:
        """Of one row of ``tokens``, read out where it sees ``seen`` of them: two for every multiplication of the layers'
        matrices and of attention to the tokens before. The upper triangle that nobody sees is not counted."""
        wide, narrow = self.hidden_size, self.num_key_value_heads * self.head_dim
        pairs = 2 * wide * 2 * narrow  # keys and values of a token
        rest = 2 * wide * (2 * wide + 3 * self.intermediate_size)
        whole = tokens * (pairs + rest) + 4 * wide * tokens * (tokens + 1) // 2
        last = tokens * pairs + len(seen) * rest + 4 * wide * sum(seen)
        return (self.num_hidden_layers - 1) * whole + last


@dataclass(frozen=True, slots=True)
class ReadOut:
    """Which tokens leave the decoder: their positions [R] int64, and what each may see, [R, S] bool."""

    at: Tensor
    sees: Tensor


class DecoderAttention(nn.Module):
    """Causal attention; H / G query heads share each key head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        wide, narrow = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(wide, wide)
        self.k_proj = nn.Linear(wide, narrow)
        self.v_proj = nn.Linear(wide, narrow)
        self.o_proj = nn.Linear(wide, wide, bias=False)

    def forward(self, x: Tensor, turn: Turn, out: ReadOut | None) -> Tensor:
        """x [N, S, E] -> [N, S, E], or [N, R, E] for the rows of ``out``."""
        asking = x if out is None else x.index_select(1, out.at)
        k = rotate(self._heads(self.k_proj(x)), turn)
        v = self._heads(self.v_proj(x))
        q = self._heads(self.q_proj(asking))
        q = rotate(q, turn if out is None else turn.rows(out.at))
        mask = None if out is None else out.sees
        seen = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(seen.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class DecoderMLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        wide, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(wide, inner, bias=False)
        self.up_proj = nn.Linear(wide, inner, bias=False)
        self.down_proj = nn.Linear(inner, wide, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # In place, for these are the largest tensors of the model.
        opened = F.silu(self.gate_proj(x), inplace=True)
        return self.down_proj(opened.mul_(self.up_proj(x)))


class DecoderLayer(nn.Module):
    """Attention and MLP, each added to what it read."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = DecoderAttention(config)
        self.mlp = DecoderMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, turn: Turn, out: ReadOut | None = None) -> Tensor:
        kept = x if out is None else x.index_select(1, out.at)
        x = kept + self.self_attn(self.input_layernorm(x), turn, out)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedded tokens to the normalised hidden state of the last layer at the read-out tokens."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        """x [N, S, E], positions ``at`` [R] int64 on x's device -> [N, R, E]."""
        config, length = self.config, x.shape[1]
        turn = token_turns(length, config.head_dim, config.rope_theta, x.dtype, x.device)
        out = ReadOut(at, torch.arange(length, device=x.device) <= at[:, None])
        *first, last = self.layers
        for layer in first:
            x = layer(x, turn)
        return self.norm(last(x, turn, out))
