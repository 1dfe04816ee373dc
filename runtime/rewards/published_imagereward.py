"""Brings the published ImageReward into a folder that ``runtime.rewards.imagereward`` loads.

The source is a folder with the published ImageReward.pt and med_config.json, and the tokenizer.json of bert-base-uncased:
BLIP adds two marks to that vocabulary, [DEC] and [ENC], which this reward never reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from runtime.pickles import read_pickle
from runtime.rewards.blip import BlipConfig, ImageRewardNet
from runtime.shards import FolderWriter
from runtime.weights import compare_keys, read_config

CHECKPOINT, CONFIG, TOKENISER = "ImageReward.pt", "med_config.json", "tokenizer.json"
# In the checkpoint, for other uses of BLIP, or numbers that count from 0.
UNUSED = (
    "blip.vision_proj.weight",
    "blip.vision_proj.bias",
    "blip.text_proj.weight",
    "blip.text_proj.bias",
    "blip.text_encoder.embeddings.position_ids",
)


def convert(source: Path, out: FolderWriter) -> None:
    """Write model.safetensors, config.json and tokenizer.json. ValueError names the file and the key that is wrong."""
    table = read_config(source / CONFIG)
    try:
        config = BlipConfig.read(table)
    except ValueError as error:
        raise ValueError(f"{source / CONFIG}: {error}") from None
    path = source / CHECKPOINT
    tensors = {n: t for n, t in read_pickle(path).items() if n not in UNUSED}
    with torch.device("meta"):
        net = ImageRewardNet(config)
    check_shapes(path, net, tensors)
    out.weights("model", tensors)
    out.json("config", table)
    out.copy(TOKENISER, source / TOKENISER)
    out.facts(source="THUDM/ImageReward, ImageReward.pt", licence="Apache-2.0")


def check_shapes(path: Path, net: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ValueError that names the first keys which ``net`` misses, does not know or has in another shape."""
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    compare_keys(path, wanted, {name: tuple(value.shape) for name, value in tensors.items()})


CONVERSIONS: Mapping[str, Callable[[Path, FolderWriter], None]] = MappingProxyType(
    {"imagereward": convert}
)
