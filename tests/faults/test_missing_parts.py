"""Without NVML, TensorRT, flash-attn, ONNX Runtime, PyAV, a web server and a GPU: videos are made, and what is asked for is named."""

import json
import os
import subprocess
import sys

import pytest

OPTIONAL = (
    "pynvml",
    "tensorrt",
    "tensorrt_rtx",
    "flash_attn",
    "flash_attn_interface",
    "onnxruntime",
    "av",
    "fastapi",
    "uvicorn",
    "ray",
    "prometheus_client",
)
SCRIPT = """
import json, sys

OPTIONAL = set(json.loads(sys.argv[1]))

class Without:
    # Finds what another finder finds, but for what is optional.
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *args):
        missing = name.partition(".")[0] in OPTIONAL
        return None if missing else self.finder.find_spec(name, *args)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

from runtime import AsyncEngine, Request
from runtime.engine import Engine
from runtime.settings import Settings
from tests.tiny import tiny_engine

def said(call):
    try:
        return f"nothing, but {call()!r}"
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"

found = {"frames": sum(len(event.frames) for event in tiny_engine(2).stream("x"))}
with AsyncEngine(tiny_engine(2)) as many:
    found["async"] = sum(len(event.frames) for event in many.submit(Request(prompts="x")))
for name in ("fa2", "fa3", "fa4"):
    found[name] = said(lambda: tiny_engine(2, {"run.attention": name}))
for name in ("tensorrt", "tensorrt-rtx", "onnxruntime"):
    found[name] = said(lambda: Engine(Settings().with_changes({"reward.backend": name})))
found["cuda"] = said(lambda: Engine(Settings().with_changes({"run.device": "cuda"})))
found["imported"] = sorted(OPTIONAL & {name.partition(".")[0] for name in sys.modules})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict:
    """What a process found that has none of the optional packages and sees no GPU."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(OPTIONAL)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_bare_machine_makes_videos_and_imports_nothing_optional(found):
    assert found["frames"] == found["async"] == 11
    assert found["imported"] == []


@pytest.mark.parametrize("name", ["fa2", "fa3", "fa4"])
def test_attention_of_a_library_that_is_not_there_is_refused_by_name(found, name):
    assert f"run.attention={name!r}" in found[name] and "nothing" not in found[name]


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
def test_a_backend_that_is_not_there_is_refused_in_a_sentence(found, name):
    assert found[name].startswith(("ValueError: reward", "RuntimeError:")), found[name]
    assert name in found[name]


def test_a_gpu_that_is_not_there_is_named_with_what_to_use_instead(found):
    assert found["cuda"].startswith("RuntimeError: run.device: 'cuda' cannot be used here")
    assert found["cuda"].endswith("use 'cpu'")
