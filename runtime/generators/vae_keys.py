"""Two namings of the same autoencoder weights: the published checkpoint's and diffusers'.

The encoder's layers are numbered flat in both. The decoder's are grouped by level in diffusers:
with ``res_blocks`` n, a level is n + 1 blocks and an upsampler, so ``upsamples.i`` is layer
``i % (n + 2)`` of level ``i // (n + 2)``.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_LEADING = (  # published, diffusers
    ("conv1.", "quant_conv."),
    ("conv2.", "post_quant_conv."),
    ("encoder.conv1.", "encoder.conv_in."),
    ("decoder.conv1.", "decoder.conv_in."),
    ("encoder.head.0.", "encoder.norm_out."),
    ("decoder.head.0.", "decoder.norm_out."),
    ("encoder.head.2.", "encoder.conv_out."),
    ("decoder.head.2.", "decoder.conv_out."),
    ("encoder.middle.0.", "encoder.mid_block.resnets.0."),
    ("decoder.middle.0.", "decoder.mid_block.resnets.0."),
    ("encoder.middle.1.", "encoder.mid_block.attentions.0."),
    ("decoder.middle.1.", "decoder.mid_block.attentions.0."),
    ("encoder.middle.2.", "encoder.mid_block.resnets.1."),
    ("decoder.middle.2.", "decoder.mid_block.resnets.1."),
    ("encoder.downsamples.", "encoder.down_blocks."),
)
_INSIDE = (
    (".residual.0.", ".norm1."),
    (".residual.2.", ".conv1."),
    (".residual.3.", ".norm2."),
    (".residual.6.", ".conv2."),
    (".shortcut.", ".conv_shortcut."),
)
_FLAT = re.compile(r"decoder\.upsamples\.(\d+)\.")
_GROUPED = re.compile(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")


def to_diffusers_keys(state: Mapping[str, Tensor], res_blocks: int = 2) -> dict[str, Tensor]:
    """Published names -> diffusers names; ``res_blocks`` as in ``VAEConfig``."""

    def group(match: re.Match[str]) -> str:
        level, place = divmod(int(match[1]), res_blocks + 2)
        kind = f"resnets.{place}" if place <= res_blocks else "upsamplers.0"
        return f"decoder.up_blocks.{level}.{kind}."

    renamed = {}
    for key, weight in state.items():
        grouped = _FLAT.sub(group, key)
        renamed[_rename(grouped, _LEADING, _INSIDE)] = weight
    return renamed


def from_diffusers_keys(state: Mapping[str, Tensor], res_blocks: int = 2) -> dict[str, Tensor]:
    """The inverse of ``to_diffusers_keys``."""

    def flatten(match: re.Match[str]) -> str:
        place = int(match[3]) if match[2] == "resnets" else res_blocks + 1
        return f"decoder.upsamples.{int(match[1]) * (res_blocks + 2) + place}."

    leading = tuple((new, old) for old, new in _LEADING)
    inside = tuple((new, old) for old, new in _INSIDE)
    renamed = {}
    for key, weight in state.items():
        flat = _GROUPED.sub(flatten, key)
        renamed[_rename(flat, leading, inside)] = weight
    return renamed


def _rename(
    key: str, leading: tuple[tuple[str, str], ...], inside: tuple[tuple[str, str], ...]
) -> str:
    for old, new in leading:
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    # The stem's name ends like a block's inner one, so only names below a block are looked at.
    if key.count(".") > 2:
        for old, new in inside:
            key = key.replace(old, new)
    return key
