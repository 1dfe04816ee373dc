"""Looks at pictures, reads a text about them and rates them: Qwen2-VL with a reward's head in place of its vocabulary's.

    [before | visual tokens | after] -> decoder -> hidden state at the read-out tokens -> head

The pictures stand in one place of the sequence, which every row shares, so tokens are joined and nothing is scattered. The
sequence ends at the last read-out token: what a chat would add behind it cannot be seen from there.

Legend: N rows, G pictures of a row, P patches of a picture, V visual tokens of a row, R read-out tokens, O outputs, E width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from runtime.rewards.qwen2vl_rotary import MERGE
from runtime.rewards.qwen2vl_text import Decoder, DecoderConfig, Pairs
from runtime.rewards.qwen2vl_vision import VisionConfig, VisionTower


@dataclass(frozen=True, slots=True)
class Qwen2VLConfig:
    """Sizes of the decoder and of the vision tower."""

    text: DecoderConfig
    vision: VisionConfig = VisionConfig()

    @staticmethod
    def read(table: Mapping[str, Any]) -> Qwen2VLConfig:
        """From the published JSON, whose other entries are no concern of ours. ValueError names a missing or wrong one.

        Newer files keep the decoder's sizes in ``text_config`` and its theta in ``rope_parameters``; both forms are read.
        """
        text, vision = _object(table, "text_config"), _object(table, "vision_config")
        text = {**table, **text}
        text = {**_object(text, "rope_parameters"), **text}
        missing = [
            field.name
            for field in fields(DecoderConfig)
            if field.default is MISSING and field.name not in text
        ]
        if missing:
            raise ValueError(f"missing {', '.join(missing)}")
        return Qwen2VLConfig(
            DecoderConfig(**_known(DecoderConfig, text)),
            VisionConfig(**_known(VisionConfig, vision)),
        )

    def flops(self, text_tokens: int, pictures: int, patches: int, back: tuple[int, ...]) -> int:
        """Of one row with ``pictures`` of ``patches`` each, read out ``back`` tokens before its last; without the head."""
        length = text_tokens + pictures * patches // MERGE**2
        look = pictures * self.vision.flops(patches, self.text.hidden_size)
        return look + self.text.flops(length, tuple(length - steps for steps in back))


def _object(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = table.get(name) or {}
    if not isinstance(part, Mapping):
        raise ValueError(f"{name}: want an object, got {type(part).__name__}")
    return part


def _known(kind: type, table: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: table[field.name] for field in fields(kind) if field.name in table}


QWEN2VL_7B = Qwen2VLConfig(
    DecoderConfig(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=151_658,  # one read-out token more than the stock vocabulary in use
    )
)
QWEN2VL_2B = Qwen2VLConfig(
    DecoderConfig(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151_660,  # three
    )
)


@dataclass(frozen=True, slots=True)
class Words:
    """Token ids around the pictures and the read-out positions, int64 on the model's device."""

    before: Tensor  # [b]
    after: Tensor  # [a], the last of them a read-out token
    at: Tensor  # [R] positions in ``after``


class Network(Protocol):
    """The three pieces of the network: as one module, or as exported graphs."""

    def look(self, patches: Tensor, grid: tuple[int, int]) -> Tensor: ...

    def embed(self, ids: Tensor) -> Tensor: ...

    def read(self, x: Tensor, at: Tensor) -> Tensor: ...


class Part(NamedTuple):
    """The next piece of rows that go on from rows of the part before, some of them from the same."""

    x: Tensor  # [N, S, E]
    parents: tuple[
        int, ...
    ]  # of each row, the row of the part before; of no consequence to the first part


@runtime_checkable
class Branching(Protocol):
    """A network that reads once what rows have in common. Not every one can: a graph's rows begin at the beginning."""

    def read_parts(self, parts: Sequence[Part], at: Tensor) -> Tensor:
        """What ``Network.read`` says of the last part's rows with all before them; positions ``at`` [R] in that part."""
        ...


class Qwen2VL(nn.Module):
    """The whole network. ``visual``, ``model`` and ``rm_head`` are the names in published checkpoints."""

    def __init__(self, config: Qwen2VLConfig, head: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision, config.text.hidden_size)
        self.model = Decoder(config.text)
        self.rm_head = head

    @property
    def dtype(self) -> torch.dtype:
        return self.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    def forward(self, patches: Tensor, grid: tuple[int, int], words: Words) -> Tensor:
        """patches [N, G, P, 1176], ``grid`` rows and columns of patches -> [N, R, O] in the head's dtype."""
        return answer(self, patches, grid, words)

    def look(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pictures [N, P, 1176] -> visual tokens [N, P / 4, E]."""
        return self.visual(patches, grid)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [S] -> [S, E]."""
        return self.model.embed_tokens(ids)

    def read(self, x: Tensor, at: Tensor) -> Tensor:
        """Embedded sequences [N, S, E], read-out positions [R] -> [N, R, O] in the head's dtype."""
        return self._rate(self.model(x, at))

    def read_parts(self, parts: Sequence[Part], at: Tensor) -> Tensor:
        """See ``Branching``: [N, R, O] for the N rows of the last part."""
        *shared, last = parts
        past: list[Pairs] = []
        for part in shared:
            past = self.model.keys(part.x, [pairs.rows(part.parents) for pairs in past])
        return self._rate(self.model(last.x, at, [pairs.rows(last.parents) for pairs in past]))

    def _rate(self, hidden: Tensor) -> Tensor:
        """hidden [N, R, E]"""
        head_dtype = next(self.rm_head.parameters()).dtype
        return self.rm_head(hidden.to(head_dtype))


def answer(net: Network, patches: Tensor, grid: tuple[int, int], words: Words) -> Tensor:
    """The head's outputs [N, R, O] for rows of pictures, patches [N, G, P, 1176]."""
    N = len(patches)
    tokens = net.look(patches.flatten(0, 1), grid)  # [N * G, P / 4, E]
    visual = tokens.reshape(N, -1, tokens.shape[-1])  # [N, V, E]
    before, after = (net.embed(ids).expand(N, -1, -1) for ids in (words.before, words.after))
    at = words.at + (before.shape[1] + visual.shape[1])
    return net.read(torch.cat((before, visual, after), 1), at)
