"""The floor plan as a test: imports only go down, and rooms of one floor do not know each other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "runtime": "runtime",
    "kernels": "runtime.kernels",
    "export": "runtime.export",
    "bench": "runtime.bench",
}

NOUNS = {
    "runtime.types",
    "runtime.buffers",
    "runtime.portions",
    "runtime.settings",
    "runtime.weights",
    "runtime.manifest",
    "runtime.tensorfile",
    "runtime.shards",
    "runtime.presets",
    "runtime.scenes",
    "runtime.pickles",
    "runtime.window",
    "runtime.exported",
    "runtime.kernels",
}
SERVICES = {
    "runtime.attention",
    "runtime.memory",
    "runtime.graph",
    "runtime.trt",
    "runtime.ort",
    "runtime.lanes",
    "runtime.guarding",
    "runtime.telemetry",
    "runtime.output",
    "runtime.thumbnails",
    "runtime.generators",
    "runtime.rewards",
}
ROOMS = {
    "runtime.plan",
    "runtime.noise",
    "runtime.search",
    "runtime.denoise",
    "runtime.decode",
    "runtime.grow",
    "runtime.score",
    "runtime.emit",
    "runtime.trace",
    "runtime.video",
}
HALVES = {
    "runtime.parts",
    "runtime.lines",
    "runtime.drawing",
    "runtime.remembering",
    "runtime.speculation",
    "runtime.backends",
    "runtime.standins",
    "runtime.recaching",
    "runtime.snapshot",
    "runtime.packing",
    "runtime.recipe",
    "runtime.judging",
    "runtime.settling",
    "runtime.costs",
    "runtime.budget",
}  # of the engine, too long for one file
MANY = {
    "runtime.async_engine",
    "runtime.job",
    "runtime.paced",
    "runtime.pacing",
    "runtime.request",
    "runtime.resuming",
    "runtime.riding",
    "runtime.stats",
    "runtime.turning",
}  # callers on one engine
DOORS = {
    "runtime.__init__",
    "runtime.__main__",
    "runtime.arguments",
    "runtime.catalogue",
    "runtime.convert",
    "runtime.fetch",
    "runtime.hub",
    "runtime.order",
    "runtime.pins",
    "runtime.serve",
}
# Everything may be imported here, and nothing of it in runtime/, doors included.
OUTSIDE = {"runtime.bench", "runtime.export"}

LAYERS = {  # module prefix -> what it may import from this repository, besides itself
    "runtime.kernels": {"runtime._C"},
    "runtime.settings": set(),
    "runtime.types": {"runtime.settings"},
    "runtime.buffers": {"runtime.types", "runtime.settings", "runtime.kernels"},
    "runtime.manifest": set(),
    "runtime.portions": set(),
    "runtime.tensorfile": set(),
    "runtime.shards": {"runtime.manifest", "runtime.tensorfile"},
    "runtime.window": {"runtime.types"},
    "runtime.presets": {"runtime.settings"},
    "runtime.scenes": {"runtime.settings"},
    "runtime.exported": {"runtime.weights"},
    "runtime.pickles": {"runtime.manifest", "runtime.shards", "runtime.tensorfile"},
    "runtime.weights": {"runtime.manifest", "runtime.shards"},
    **dict.fromkeys(SERVICES, NOUNS),
    **dict.fromkeys(ROOMS, NOUNS | SERVICES),
    **dict.fromkeys(HALVES, NOUNS | SERVICES | ROOMS | HALVES),
    "runtime.sizing": NOUNS | SERVICES | ROOMS | HALVES,
    "runtime.engine": NOUNS | SERVICES | ROOMS | HALVES | {"runtime.sizing"},
    **dict.fromkeys(MANY, NOUNS | SERVICES | ROOMS | HALVES | MANY | {"runtime.engine"}),
    "runtime.ranks": NOUNS | SERVICES | ROOMS | HALVES | {"runtime.engine"},
    **dict.fromkeys(DOORS | OUTSIDE, {"runtime"}),
}


def covers(prefix: str, module: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def place(module: str) -> str | None:
    """The row of LAYERS that a module belongs to."""
    return max((row for row in LAYERS if covers(row, module)), key=len, default=None)


def inside(package: str, names: list[str]) -> list[str]:
    """What taking ``names`` out of ``package`` depends on; out of ``runtime`` they may be rooms."""
    if package != "runtime":
        return [package]
    rooms = {f"runtime.{name}" for name in names if name != "__version__"}
    return sorted({room if place(room) else "runtime" for room in rooms})


def imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield (line, target) for what ``module`` takes from this repository, tables of names included."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name != "runtime"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "runtime":
            names = inside("runtime", [node.attr])
        elif isinstance(node, ast.ImportFrom):
            above = module.rsplit(".", node.level)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            names = inside(base, [alias.name for alias in node.names])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = re.findall(r"^([\w.]+):\w+$", node.value)  # a row of a table
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
        yield from ((node.lineno, name) for name in names if covers("runtime", name))


def violations(source: str, module: str) -> list[str]:
    """Say in one sentence each what ``module`` imports and may not."""
    row = place(module)
    if row is None:
        return [
            f"{module} has no place in the floor plan; give it a row in LAYERS (tests/test_layers.py)"
        ]
    allowed = LAYERS[row] | {row}
    found = []
    for line, target in imported(source, module):
        target_row = place(target) or target
        if target_row in OUTSIDE and row not in OUTSIDE:
            sentence = "nothing in runtime/ may import bench or export"
            found.append(f"{module} (line {line}) imports {target}: {sentence}")
        elif not any(covers(prefix, target) for prefix in allowed):
            found.append(
                f"{module} may import {sorted(LAYERS[row])}, but imports {target} (line {line})"
            )
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *parts)), path


def test_arrows_only_go_down():
    found = [
        sentence
        for module, path in modules()
        for sentence in violations(path.read_text(encoding="utf-8"), module)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        (
            "runtime.memory",
            "from runtime.engine import Engine",
            f"runtime.memory may import {sorted(NOUNS)}, but imports runtime.engine (line 1)",
        ),
        (
            "runtime.plan",
            "import torch\nimport runtime.noise",
            "but imports runtime.noise (line 2)",
        ),
        ("runtime.plan", "from runtime import noise", "but imports runtime.noise (line 1)"),
        ("runtime.plan", "from . import noise", "but imports runtime.noise (line 1)"),
        (
            "runtime.rewards.stub",
            "from ..generators.wan import Wan",
            "but imports runtime.generators.wan",
        ),
        (
            "runtime.rewards.stub",
            "def f():\n    from runtime.score import fuse",
            "but imports runtime.score (line 2)",
        ),
        (
            "runtime.score",
            "TABLE = {'x': 'runtime.search:Beam'}",
            "but imports runtime.search (line 1)",
        ),
        ("runtime.score", "import_module('runtime.search')", "but imports runtime.search (line 1)"),
        ("runtime.search", "from runtime import Engine", "but imports runtime (line 1)"),
        ("runtime.search", "import runtime\nruntime.Engine()", "but imports runtime (line 2)"),
        (
            "runtime.kernels.rope",
            "from runtime.types import Chunk",
            "runtime.kernels.rope may import ['runtime._C']",
        ),
        (
            "runtime.engine",
            "from runtime.bench import clock",
            "nothing in runtime/ may import bench or export",
        ),
        (
            "runtime.__main__",
            "import runtime.export",
            "nothing in runtime/ may import bench or export",
        ),
        ("runtime.helpers", "", "runtime.helpers has no place in the floor plan"),
    ],
)
def test_a_wrong_arrow_is_told_in_a_sentence(module, source, sentence):
    found = violations(source, module)
    assert len(found) == 1 and sentence in found[0], found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("runtime.kernels.philox", "from runtime.kernels.native import extension"),
        ("runtime.kernels.native", "import_module('runtime._C')"),
        ("runtime.rewards.hpsv3", "from . import preprocess\nfrom runtime.types import Scores"),
        (
            "runtime.denoise",
            "from runtime.graph import capture\nfrom runtime.kernels import philox",
        ),
        ("runtime.engine", "from runtime.search import Beam\nimport torch, numpy"),
        ("runtime.trace", "import runtime\nruntime.__version__"),
        ("runtime.trace", "from runtime import __version__"),
        ("runtime.__main__", "advice = 'python -m', 'runtime.bench'"),
        ("runtime.serve.http", "from runtime import Engine, Settings"),
        (
            "runtime.bench.__main__",
            "from runtime.export import x\nfrom runtime.engine import Engine",
        ),
    ],
)
def test_a_right_arrow_passes(module, source):
    assert violations(source, module) == []
