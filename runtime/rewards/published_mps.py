"""Brings the published MPS, and plain CLIPs, into folders that ``runtime.rewards.mps`` and ``clip_h`` load.

MPS is published as a pickled module; ``runtime/rewards/pickled_modules.py`` takes its tensors out without running it. The source
is a folder with MPS_overall_checkpoint.pth, with config.json and tokenizer.json of LAION's CLIP-ViT-H-14, and with condition.txt:
the words that the authors' README lists for overall preference, or others.
A CLIP's source is a folder as transformers keeps it: model.safetensors or pytorch_model.bin, config.json, tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from runtime.pickles import read_checkpoint
from runtime.rewards.clip import ClipTowers
from runtime.rewards.clip_h import POSITIONS, read_clip_config
from runtime.rewards.mps import CrossConfig, MPSNet, read_condition
from runtime.rewards.pickled_modules import read_module
from runtime.rewards.published_imagereward import check_shapes
from runtime.shards import FolderWriter
from runtime.weights import read_config

CHECKPOINT = "MPS_overall_checkpoint.pth"
COUNTED = ("position_ids", "inv_freq", "pos_emb")  # buffers that follow from their sizes


def convert(source: Path, out: FolderWriter) -> None:
    """Write model.safetensors, config.json, tokenizer.json and condition.txt. ValueError names file and key."""
    config = read_clip_config(source / "config.json")
    condition = read_condition(source / "condition.txt")
    path = source / CHECKPOINT
    tensors = used(path, read_module(path).tensors)
    with torch.device("meta"):
        net = MPSNet(config, CrossConfig())
    check_shapes(path, net, tensors)
    out.weights("model", tensors)
    out.json("config", read_config(source / "config.json"))
    out.text("condition.txt", condition + "\n")
    out.copy("tokenizer.json", source / "tokenizer.json")
    out.facts(source="Kwai-Kolors/MPS, MPS_overall_checkpoint.pth", licence="see the repository")


def used(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what follows from sizes, and without the biases of the cross model's norms, which are zeros by design."""
    kept = {}
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] in COUNTED:
            continue
        if name.startswith("cross_model.") and name.endswith("norm.bias"):
            if tensor.count_nonzero():
                raise ValueError(f"{path}: {name}: want zeros, as these norms have no bias")
            continue
        kept[name] = tensor
    return kept


def convert_clip(source: Path, out: FolderWriter) -> None:
    """Write model.safetensors, config.json and tokenizer.json of a CLIP. ValueError names file and key."""
    config = read_clip_config(source / "config.json")
    path = source / "model.safetensors"
    if not path.is_file() and (source / "pytorch_model.bin").is_file():
        path = source / "pytorch_model.bin"
    stored = read_checkpoint(path)
    tensors = {name: stored[name] for name in stored if name not in POSITIONS}
    with torch.device("meta"):
        clip = ClipTowers(config)
    check_shapes(path, clip, tensors)
    out.weights("model", tensors)
    out.json("config", read_config(source / "config.json"))
    out.copy("tokenizer.json", source / "tokenizer.json")
    out.facts(source="a CLIP of transformers' format", licence="as its card says")


CONVERSIONS: Mapping[str, Callable[[Path, FolderWriter], None]] = MappingProxyType(
    {"mps": convert, "clip-h": convert_clip}
)
