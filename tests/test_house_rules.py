"""House rules that a reader would check by eye: host reads, graph capture, dead APIs, file sizes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 350
CODE = {".py", ".h", ".cpp", ".cu", ".cuh"}
HOST_READS = {"item", "cpu", "tolist"}
# At or above the engine, or where a value leaves the device for good.
MAY_READ = (
    "runtime/__main__.py",
    "runtime/emit.py",
    "runtime/engine.py",
    "runtime/generators/schedule.py",  # a table of a thousand numbers, made once on the host
    "runtime/ranks/",
    "runtime/score.py",
    "runtime/serve/",
    "runtime/telemetry.py",
    "runtime/thumbnails.py",
    "runtime/trace.py",
    "runtime/video.py",
)
CAPTURE = {"torch.cuda.graph", "torch.cuda.CUDAGraph", "torch.cuda.make_graphed_callables"}


def broken(source: str, path: str) -> Iterator[str]:
    """Yield a sentence for every house rule that ``source``, a Python file at ``path``, breaks."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args:
            below_engine = path.startswith(("runtime/", "kernels/")) and not path.startswith(
                MAY_READ
            )
            if node.func.attr in HOST_READS and below_engine:
                yield (
                    f"{path}:{node.lineno}: .{node.func.attr}() waits for the GPU; "
                    "decide on the host before, or read at or above the engine"
                )
        if isinstance(node, ast.Attribute):
            if ast.unparse(node) in CAPTURE and path != "runtime/graph.py":
                yield f"{path}:{node.lineno}: {ast.unparse(node)} has one home, runtime/graph.py"
            if node.attr == "make_block_ptr":
                yield (
                    f"{path}:{node.lineno}: make_block_ptr was removed upstream; "
                    "use plain pointers or tensor descriptors"
                )


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in CODE)


def test_house_rules_hold():
    found = [
        sentence
        for path in files("runtime", "kernels", "export", "bench")
        if path.suffix == ".py"
        for sentence in broken(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]
    assert not found, "\n" + "\n".join(found)


def test_files_stay_short():
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in files("runtime", "kernels", "export", "bench", "tests", "csrc")
    }
    long = [f"{path} has {lines} lines" for path, lines in sizes.items() if lines > MAX_LINES]
    assert not long, f"want at most {MAX_LINES} lines, one noun a file: {'; '.join(long)}"


@pytest.mark.parametrize(
    ("path", "source", "sentence"),
    [
        ("runtime/memory.py", "n = x.sum().item()", ".item() waits for the GPU"),
        ("kernels/rope.py", "x = y.cpu()", ".cpu() waits for the GPU"),
        (
            "runtime/rewards/stub.py",
            "\nz = x.tolist()",
            "runtime/rewards/stub.py:2: .tolist() waits",
        ),
        ("runtime/denoise.py", "with torch.cuda.graph(g): pass", "torch.cuda.graph has one home"),
        ("bench/rope.py", "g = torch.cuda.CUDAGraph()", "torch.cuda.CUDAGraph has one home"),
        ("kernels/attention.py", "p = tl.make_block_ptr(q)", "make_block_ptr was removed upstream"),
    ],
)
def test_a_broken_rule_is_told_in_a_sentence(path, source, sentence):
    found = list(broken(source, path))
    assert len(found) == 1 and sentence in found[0], found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("runtime/engine.py", "n = x.item()"),
        ("runtime/serve/http.py", "n = x.tolist()"),
        ("bench/rope.py", "n = x.cpu()"),
        ("runtime/memory.py", "'x.item() would wait'"),
        ("runtime/graph.py", "with torch.cuda.graph(g): pass"),
    ],
)
def test_a_kept_rule_passes(path, source):
    assert list(broken(source, path)) == []
