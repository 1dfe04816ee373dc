"""Fills modules: from files that may be corrupt, cut short or somebody else's, and it says so before it takes memory;
or with random numbers, for timing, since speed does not depend on the values."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from runtime.manifest import quote as quote
from runtime.shards import Stored

MAX_CONFIG_BYTES = 1 << 20
DTYPES = ("F64", "F32", "F16", "BF16")  # as a file's header calls them
Edit = Callable[[Tensor], Tensor]  # a tensor on its device in the file's dtype -> what it becomes


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. ValueError names the file when it is missing, too large or not an object."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; the JSON with a model's sizes lies beside its weights"
        )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(
            f"{path}: want at most {MAX_CONFIG_BYTES} bytes of JSON, got {path.stat().st_size}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: want a JSON object, got {type(config).__name__}")
    return config


@torch.no_grad()
def load_weights_(
    module: nn.Module,
    path: Path,
    shared: Mapping[str, str] = MappingProxyType({}),
    unused: Collection[str] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    edits: Mapping[str, Edit] = MappingProxyType({}),
) -> None:
    """Fill ``module`` (built on the meta device or not) from a safetensors file or its shards, straight to ``device``.

    Headers are compared first: every missing, unexpected or mis-shaped key and every dtype that is not a float's is a
    ValueError that names the file and the keys before a tensor is read. ``shared`` maps names of the module to the name
    its one tensor has in the file; the file may also hold ``unused`` names, which are not read. ``dtype`` None is the
    file's. ``edits`` change tensors where they will stay, before they are rounded to ``dtype``.

    Tensors pass one at a time from the mapped file to where they stay, so the host holds one of them at most. On the CPU
    in the file's dtype nothing is copied at all: weights stay in the mapped file, which must not be cut short meanwhile.
    """
    state = module.state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items() if name not in shared}
    stored = compared(Stored(path), wanted, unused)
    tensors = {}
    for name in wanted:
        mapped = stored[name]
        value = mapped.to(device)
        if name in edits:
            value = edits[name](value)
        tensors[name] = value = value.to(dtype or value.dtype)
        if mapped.numel() and value.data_ptr() != mapped.data_ptr():
            del mapped
            stored.release(name)
    refuse_infinite(path, tensors)
    module.load_state_dict(
        tensors | {name: tensors[source] for name, source in shared.items()}, assign=True
    )
    for name, source in shared.items():  # one parameter again, or it would move and be stored twice
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(source))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Every key of a safetensors file or its shards, and its shape, from the headers alone. ValueError for none."""
    return Stored(path).shapes


def compared(
    stored: Stored, wanted: Mapping[str, tuple[int, ...]], unused: Collection[str] = ()
) -> Stored:
    """``stored`` as it is. ValueError unless its keys and shapes are exactly ``wanted``, beside ``unused``, all floats."""
    shapes = {key: shape for key, shape in stored.shapes.items() if key not in unused}
    compare_keys(stored.path, wanted, shapes)
    compare_dtypes(stored.path, {name: stored.entries[name].dtype for name in wanted})
    return stored


def refuse_infinite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """ValueError that names the tensors which are not finite. They are looked at where they are and read back once."""
    names = [name for name, tensor in tensors.items() if tensor.numel()]
    # The extremes of a tensor are finite if it is, and finding them takes no memory.
    extremes = [torch.stack(torch.aminmax(tensors[name])).double() for name in names]
    if not extremes:
        return
    finite = torch.isfinite(torch.stack(extremes)).all(1).to("cpu")
    bad = [name for name, whole in zip(names, finite, strict=True) if not whole]
    if bad:
        raise ValueError(
            f"{path}: {quote(bad)} not finite; the file is damaged, fetch or copy it again"
        )


@torch.no_grad()
def fill_random_(
    module: nn.Module, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> None:
    """Give a module built on the meta device tensors on ``device`` in ``dtype``, drawn there, so that no host copy exists.

    Matrices are normal with variance 1 / fan-in, so that activations keep their size through any depth; vectors called
    weight or gamma are ones, every other vector zeros. Buffers that are already real stay; a meta one is an error.
    """
    lost = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if lost:
        raise ValueError(f"buffers {quote(lost)} have no values; build them on the CPU by name")
    source = torch.Generator(device).manual_seed(seed)
    made: dict[nn.Parameter, nn.Parameter] = {}  # a tensor known under two names is made once
    for owner in module.modules():
        for name, value in list(owner.named_parameters(recurse=False)):
            if value not in made:
                fresh = torch.empty(value.shape, device=device, dtype=dtype)
                if value.ndim > 1 and value.squeeze().ndim > 1:
                    fresh.normal_(0.0, value[0].numel() ** -0.5, generator=source)
                else:
                    fresh.fill_(float(name in ("weight", "gamma")))
                made[value] = nn.Parameter(fresh, requires_grad=False)
            setattr(owner, name, made[value])
    module.to(device)


def compare_keys(path: Path, wanted: Mapping[str, tuple], got: Mapping[str, tuple]) -> None:
    """ValueError when two sets of named shapes differ, naming the file and the first keys of every kind."""
    missing = sorted(wanted.keys() - got.keys())
    extra = sorted(got.keys() - wanted.keys())
    shaped = [
        f"{k} (want {list(wanted[k])}, got {list(got[k])})"
        for k in sorted(wanted.keys() & got.keys())
        if wanted[k] != got[k]
    ]
    problems = [
        f"{kind} {quote(keys)}"
        for kind, keys in (("missing", missing), ("unknown", extra), ("mis-shaped", shaped))
        if keys
    ]
    if problems:
        raise ValueError(f"{path}: this is not a checkpoint of this model: {'; '.join(problems)}")


def compare_dtypes(path: Path, got: Mapping[str, str]) -> None:
    """ValueError that names the first keys whose dtype is none of ``DTYPES``."""
    foreign = sorted(f"{name} ({dtype})" for name, dtype in got.items() if dtype not in DTYPES)
    if foreign:
        raise ValueError(f"{path}: want weights of {', '.join(DTYPES)}, got {quote(foreign)}")
