"""Folders like those that ImageReward, MPS and CLIP load from, with networks small enough for a test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from runtime.rewards.blip import BlipConfig, ImageRewardNet
from runtime.rewards.clip import ClipConfig, ClipTowers
from runtime.rewards.mps import CrossConfig, MPSNet
from runtime.weights import fill_random_

CONDITION = "light, colour, hands"
BLIP_SIZES = {
    "vocab_size": 300,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "image_size": 32,
    "vision_width": 16,
    "vision_layers": 2,
    "vision_heads": 2,
    "encoder_width": 768,  # one of the entries that the loader has no use for
}
CLIP_SIZES = {
    "text_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
        "vocab_size": 300,
        "max_position_embeddings": 20,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "image_size": 28,
        "patch_size": 14,
    },
    "projection_dim": 24,
}
CROSS = {"cross_layers": 2, "cross_heads": 2}


def tokeniser(first: str, last: str, others: tuple[str, ...] = ()) -> Tokenizer:
    """Every byte a token, marks behind them; ``first`` and ``last`` stand around every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([*others, first, last])
    ids = [(mark, made.token_to_id(mark)) for mark in (first, last)]
    made.post_processor = processors.TemplateProcessing(f"{first} $A {last}", None, ids)
    return made


def bert_words() -> Tokenizer:
    return tokeniser("[CLS]", "[SEP]", ("[PAD]",))


def clip_words() -> Tokenizer:
    return tokeniser("<|startoftext|>", "<|endoftext|>")


def scattered(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight and bias drawn, so that a swapped one shows; built on the meta device."""
    fill_random_(net, "cpu", torch.float32, seed)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value += 0.1 * torch.randn(value.shape, generator=source)
    return net.eval()


def small_net(name: str, table: dict[str, Any] | None = None) -> nn.Module:
    with torch.device("meta"):
        if name == "imagereward":
            net: nn.Module = ImageRewardNet(BlipConfig.read(table or BLIP_SIZES))
        elif name == "mps":
            config = ClipConfig.read(table or CLIP_SIZES)
            net = MPSNet(config, CrossConfig(layers=2, heads=2))
        else:
            net = ClipTowers(ClipConfig.read(table or CLIP_SIZES))
    return scattered(net)


def write_pictures(root: Path, name: str, **changes: Any) -> Path:
    """Write ``root/name`` and return ``root``, as ``reward.weights`` wants it; ``changes`` go into config.json."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    blip = name == "imagereward"
    table = {**(BLIP_SIZES if blip else CLIP_SIZES), **(CROSS if name == "mps" else {}), **changes}
    (folder / "config.json").write_text(json.dumps(table))
    (bert_words() if blip else clip_words()).save(str(folder / "tokenizer.json"))
    if name == "mps":
        (folder / "condition.txt").write_text(CONDITION)
    save_file(dict(small_net(name).state_dict()), folder / "model.safetensors")
    return root


def write_shallow(root: Path, name: str) -> Path:
    """The same with one layer of every kind, for whoever traces it."""
    folder = write_pictures(root, name) / name
    table = json.loads((folder / "config.json").read_text())
    for part in (table, table.get("text_config", {}), table.get("vision_config", {})):
        part.update({key: 1 for key in part if key.endswith("_layers")})
    (folder / "config.json").write_text(json.dumps(table))
    path = folder / "model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if not re.search(r"\.(layers?|blocks)\.1\.", key)}  # fmt: skip
    save_file(kept, path)
    return root
