"""Rates a picture against a text: BLIP's vision transformer, a BERT that looks at its tokens, and a stack of linear layers.

    seen  = ViT(pixels)                                   [N, 1 + P, V]
    each layer of BERT:  x = norm(x + self(x)),  x = norm(x + cross(x, seen)),  x = norm(x + mlp(x))
    score = (mlp(x of the first token) - mean) / std      no activation between the five layers

Source  Xu et al., "ImageReward", 2023, and the code published with it: sizes, constants, parameter names; the first token is
        the tokeniser's own [CLS], which BLIP's other uses would replace by its [ENC]. Li et al., "BLIP", 2022.
Legend: N pictures, P patches, V width of the vision transformer, L tokens, E width of BERT, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.pictures import embedded_patches, hidden

MEAN, STD = 0.16717362830052426, 1.0333394966054072
WIDTHS = (1024, 128, 64, 16, 1)  # of the head
DROPOUTS = (1, 3, 5)  # places among the published head's layers, which are numbered with them
VIT_EPS, BERT_EPS = 1e-6, 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class BlipConfig:
    """Sizes. The text's are under the names of the published med_config.json."""

    vocab_size: int = 30524  # BERT's and two marks
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or not 1 <= value <= 1 << 20:
                raise ValueError(f"{field.name}: want a whole number of 1 to 2^20, got {value!r}")
        pairs = (("hidden_size", "num_attention_heads"), ("vision_width", "vision_heads"), ("image_size", "patch_size"))  # fmt: skip
        for whole, part in pairs:
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole}: want a multiple of {part} ({getattr(self, part)}), got {getattr(self, whole)}")  # fmt: skip

    @staticmethod
    def read(table: Mapping[str, Any]) -> BlipConfig:
        """From the published JSON, whose other entries are no concern of ours."""
        return BlipConfig(**{f.name: table[f.name] for f in fields(BlipConfig) if f.name in table})

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def flops(self, text_tokens: int) -> int:
        """Of one picture: two for every multiplication of its matrices and of attention."""
        S, L, V, E = 1 + self.patches, text_tokens, self.vision_width, self.hidden_size
        block = 2 * S * V * V * 12 + 4 * S * S * V
        own = 2 * L * E * E * 4 + 4 * L * L * E
        cross = 2 * L * E * E * 2 + 2 * S * V * E * 2 + 4 * L * S * E
        patches = 2 * self.patches * 3 * self.patch_size**2 * V
        head = 2 * sum(a * b for a, b in zip((E, *WIDTHS), WIDTHS, strict=False))
        layer = own + cross + 4 * L * E * self.intermediate_size
        return patches + self.vision_layers * block + self.num_hidden_layers * layer + head


class VisionAttention(nn.Module):
    """Every patch attends to every patch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, H, 1 + P, D]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, VIT_EPS)
        self.attn = VisionAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, VIT_EPS)
        self.mlp = VisionMLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return embedded_patches(pixels, self.proj)


class VisionTransformer(nn.Module):
    """Pixels [N, 3, S, S] -> [N, 1 + P, V]."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.patches, width))
        self.patch_embed = PatchEmbed(width, config.patch_size)
        self.blocks = nn.ModuleList(VisionBlock(width, config.vision_heads) for _ in range(config.vision_layers))  # fmt: skip
        self.norm = nn.LayerNorm(width, VIT_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        # ``len`` would be a constant to whoever traces this.
        first = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((first, x), 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Heads(nn.Module):
    """Attention of a text to ``width`` wide tokens, its own or a picture's."""

    def __init__(self, config: BlipConfig, width: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(width, config.hidden_size)
        self.value = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)


class Added(nn.Module):
    """A product, added to what came before and normed: how every part of a BERT layer ends."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out)
        self.LayerNorm = nn.LayerNorm(out, BERT_EPS)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class Attention(nn.Module):
    def __init__(self, config: BlipConfig, width: int) -> None:
        super().__init__()
        self.self = Heads(config, width)
        self.output = Added(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output(self.self(x, seen, mask), x)


class Intermediate(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class TextLayer(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden_size)
        self.crossattention = Attention(config, config.vision_width)
        self.intermediate = Intermediate(config)
        self.output = Added(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x, mask), seen)
        return self.output(self.intermediate(x), x)


class Embeddings(nn.Module):
    """Words and places; BLIP's BERT has no types of token."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, BERT_EPS)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: ids.shape[-1]]
        return self.LayerNorm(self.word_embeddings(ids) + places)


class Layers(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TextLayer(config) for _ in range(config.num_hidden_layers))


class TextEncoder(nn.Module):
    """A BERT whose every layer also looks at a picture."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """x [N, L, E], seen [N, 1 + P, V], mask [1, 1, 1, L] as ``hidden`` makes it -> [N, L, E]."""
        for layer in self.encoder.layer:
            x = layer(x, seen, mask)
        return x


class Blip(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)


class Head(nn.Module):
    """Five linear layers in a row, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out in WIDTHS:
            if len(layers) in DROPOUTS:
                layers.append(nn.Identity())
            layers.append(nn.Linear(width, out))
            width = out
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class BlipReader(nn.Module):
    """Reads prompts for ``ImageRewardNet``: all that is left to torch where a graph sees the pictures."""

    inputs = ("pixels", "words", "hidden")

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config, self.side = config, config.image_size
        self.embeddings = Embeddings(config)

    def read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As ``ImageRewardNet.read``."""
        return read_words(self.embeddings, ids, mask)

    def flops(self, text_tokens: int) -> int:
        return self.config.flops(text_tokens)


class ImageRewardNet(nn.Module):
    """The whole network. ``blip`` and ``mlp`` are the names in the published checkpoint."""

    inputs = BlipReader.inputs

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config, self.side = config, config.image_size
        self.blip = Blip(config)
        self.mlp = Head(config.hidden_size)

    def read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids, mask [L] -> embedded words [1, L, E] and what hides the padding, [1, 1, 1, L]."""
        return read_words(self.blip.text_encoder.embeddings, ids, mask)

    def forward(self, pixels: Tensor, words: Tensor, hidden: Tensor) -> Tensor:
        """pixels [N, 3, S, S] -> scores [N] float32."""
        seen = self.blip.visual_encoder(pixels)
        said = self.blip.text_encoder(words.expand(pixels.shape[0], -1, -1), seen, hidden)
        return (self.mlp(said[:, 0].float())[:, 0] - MEAN) / STD

    def flops(self, text_tokens: int) -> int:
        return self.config.flops(text_tokens)


def read_words(embeddings: Embeddings, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """ids, mask [L] -> embedded words [1, L, E] and what hides the padding, [1, 1, 1, L]."""
    words = embeddings(ids[None])
    return words, hidden(mask.bool(), words.dtype)
