"""What ``python -m runtime.export`` wrote: reads a folder's export.json, checks every entry and, if asked, every byte.

    DIR/<reward>/export.json, the graphs it names, their data files beside them, engines built from them in engines/

Everything in the file is somebody else's word: names may not leave the folder, shapes and dtypes are looked at before a
runtime sees them. ``python -m runtime.export`` writes the same nouns back with ``to_json``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.weights import read_config

FORMAT = 1
FILE = "export.json"
ENGINES = "engines"  # folder of what was built from the graphs
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
DTYPES = ("float32", "float16", "bfloat16", "int64")  # of inputs and outputs, as torch calls them
RANDOM = "random"  # stands for the hash of weights that were drawn
MAX_GRAPHS, MAX_PORTS, MAX_RANK, MAX_PROFILES = 8, 16, 8, 64
MAX_SIDE = 1 << 24  # of a shape
READ_BYTES = 1 << 22

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # least, most usual, largest


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: its dtype, and its shape in numbers and names of axes that are free."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One graph: its file, what goes in and out, and the ranges of shapes that engines are built for."""

    name: str
    file: str
    sha256: str
    data: Mapping[str, str]  # file that holds the weights -> its sha256
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]
    profiles: tuple[Mapping[str, Range], ...]  # of every input, free axes filled in

    @property
    def files(self) -> dict[str, str]:
        """Every file of the graph and its sha256."""
        return {self.file: self.sha256, **self.data}


@dataclass(frozen=True, slots=True)
class Exported:
    """A reward as graphs."""

    folder: Path
    reward: str
    precision: str
    weights_sha256: str  # of the weights that the graphs were made from, or "random"
    versions: Mapping[str, str]
    largest_difference: Mapping[str, float]  # to torch, as measured; empty where it was not
    constants: Mapping[str, Any]  # facts that the reward needs: grid, buckets, words
    graphs: Mapping[str, GraphSpec]
    verified: str = ""  # by what, or why not

    def path(self, graph: str) -> Path:
        """Where the graph's .onnx lies."""
        return self.folder / self.graphs[graph].file

    def to_json(self) -> str:
        """The content of export.json."""
        table = {"format": FORMAT, **asdict(self)}
        del table["folder"]
        for graph in table["graphs"].values():
            del graph["name"]
        return json.dumps(table, indent=1) + "\n"

    def verify(self) -> None:
        """ValueError that names the first file whose bytes are not those that were written."""
        for graph in self.graphs.values():
            for name, wanted in graph.files.items():
                got = sha256_of(self.folder / name)
                if got != wanted:
                    raise ValueError(
                        f"{self.folder / name}: want sha256 {wanted[:16]}..., got {got[:16]}...; "
                        f"the file is damaged or was replaced, export {self.reward} again"
                    )


def read_export(folder: Path) -> Exported:
    """What export.json in ``folder`` says. ValueError names the file and the entry that is missing or wrong."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; `python -m runtime.export REWARD -o DIR` writes it"
        )
    table = read_config(path)
    try:
        return _exported(folder, table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def sha256_of(path: Path) -> str:
    """Of a file, read in pieces. ValueError when it is not there."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(READ_BYTES):
                digest.update(piece)
            return digest.hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); export again") from None


