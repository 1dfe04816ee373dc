"""What every test runs under: fresh memory is NaN, Triton is interpreted if there is no GPU."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(4, os.cpu_count() or 1))
# torch notes once, here and not under the fixture below, which functions a device context redirects.
with torch.device("meta"):
    torch.empty(0)
SERVER = ["faults/test_http_*.py", "faults/test_worker_*.py", "faults/test_ray_*.py",
          "faults/test_orphaned_videos.py", "unit/test_serv*.py", "unit/test_bench_load.py"]  # fmt: skip
VIDEO = ["faults/test_door.py", "unit/test_door.py", "unit/test_trace.py", "unit/test_video.py",
         "faults/test_rank_*.py", "unit/test_resumed_files.py", *SERVER]  # fmt: skip
# A GPU box without PyAV or the server's packages can still run everything else.
if importlib.util.find_spec("av") is None:
    collect_ignore_glob = VIDEO
elif importlib.util.find_spec("fastapi") is None:
    collect_ignore_glob = SERVER
if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # The same examples on every run, and no failure because a shared machine was slow.
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.load_profile("repeatable")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def _poisoned(allocate):
    def allocate_nan(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.detach().fill_(float("nan"))
        return tensor

    return allocate_nan


@pytest.fixture(autouse=True)
def nan_in_uninitialised_memory(monkeypatch):
    """A kernel that leaves a value unwritten must not pass because memory happened to hold zeros."""
    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]:
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
