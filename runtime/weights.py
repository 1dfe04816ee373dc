"""Fills modules: from files that may be corrupt, cut short or somebody else's, and it says so before it takes memory;
or with random numbers, for timing, since speed does not depend on the values."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

LISTED = 4  # names quoted in an error
MAX_CONFIG_BYTES = 1 << 20
DTYPES = ("F64", "F32", "F16", "BF16")  # as a file's header calls them


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. ValueError names the file when it is missing, too large or not an object."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; a checkpoint is a .safetensors file with its .json beside it"
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


def load_weights_(
    module: nn.Module,
    path: Path,
    shared: Mapping[str, str] = MappingProxyType({}),
    unused: Collection[str] = (),
) -> None:
    """Fill ``module`` (built on the meta device or not) from a safetensors file, in the file's dtype.

    The header is compared first: every missing, unexpected or mis-shaped key and every dtype that is not a float's is a
    ValueError that names the file and the keys before a tensor is read. ``shared`` maps names of the module to the name
    its one tensor has in the file; the file may also hold ``unused`` names, which are not read.
    """
    state = module.state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items() if name not in shared}
    tensors = read_tensors(path, wanted, unused)
    module.load_state_dict(
        tensors | {name: tensors[source] for name, source in shared.items()}, assign=True
    )
    for name, source in shared.items():  # one parameter again, or it would move and be stored twice
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(source))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Every key of a safetensors file and its shape, from the header alone. ValueError for a file that is none."""
    with _opened(path) as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def read_tensors(
    path: Path, wanted: Mapping[str, tuple[int, ...]], unused: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose keys and shapes are exactly ``wanted``, finite floats all of them.

    Raises ValueError as ``load_weights_`` says.
    """
    shapes = {key: shape for key, shape in read_shapes(path).items() if key not in unused}
    compare_keys(path, wanted, shapes)
    with _opened(path) as file:
        compare_dtypes(path, {name: file.get_slice(name).get_dtype() for name in wanted})
        tensors = {name: file.get_tensor(name) for name in wanted}
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(
            f"{path}: {quote(bad)} not finite; the file is damaged, fetch or copy it again"
        )
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}); fetch or copy it again"
        ) from None


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


def quote(keys: list[str]) -> str:
    """The first few keys and how many more there are."""
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(keys[:LISTED]) + more