def weights_sha256(path: Path) -> str:
    """Of the weights at ``path``, a .safetensors file or the first name of its shards, as export.json keeps it.

    One file: its hash. Shards: the hash of their names and hashes, in order. A manifest.json beside them is believed,
    since whoever reads the weights holds them against it.
    """
    files = [path] if path.is_file() else sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))  # fmt: skip
    if not files:
        raise ValueError(f"{path}: no such file")
    known = _manifest(path.parent)
    hashes = [known.get(file.name) or sha256_of(file) for file in files]
    if len(files) == 1:
        return hashes[0]
    lines = "".join(f"{digest}  {file.name}\n" for digest, file in zip(hashes, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, str]:
    """File -> sha256 of a manifest, where there is one that says so."""
    if not (folder / "manifest.json").is_file():
        return {}
    files = read_config(folder / "manifest.json").get("files")
    entries = files.items() if isinstance(files, dict) else ()
    return {
        name: entry["sha256"]
        for name, entry in entries
        if isinstance(entry, dict) and _is_sha256(entry.get("sha256"))
    }


def _exported(folder: Path, table: Mapping[str, Any]) -> Exported:
    if table.get("format") != FORMAT:
        raise ValueError(f"format: want {FORMAT}, got {table.get('format')!r}; export again")
    reward, precision = _text(table, "reward"), _text(table, "precision")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: want one of {', '.join(PRECISIONS)}, got {precision!r}")
    weights = _text(table, "weights_sha256")
    if weights != RANDOM and not _is_sha256(weights):
        raise ValueError(f"weights_sha256: want 64 hexadecimal digits, got {weights[:80]!r}")
    versions, differences = _table(table, "versions"), _table(table, "largest_difference")
    if not all(isinstance(value, str) for value in versions.values()):
        raise ValueError("versions: want texts")
    if not all(isinstance(value, (int, float)) for value in differences.values()):
        raise ValueError("largest_difference: want numbers")
    graphs = _table(table, "graphs", MAX_GRAPHS)
    if not graphs:
        raise ValueError("graphs: want at least one")
    return Exported(
        folder=folder,
        reward=reward,
        precision=precision,
        weights_sha256=weights,
        versions=versions,
        largest_difference=differences,
        constants=_table(table, "constants"),
        graphs={
            name: _graph(name, _object(entry, f"graphs.{name}")) for name, entry in graphs.items()
        },  # fmt: skip
        verified=_text(table, "verified") if "verified" in table else "",
    )


def _graph(name: str, entry: Mapping[str, Any]) -> GraphSpec:
    where = f"graphs.{name}"
    _safe(name, "graphs")
    inputs, outputs = (
        {
            port: _port(value, f"{where}.{side}.{port}")
            for port, value in _table(entry, side, MAX_PORTS).items()
        }  # fmt: skip
        for side in ("inputs", "outputs")
    )
    if not inputs or not outputs:
        raise ValueError(f"{where}: want inputs and outputs")
    data = _table(entry, "data") if "data" in entry else {}
    for file, digest in {_text(entry, "file"): entry.get("sha256"), **data}.items():
        _safe(file, where)
        if not _is_sha256(digest):
            raise ValueError(f"{where}: want the sha256 of {file}, got {str(digest)[:80]!r}")
    profiles = entry.get("profiles", [])
    if not isinstance(profiles, list) or len(profiles) > MAX_PROFILES:
        raise ValueError(f"{where}.profiles: want a list of at most {MAX_PROFILES}")
    return GraphSpec(
        name=name,
        file=entry["file"],
        sha256=entry["sha256"],
        data=data,
        inputs=inputs,
        outputs=outputs,
        profiles=tuple(_profile(profile, inputs, f"{where}.profiles") for profile in profiles),
    )


def _port(value: Any, where: str) -> Port:
    entry = _object(value, where)
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if dtype not in DTYPES:
        raise ValueError(f"{where}.dtype: want one of {', '.join(DTYPES)}, got {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_side, shape)):
        raise ValueError(
            f"{where}.shape: want at most {MAX_RANK} numbers of at least 1 or names of axes, got {shape!r}"
        )
    return Port(dtype, tuple(shape))


def _profile(value: Any, inputs: Mapping[str, Port], where: str) -> dict[str, Range]:
    entry = _object(value, where)
    if set(entry) != set(inputs):
        raise ValueError(f"{where}: want ranges of {sorted(inputs)}, got {sorted(entry)}")
    return {name: _range(entry[name], port, f"{where}.{name}") for name, port in inputs.items()}


def _range(value: Any, port: Port, where: str) -> Range:
    fits = isinstance(value, list) and len(value) == 3
    for shape in value if fits else ():
        fits = fits and isinstance(shape, list) and len(shape) == len(port.shape)
        fits = fits and all(
            _is_side(got) and got == (want if isinstance(want, int) else got)
            for got, want in zip(shape, port.shape, strict=True)
        )
    if not fits or not all(
        isinstance(low, int) and isinstance(high, int) and low <= usual <= high
        for low, usual, high in zip(*value, strict=True)
    ):
        raise ValueError(
            f"{where}: want three rising shapes like {list(port.shape)}, got {value!r}"
        )
    low, usual, high = (tuple(shape) for shape in value)
    return low, usual, high


def _safe(name: str, where: str) -> None:
    """A bare file name; nothing that could leave the folder or hide in it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise ValueError(f"{where}: want a plain file name, got {name[:80]!r}")


def _is_side(value: Any) -> bool:
    if isinstance(value, str):
        return value.isidentifier()
    return type(value) is int and 1 <= value <= MAX_SIDE


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _text(table: Mapping[str, Any], name: str) -> str:
    if not isinstance(table.get(name), str):
        raise ValueError(f"{name}: want a text, got {table.get(name)!r}")
    return table[name]


def _table(table: Mapping[str, Any], name: str, most: int = 1 << 10) -> Mapping[str, Any]:
    value = _object(table.get(name), name)
    if len(value) > most:
        raise ValueError(f"{name}: want at most {most} entries, got {len(value)}")
    return value


def _object(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: want an object, got {type(value).__name__}")
    return value
