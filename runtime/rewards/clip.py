"""CLIP's two towers: pictures and texts to vectors of one space.

    each block: x += attention(norm x), x += mlp(norm x);  a text sees what is behind it only

Parameter names are those of the transformers library, so its checkpoints load as they are.

Source  Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; sizes of ViT-H-14
        from LAION's CLIP-ViT-H-14-laion2B-s32B-b79K.
Legend: N pictures or texts, P patches, L tokens, E width of a tower, J width of the joint space, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.rewards.pictures import embedded_patches

EPS = 1e-5
ACTIVATIONS = ("gelu", "quick_gelu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """Sizes of one tower, under the names of the published configuration; those of the other tower are not read."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    vocab_size: int = 49408
    max_position_embeddings: int = 77
    image_size: int = 224
    patch_size: int = 14

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "hidden_act":
                if value not in ACTIVATIONS:
                    raise ValueError(f"hidden_act: want {' or '.join(ACTIVATIONS)}, got {value!r}")
            elif type(value) is not int or not 1 <= value <= 1 << 20:
                raise ValueError(f"{field.name}: want a whole number of 1 to 2^20, got {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: want a multiple of {self.num_attention_heads} heads, got {self.hidden_size}"
            )

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def flops(self, tokens: int) -> int:
        """Of the blocks: two for every multiplication of their matrices and of attention."""
        wide = self.hidden_size
        mlp = 4 * tokens * wide * self.intermediate_size
        return self.num_hidden_layers * (8 * tokens * wide * wide + mlp + 4 * tokens**2 * wide)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    text: TowerConfig
    vision: TowerConfig
    projection_dim: int

    @staticmethod
    def read(table: Mapping[str, Any]) -> ClipConfig:
        """From the published JSON, whose other entries are no concern of ours. ValueError names a missing or wrong one."""
        towers = {}
        for kind in ("text", "vision"):
            part = table.get(f"{kind}_config")
            if not isinstance(part, Mapping):
                raise ValueError(f"{kind}_config: want an object, got {type(part).__name__}")
            try:
                names = {f.name for f in fields(TowerConfig)}
                towers[kind] = TowerConfig(**{k: v for k, v in part.items() if k in names})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{kind}_config: {error}") from None
        width = table.get("projection_dim")
        if type(width) is not int or not 1 <= width <= 1 << 16:
            raise ValueError(f"projection_dim: want a whole number of 1 to 65536, got {width!r}")
        return ClipConfig(text=towers["text"], vision=towers["vision"], projection_dim=width)


VIT_H_14 = ClipConfig(
    text=TowerConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, hidden_act="gelu"),
    vision=TowerConfig(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, hidden_act="gelu"),
    projection_dim=1024,
)  # fmt: skip


class Attention(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.heads, wide = config.num_attention_heads, config.hidden_size
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(wide, wide) for _ in range(4))  # fmt: skip

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class Block(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, EPS)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, EPS)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Blocks(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x, causal)
        return x


class TextEmbeddings(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[-1]]


class TextTower(nn.Module):
    """ids [N, L] -> [N, L, E]."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Blocks(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, EPS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.final_layer_norm(self.encoder(self.embeddings(ids), causal=True))


class VisionEmbeddings(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False)  # fmt: skip
        self.position_embedding = nn.Embedding(1 + config.patches, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        x = embedded_patches(pixels, self.patch_embedding)
        # ``len`` would be a constant to whoever traces this.
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        return torch.cat((first, x), 1) + self.position_embedding.weight


class VisionTower(nn.Module):
    """pixels [N, 3, S, S] -> [N, 1 + P, E], without the norm that only the first token passes."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, EPS)  # spelt as published
        self.encoder = Blocks(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)))


class ClipText(nn.Module):
    """The text's tower and its way into the space of both: all that is left to torch where a graph sees the pictures."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config, self.side = config, config.vision.image_size
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.text_model = TextTower(config.text)
        self.text_projection = nn.Linear(config.text.hidden_size, config.projection_dim, bias=False)

    def texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [N, L] -> every token [N, L, J] and the text's end [N, J]: the first of the largest ids, as published."""
        tokens = self.text_projection(self.text_model(ids))
        last = ids.argmax(1).view(-1, 1, 1).expand(-1, 1, tokens.shape[-1])
        return tokens, tokens.gather(1, last)[:, 0]

    def flops(self) -> int:
        """Of one picture, into the joint space."""
        vision = self.config.vision
        patches = 6 * vision.patches * vision.patch_size**2 * vision.hidden_size
        return patches + vision.flops(1 + vision.patches)


class ClipTowers(ClipText):
    """Both towers and their way into one space."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self.vision_model = VisionTower(config.vision)
        self.visual_projection = nn.Linear(config.vision.hidden_size, config.projection_dim, bias=False)  # fmt: skip

    def picture(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, S, S] -> [N, J]."""
        first = self.vision_model(pixels)[:, 0]
        return self.visual_projection(self.vision_model.post_layernorm(first))
