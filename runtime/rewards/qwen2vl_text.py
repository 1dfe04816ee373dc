"""Reads embedded tokens and says what it knows at some of them: the decoder of Qwen2-VL without a vocabulary head.

Only the read-out tokens leave the last layer, so that layer computes keys and values for all tokens and everything else
for those few: an exact saving. Positions count tokens on one axis; the three-axis positions of the stock model would
score differently, for the published rewards were trained without them.

Rows that begin alike may have their beginning read once: ``keys`` keeps what it leaves behind for those who go on from it.

Legend: N rows, S tokens, P tokens before them, R read-out tokens, E width, H heads, G key heads, D head dim.
Source  Wang et al., "Qwen2-VL", 2024; parameter names as in the checkpoints of the transformers library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.qwen2vl_rotary import Turn, rotate, token_turns
from runtime.types import take_rows


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

    def flops(self, tokens: int, seen: tuple[int, ...], past: int = 0) -> int:
        """Of one row of ``tokens`` behind ``past`` others that were read before, read out where it sees ``seen`` of all.

        Two for every multiplication of the layers' matrices and of attention to the tokens before; the upper triangle
        that nobody sees is not counted.
        """
        wide, narrow = self.hidden_size, self.num_key_value_heads * self.head_dim
        pairs = 2 * wide * 2 * narrow  # keys and values of a token
        rest = 2 * wide * (2 * wide + 3 * self.intermediate_size)
        seen_by_all = tokens * past + tokens * (tokens + 1) // 2
        whole = tokens * (pairs + rest) + 4 * wide * seen_by_all
        last = tokens * pairs + len(seen) * rest + 4 * wide * sum(seen)
        return (self.num_hidden_layers - 1) * whole + last


class Pairs(NamedTuple):
    """Keys and values of some tokens in one layer, each [N, G, S, D]."""

    k: Tensor
    v: Tensor

    @property
    def tokens(self) -> int:
        return self.k.shape[2]

    def rows(self, rows: Sequence[int]) -> Pairs:
        return Pairs(take_rows(self.k, rows), take_rows(self.v, rows))

    def then(self, later: Pairs) -> Pairs:
        return Pairs(torch.cat((self.k, later.k), 2), torch.cat((self.v, later.v), 2))


class ReadOut(NamedTuple):
    """Which tokens leave the decoder: their positions [R] int64, and what each may see, [R, P + S] bool."""

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

    def pairs(self, x: Tensor, turn: Turn) -> Pairs:
        """Keys and values of x [N, S, E]."""
        return Pairs(rotate(self._heads(self.k_proj(x)), turn), self._heads(self.v_proj(x)))

    def forward(self, x: Tensor, turn: Turn, pairs: Pairs, sees: Tensor | None) -> Tensor:
        """What tokens x [N, R, E], turned by ``turn``, find among those of ``pairs`` that they see: [N, R, E].

        ``sees`` None: they are the last R of them, and each sees those up to itself.
        """
        q = rotate(self._heads(self.q_proj(x)), turn)
        if sees is None:
            seen = _causal(q, pairs)
        else:
            seen = F.scaled_dot_product_attention(q, *pairs, sees, enable_gqa=True)
        return self.o_proj(seen.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def _causal(q: Tensor, pairs: Pairs) -> Tensor:
    """Attention of the last tokens q [N, H, R, D] to ``pairs`` up to themselves.

    Torch's fast kernels know this mask for as many queries as keys only, so queries of 0 stand in for the tokens before:
    a few per cent of the decoder's work, where a mask in memory would take the slow kernels.
    """
    before = pairs.tokens - q.shape[2]
    if before == 0:
        return F.scaled_dot_product_attention(q, *pairs, is_causal=True, enable_gqa=True)
    q = F.pad(q, (0, 0, before, 0))
    seen = F.scaled_dot_product_attention(q, *pairs, is_causal=True, enable_gqa=True)
    return seen[:, :, before:]


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

    def pairs(self, x: Tensor, turn: Turn, past: Pairs | None) -> Pairs:
        """Keys and values of ``past`` and of x [N, S, E]."""
        own = self.self_attn.pairs(self.input_layernorm(x), turn)
        return own if past is None else past.then(own)

    def forward(
        self, x: Tensor, turn: Turn, past: Pairs | None = None, out: ReadOut | None = None
    ) -> tuple[Tensor, Pairs]:
        """x [N, S, E] behind ``past`` -> all of it or the tokens of ``out``, one layer on; keys and values of all so far."""
        normed = self.input_layernorm(x)
        pairs = self.self_attn.pairs(normed, turn)
        if past is not None:
            pairs = past.then(pairs)
        if out is not None:
            x, normed = x.index_select(1, out.at), normed.index_select(1, out.at)
            turn = turn.rows(out.at)
        x = x + self.self_attn(normed, turn, pairs, None if out is None else out.sees)
        return x + self.mlp(self.post_attention_layernorm(x)), pairs


class Decoder(nn.Module):
    """Embedded tokens to the normalised hidden state of the last layer at the read-out tokens."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, at: Tensor, past: Sequence[Pairs] = ()) -> Tensor:
        """x [N, S, E], positions ``at`` [R] int64 in it, on x's device -> [N, R, E]. ``past`` are the ``keys`` of what
        the rows begin with; (): x is all there is."""
        before = past[0].tokens if past else 0
        turn = self._turn(before, x)
        *first, (last, its_past) = self._layers(past)
        for layer, mine in first:
            x, _ = layer(x, turn, mine)
        sees = torch.arange(before + x.shape[1], device=x.device) <= at[:, None] + before
        return self.norm(last(x, turn, its_past, ReadOut(at, sees))[0])

    def keys(self, x: Tensor, past: Sequence[Pairs] = ()) -> list[Pairs]:
        """What x [N, S, E] leaves behind in every layer for tokens that follow, ``past`` included."""
        turn = self._turn(past[0].tokens if past else 0, x)
        *first, (last, its_past) = self._layers(past)
        kept = []
        for layer, mine in first:
            x, pairs = layer(x, turn, mine)
            kept.append(pairs)
        return [*kept, last.pairs(x, turn, its_past)]

    def _layers(self, past: Sequence[Pairs]) -> list[tuple[Any, Pairs | None]]:
        """The layers, each with its part of the past."""
        pasts: Sequence[Pairs | None] = past or [None] * len(self.layers)
        return list(zip(self.layers, pasts, strict=True))

    def _turn(self, before: int, x: Tensor) -> Turn:
        """Of the tokens x behind ``before`` others."""
        config, length = self.config, before + x.shape[1]
        turn = token_turns(length, config.head_dim, config.rope_theta, x.dtype, x.device)
        return turn.after(before)
