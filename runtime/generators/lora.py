"""Adapters merged into the weights when a model is loaded, so that a forward costs what it costs without them.

    W <- W + (alpha / rank) * B @ A,    in float32 (float64 weights in float64), rounded once to the dtype it runs in

Source: LoRA (Hu et al. 2021); key names as PEFT writes them: ``base_model.model.<module>.lora_A.weight`` [rank, in] and
``...lora_B.weight`` [out, rank], with or without the adapter's name, "default", before "weight". A published adapter may
be a .pt file whose names carry the wrappers it was trained in, see ``dit_keys.unwrapped``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.generators.dit_keys import unwrapped
from runtime.pickles import read_checkpoint
from runtime.weights import Edit, compare_keys, quote, read_config, refuse_infinite

NESTED = ("generator_lora",)  # where a .pt file may keep the adapter
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_alpha(path: Path) -> float:
    """The number under "alpha" in a .json file. ValueError when it is missing or not a positive number."""
    alpha = read_config(path).get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
        raise ValueError(f"{path}: want a positive number under the key 'alpha', got {alpha!r}")
    return float(alpha)


def read_adapter(path: Path, linears: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The adapter in a .safetensors or .pt file, as ``<module>.lora_A.weight`` and ``.lora_B.weight``.

    ``linears`` are the modules it may change and their [out, in]. ValueError names every key without its partner, every
    key that is none of these modules' and every wrong shape, before a number is read.
    """
    found = unwrapped(path, read_checkpoint(path, NESTED), ("base_model.model.",))
    if not found:
        raise ValueError(f"{path}: want LoRA keys, got an empty file")
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in found.items():
        if match := _KEY.fullmatch(key):
            pairs.setdefault(match["module"], {})[match["half"]] = tensor
    wanted: dict[str, tuple[int, ...]] = {}
    for name in pairs.keys() & linears.keys():
        out, into = linears[name]
        a, b = (pairs[name].get(half) for half in "AB")
        known = a.shape[:1] if a is not None else b.shape[-1:] if b is not None else ()
        rank = max(1, *known) if known else 1
        wanted |= {f"{name}.lora_A.weight": (rank, into), f"{name}.lora_B.weight": (out, rank)}
    named = {_plain(key): tensor for key, tensor in found.items()}
    compare_keys(path, wanted, {key: tuple(tensor.shape) for key, tensor in named.items()})
    foreign = sorted(f"{key} ({t.dtype})" for key, t in named.items() if t.dtype not in _FLOATS)
    if foreign:
        raise ValueError(f"{path}: want weights of floats, got {quote(foreign)}")
    refuse_infinite(path, named)
    return named


def merges(module: nn.Module, path: Path, alpha: float) -> dict[str, Edit]:
    """What the adapter in ``path`` makes of the weights of ``module``, by their names. Errors as ``read_adapter``."""
    shapes = {
        name: (linear.out_features, linear.in_features)
        for name, linear in module.named_modules()
        if isinstance(linear, nn.Linear)
    }
    adapter = read_adapter(path, shapes)
    names = sorted({key.rpartition(".lora_")[0] for key in adapter})
    return {
        f"{name}.weight": partial(
            _merged, adapter[f"{name}.lora_A.weight"], adapter[f"{name}.lora_B.weight"], alpha
        )
        for name in names
    }


@torch.no_grad()
def merge_lora_(module: nn.Module, path: Path, alpha: float) -> None:
    """Merge the adapter in ``path`` into the linears of ``module`` that it names, on the device where they are.

    Errors as ``read_adapter``, before a weight is changed.
    """
    for name, edit in merges(module, path, alpha).items():
        weight = module.get_parameter(name)
        weight.copy_(edit(weight))


def _merged(down: Tensor, up: Tensor, alpha: float, weight: Tensor) -> Tensor:
    """W + (alpha / rank) * B @ A on the weight's device, in at least float32."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b = (half.to(weight.device).to(wide) for half in (down, up))
    return weight.to(wide).addmm(b, a, alpha=alpha / len(down))


def _plain(key: str) -> str:
    """``key`` without the adapter's own name; a key that is no adapter's stays as it is."""
    match = _KEY.fullmatch(key)
    return f"{match['module']}.lora_{match['half']}.weight" if match else key
