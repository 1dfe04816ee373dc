"""Names of the same DiT weights: ours, which are the published checkpoint's, diffusers', and those of training wrappers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from runtime.weights import quote

# What torch puts into names when it shards, compiles or checkpoints a module; they say nothing about the weight.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
# What a model is called inside the one that was saved. Taken off only where every name has it.
OWNERS = ("model.",)

_PARTS = (  # ours, diffusers': whole dotted parts of a name
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
    ("modulation", "scale_shift_table"),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("o", "to_out.0"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
)


def to_diffusers_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> those of diffusers' ``WanTransformer3DModel``."""
    return {_renamed(name, _PARTS): tensor for name, tensor in state.items()}


def from_diffusers_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_diffusers_keys``; a name that diffusers does not have stays as it is."""
    inside = tuple((theirs, ours) for ours, theirs in _PARTS if ours != "head.modulation")
    return {
        "head.modulation" if name == "scale_shift_table" else _renamed(name, inside): tensor
        for name, tensor in state.items()
    }


def unwrapped(
    path: Path, state: Mapping[str, Tensor], owners: Sequence[str] = ()
) -> dict[str, Tensor]:
    """``state`` without wrappers in its names, and without the known owner that they begin with.

    ``owners`` are looked for first, in order, then ``OWNERS``; one that most names begin with is taken off all of them.
    Any other name stays, to be told as unknown. ValueError names those that lack what the others begin with, and two
    names that become one.
    """
    names = {name: _without_wrappers(name) for name in state}
    for owner in (*owners, *OWNERS):
        bare = sorted(name for name, plain in names.items() if not plain.startswith(owner))
        if 2 * len(bare) >= len(names):
            continue
        if bare:
            raise ValueError(
                f"{path}: this is not a checkpoint of this model: unknown {quote(bare)}"
            )
        names = {name: plain.removeprefix(owner) for name, plain in names.items()}
    by_plain: dict[str, str] = {}
    for name, plain in names.items():
        if plain in by_plain:
            raise ValueError(f"{path}: {name} and {by_plain[plain]} are the same weight {plain}")
        by_plain[plain] = name
    return {plain: state[name] for plain, name in by_plain.items()}


def _without_wrappers(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _renamed(name: str, parts: Sequence[tuple[str, str]]) -> str:
    dotted = f".{name}."
    for old, new in parts:
        dotted = dotted.replace(f".{old}.", f".{new}.")
    return dotted[1:-1]
