"""Folders like those that published rewards load from, with networks small enough for a test and a rubric of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime.rewards import hpsv3, videoalign
from runtime.rewards.qwen2vl import Qwen2VL, Qwen2VLConfig
from runtime.rewards.qwen2vl_judge import Kind
from runtime.weights import fill_random_

CHAT = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
KINDS = {"hpsv3": hpsv3.KIND, "videoalign": videoalign.KIND}
RUBRICS = {
    "hpsv3": "How good is a picture of {prompt}? <|Reward|>END",
    "videoalign": "Sharp?<|VQ_reward|>END Smooth?<|MQ_reward|>END Shows it {prompt}?<|TA_reward|>END",
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vision_config": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2},
    "min_pixels": 2 * 28 * 28,
    "max_pixels": 6 * 28 * 28,
    "model_type": "qwen2_vl",  # one of the entries that the loader has no use for
}


def byte_tokeniser(marks: tuple[str, ...]) -> Tokenizer:
    """Every byte a token, the special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokeniser = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokeniser.decoder = decoders.ByteLevel()
    tokeniser.add_special_tokens([*CHAT, *marks])
    return tokeniser


def random_net(kind: Kind, table: dict[str, Any], seed: int = 0) -> Qwen2VL:
    """A network of the sizes in ``table``, every weight and bias drawn, so that a swapped one shows."""
    config = Qwen2VLConfig.read(table)
    with torch.device("meta"):
        net = Qwen2VL(config, kind.head(config.text.hidden_size, table))
    fill_random_(net, "cpu", torch.float32, seed)
    source = torch.Generator().manual_seed(seed)
    for value in net.parameters():
        value += 0.1 * torch.randn(value.shape, generator=source)
    return net


def write_folder(root: Path, name: str, **changes: Any) -> Path:
    """Write ``root/name`` and return ``root``, as ``reward.weights`` wants it; ``changes`` go into config.json."""
    kind, folder = KINDS[name], root / name
    folder.mkdir(parents=True, exist_ok=True)
    tokeniser = byte_tokeniser(kind.marks)
    table = {**SIZES, "vocab_size": tokeniser.get_vocab_size(), **changes}
    (folder / "config.json").write_text(json.dumps(table))
    (folder / "rubric.txt").write_text(RUBRICS[name])
    tokeniser.save(str(folder / "tokenizer.json"))
    save_file(dict(random_net(kind, table).state_dict()), folder / "model.safetensors")
    return root
