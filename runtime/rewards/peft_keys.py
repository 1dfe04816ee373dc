"""The names that libraries give a Qwen2-VL's tensors, sorted into ours: weights, and the two sides of every adapter.

visual.* | model.visual.*                                  -> visual.*
model.layers.* | model.language_model.layers.* | ...       -> model.layers.*      also embed_tokens and norm
base_model.model.<name>                                    -> <name>              as PEFT wraps a model
<module>.base_layer.weight | <module>.weight               -> <module>.weight
<module>.lora_A.weight, <module>.lora_A.default.weight     -> the down side of <module>.weight; lora_B: the up side
<module>.modules_to_save.default.<name>                    -> <module>.<name>;  <module>.original_module.* is dropped
lm_head.weight                                             -> dropped: a reward has no use for a vocabulary's head
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

_OWN = re.compile(
    r"(?:module\.)?(?:base_model\.model\.)?(?:model\.|language_model\.)*"
    r"(?P<own>(?:visual|layers|embed_tokens|norm|lm_head|rm_head)\..+)"
)
_SIDE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_DROPPED = re.compile(r"lm_head\..+|.+\.inv_freq|(?:.+\.)?original_module\..+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor where it lies; reading it costs nothing until its numbers are used."""

    path: Path
    key: str
    state: Mapping[str, Tensor]

    @property
    def tensor(self) -> Tensor:
        return self.state[self.key]


@dataclass(frozen=True, slots=True)
class Names:
    """Tensors by our names."""

    path: Path  # of the file with the last word, for messages
    weights: dict[str, Piece] = field(default_factory=dict)
    downs: dict[str, Piece] = field(default_factory=dict)  # [rank, in], by the weight they change
    ups: dict[str, Piece] = field(default_factory=dict)  # [out, rank]


def sort_keys(states: Mapping[Path, Mapping[str, Tensor]]) -> Names:
    """The tensors of all files; a later file replaces what an earlier one said. ValueError for a name a file has twice."""
    names = Names(list(states)[-1])
    for path, state in states.items():
        for key in state:
            own, side = own_name(key)
            if not own:
                continue
            table = {"": names.weights, "A": names.downs, "B": names.ups}[side]
            if own in table and table[own].path == path:
                raise ValueError(f"{path}: {table[own].key} and {key} are one tensor, {own}")
            table[own] = Piece(path, key, state)
    return names


def own_name(key: str) -> tuple[str, str]:
    """Our name of a tensor and the adapter's side it is, "" for none; no name for one that is dropped.

    A key that is no part of a Qwen2-VL keeps its name, so that it is found unknown.
    """
    match = _OWN.fullmatch(key)
    own = match["own"] if match else key
    if _DROPPED.fullmatch(own):
        return "", ""
    if match and not own.startswith(("visual.", "rm_head.")):
        own = f"model.{own}"
    own = own.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
    if sides := _SIDE.fullmatch(own):
        return f"{sides['module']}.weight", sides["side"]
    return own, ""


def merged_shapes(
    names: Names, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes once adapters are merged; the sides of one that does not fit are listed as what they are."""
    shapes = {name: tuple(piece.tensor.shape) for name, piece in names.weights.items()}
    for name in names.downs.keys() | names.ups.keys():
        pieces = [side.get(name) for side in (names.downs, names.ups)]
        down, up = (tuple(piece.tensor.shape) if piece else () for piece in pieces)
        fits = (
            len(down) == len(up) == 2 and down[0] == up[1] and (up[0], down[1]) == wanted.get(name)
        )
        if not fits:
            shapes |= {piece.key: tuple(piece.tensor.shape) for piece in pieces if piece}
    return shapes
