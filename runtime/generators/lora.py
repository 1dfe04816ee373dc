"""Adapters merged into the weights when a model is loaded, so that a forward costs what it costs without them.

    W <- W + (alpha / rank) * B @ A,    in float32 (float64 weights in float64), rounded once to W's dtype

Source: LoRA (Hu et al. 2021); key names as PEFT writes them: ``base_model.model.<module>.lora_A.weight`` [rank, in] and
``...lora_B.weight`` [out, rank], with or without the adapter's name, "default", before "weight". LongLive's adapter has
rank 256 and alpha 256.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from runtime.weights import read_config, read_shapes, read_tensors

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_[AB](?:\.default)?\.weight")


def read_alpha(path: Path) -> float:
    """The number under "alpha" in a .json file. ValueError when it is missing or not a positive number."""
    alpha = read_config(path).get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        raise ValueError(f"{path}: want a positive number under the key 'alpha', got {alpha!r}")
    return float(alpha)


@torch.no_grad()
def merge_lora_(module: nn.Module, path: Path, alpha: float) -> None:
    """Merge the adapter in ``path`` into the linears of ``module`` that it names, on the device where they are.

    ValueError names every key without its partner, every key that is no linear's of this model and every wrong shape,
    before a weight is changed.
    """
    linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    shapes = read_shapes(path)
    wanted: dict[str, tuple[int, ...]] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for key in shapes:
        match = _KEY.fullmatch(key)
        linear = linears.get(match["module"]) if match else None
        if match is None or linear is None:
            continue  # not wanted, so it will be named
        a, b = key.replace(".lora_B.", ".lora_A."), key.replace(".lora_A.", ".lora_B.")
        rank = shapes[a][0] if shapes.get(a) else shapes[b][-1] if shapes.get(b) else 1
        wanted |= {a: (max(rank, 1), linear.in_features), b: (linear.out_features, max(rank, 1))}
        pairs[match["module"]] = a, b
    if not shapes:
        raise ValueError(f"{path}: want LoRA keys, got an empty file")
    tensors = read_tensors(path, wanted)
    for name, (a, b) in pairs.items():
        weight = linears[name].weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        down, up = (tensors[key].to(weight.device, wide) for key in (a, b))
        weight.copy_(weight.to(wide).addmm(up, down, alpha=alpha / len(down)))
