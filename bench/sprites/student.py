"""The network that training drives: text encoder and DiT together, and the attention that forces it to see what it will see.

A row is a whole clip of N chunks laid out twice, [clean 0 .. N-1 | noisy 0 .. N-1]. Every chunk, clean or noisy, sees itself
and its history's clean chunks: the sink, the window and, now and then, an old chunk that a search would have appended.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from runtime.bench.sprites.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SPEEDS
from runtime.generators.text import TextConfig, build_encoder
from runtime.generators.wan import DiTConfig, TextContext, WanDiT
from runtime.generators.wan_layers import dense_attention

CHUNK, WINDOW = 3, 2  # latent frames a chunk, chunks of history in the window
TEXT_LEN = 16
DIT = DiTConfig(
    dim=192,
    heads=6,
    layers=6,
    ffn_dim=768,
    freq_dim=128,
    text_dim=64,
    text_len=TEXT_LEN,
    channels=12,
)
TEXT = TextConfig(vocab_size=64, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
EXTRA_SINK = 0.2  # chance that an old chunk is visible as a second sink
SLOTS = 2 + WINDOW  # earlier chunks that a chunk can see


def vocabulary() -> list[str]:
    """Every word of the world's captions, sorted, plus a few that people add."""
    phrases = [
        *SHAPES,
        *COLOURS,
        *BACKGROUNDS,
        *SPEEDS,
        *MOTIONS,
        "a",
        "an",
        "the",
        "on",
        "background",
    ]
    return sorted({word for phrase in phrases for word in phrase.split()})


def history_slots(rows: int, chunks: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Which earlier chunks each chunk sees: ids and validity, [rows, chunks, SLOTS].

    Slot 0 is the sink (chunk 0), slot 1 now and then an old chunk that a search would have appended as a sink, the rest
    the window. Invalid slots point at chunk 0 and are masked.
    """
    ids = torch.zeros(rows, chunks, SLOTS, dtype=torch.long)
    valid = torch.zeros(rows, chunks, SLOTS, dtype=torch.bool)
    for n in range(1, chunks):
        valid[:, n, 0] = True
        for back in range(1, WINDOW + 1):
            if n - back >= 1:
                ids[:, n, 1 + back], valid[:, n, 1 + back] = n - back, True
        for row in range(rows):
            if n - WINDOW - 1 >= 1 and rng.random() < EXTRA_SINK:
                ids[row, n, 1], valid[row, n, 1] = rng.randint(1, n - WINDOW - 1), True
    return ids, valid


class ForcedAttention:
    """Self attention over [clean | noisy]: every chunk sees itself and its history's clean chunks, nothing else.

    The callable that ``WanDiT.forward`` takes. Keys are gathered per chunk, so the cost is that of inference.
    """

    def __init__(self, ids: Tensor, valid: Tensor, tokens: int) -> None:
        self.ids, self.tokens = ids, tokens  # tokens of a chunk
        own = valid.new_ones(*valid.shape[:2], 1)
        mask = torch.cat([valid, own], dim=-1).repeat_interleave(
            tokens, -1
        )  # [B, N, (SLOTS + 1) * t]
        self.mask = torch.cat([mask, mask], dim=1).flatten(0, 1)[:, None, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, chunks, _ = self.ids.shape
        q, k, v = (t.unflatten(1, (2 * chunks, self.tokens)) for t in (q, k, v))  # [B, 2N, t, H, D]
        keys, values = (self._with_history(t) for t in (k, v))
        out = dense_attention(q.flatten(0, 1), keys, values, self.mask)
        return out.unflatten(0, (rows, 2 * chunks)).flatten(1, 2)

    def _with_history(self, x: Tensor) -> Tensor:
        """[B, 2N, t, H, D] -> [B * 2N, (SLOTS + 1) * t, H, D]: the clean chunks that each chunk sees, then itself."""
        rows, chunks, slots = self.ids.shape
        row = torch.arange(rows, device=x.device)[:, None, None]
        past = x[row, self.ids].flatten(2, 3)  # [B, N, SLOTS * t, H, D]
        return torch.cat([torch.cat([past, past], dim=1), x], dim=2).flatten(0, 1)


class Student(nn.Module):
    """Text encoder and DiT trained together; the state dict splits by prefix into the two shipped files."""

    def __init__(self) -> None:
        super().__init__()
        self.text = build_encoder(TEXT)
        self.dit = WanDiT(DIT)
        nn.init.zeros_(self.dit.head.head.weight)
        for block in self.dit.blocks:
            nn.init.zeros_(block.self_attn.o.weight)
            nn.init.zeros_(block.cross_attn.o.weight)
        with torch.no_grad():
            for block in self.dit.blocks:  # residual branches open at 1, scales and shifts at 0
                block.modulation.zero_()
                block.modulation[:, [2, 5]] = 1.0
            self.dit.head.modulation.zero_()
            self.dit.time_projection[1].weight.mul_(0.1)

    def context(self, ids: Tensor, mask: Tensor) -> TextContext:
        embeds = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.dit.text_context(embeds * mask[..., None])

    def forward(
        self, ids: Tensor, mask: Tensor, x: Tensor, timestep: Tensor, frames: Tensor, slots: tuple
    ):
        context = self.context(ids, mask)
        height, width = x.shape[-2:]
        attend = ForcedAttention(*slots, CHUNK * height * width // 4)
        return self.dit(x, timestep, context, self.dit.rope(frames, height, width), attend)
