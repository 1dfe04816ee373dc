"""Two namings of the same UMT5 encoder: the Wan checkpoint's and transformers', which is ours.

Source: key names of ``models_t5_umt5-xxl-enc-bf16.pth``. Every layer has a position bias of its own, as UMT5 does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_WHOLE = (  # Wan's, transformers'
    ("token_embedding.weight", "shared.weight"),
    ("norm.weight", "encoder.final_layer_norm.weight"),
)
_INSIDE = (  # of blocks.N. and of encoder.block.N.
    ("norm1.weight", "layer.0.layer_norm.weight"),
    ("attn.q.weight", "layer.0.SelfAttention.q.weight"),
    ("attn.k.weight", "layer.0.SelfAttention.k.weight"),
    ("attn.v.weight", "layer.0.SelfAttention.v.weight"),
    ("attn.o.weight", "layer.0.SelfAttention.o.weight"),
    ("pos_embedding.embedding.weight", "layer.0.SelfAttention.relative_attention_bias.weight"),
    ("norm2.weight", "layer.1.layer_norm.weight"),
    ("ffn.gate.0.weight", "layer.1.DenseReluDense.wi_0.weight"),
    ("ffn.fc1.weight", "layer.1.DenseReluDense.wi_1.weight"),
    ("ffn.fc2.weight", "layer.1.DenseReluDense.wo.weight"),
)
_WAN = re.compile(r"blocks\.(\d+)\.(.+)")
_OURS = re.compile(r"encoder\.block\.(\d+)\.(.+)")


def from_wan_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wan's names -> transformers'. A name that Wan does not have stays as it is, to be told as unknown."""
    whole, inside = dict(_WHOLE), dict(_INSIDE)
    return {_renamed(name, whole, _WAN, inside, "encoder.block"): t for name, t in state.items()}


def to_wan_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``from_wan_keys``."""
    whole = {theirs: wan for wan, theirs in _WHOLE}
    inside = {theirs: wan for wan, theirs in _INSIDE}
    return {_renamed(name, whole, _OURS, inside, "blocks"): t for name, t in state.items()}


def _renamed(
    name: str,
    whole: Mapping[str, str],
    pattern: re.Pattern[str],
    inside: Mapping[str, str],
    block: str,
) -> str:
    match = pattern.fullmatch(name)
    if match and match[2] in inside:
        return f"{block}.{match[1]}.{inside[match[2]]}"
    return whole.get(name, name)
