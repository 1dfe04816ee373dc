"""The whole engine at 832 x 480 with the published models' sizes, on a GPU that is only pretended: nothing is computed,
but every shape, dtype and device must fit, the host must not wait inside a chunk, and launches must be known forms."""

import importlib
import pkgutil
from collections import Counter

import pytest
import torch

import runtime.kernels
from runtime.engine import Engine
from runtime.kernels import triton_lang
from runtime.settings import preset
from runtime.types import Route
from tests.pretended_gpu import PretendedGPU
from tests.shallow import make_shallow

SECONDS = 5.0  # 7 chunks: the window is full after 4
RANDOM = {"run.weights": "random", "reward.weights": "random"}
TORCH = {"run.ops": "torch", "run.attention": "sdpa", "run.graphs": "off"}
DECISION = "runtime/score.py:decide"
EARLY = "runtime/score.py:on_host"


class Rehearsal:
    """What one run did: its videos, and per chunk what the host waited for."""

    def __init__(self, name, changes, prompts=("a boat on a lake",), seconds=SECONDS):
        settings = preset(name).with_changes({**RANDOM, "seconds": seconds, **changes})
        self.records, self.events, self.waits, self.pageable = [], [], [], []
        with PretendedGPU() as gpu:
            self.gpu, self.engine = gpu, Engine(settings)
            gpu.waits.clear()
            gpu.pageable.clear()
            for _, event in self.engine.stream_many(prompts, watch=self._watch):
                self.events.append(event)
            self.last_waits = list(gpu.waits)

    def _watch(self, record):
        self.records.append(record)
        if record.stage_ms:  # the last of a turn
            self.waits.append(Counter(self.gpu.waits))
            self.pageable.append(Counter(self.gpu.pageable))
            self.gpu.waits.clear()
            self.gpu.pageable.clear()

    @property
    def routes(self):
        return {c.route for record in self.records for c in record.candidates}


@pytest.fixture
def rehearse(monkeypatch, tmp_path, unpoisoned):
    make_shallow(monkeypatch, tmp_path)
    return Rehearsal


@pytest.fixture
def unpoisoned(monkeypatch):
    """Fresh memory is not filled here: there is none."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, getattr(torch._C._VariableFunctions, name))
    monkeypatch.setattr(torch.Tensor, "new_empty", torch._C.TensorBase.new_empty)


def check_videos(run, videos=1):
    chunks = run.engine.chunks
    assert sorted(event.index for event in run.events) == sorted([*range(chunks)] * videos)
    for event in run.events:
        frames = 9 if event.index == 0 else 12
        assert event.frames.shape == (frames, 3, 480, 832)
        assert event.latents.shape == (3, 16, 60, 104)
        for tensor in (event.frames, event.latents):
            assert tensor.device.type == "cuda" and tensor.dtype == torch.bfloat16
    assert run.engine.pool.used == 0


def check_waits(run, *more):
    """One decision a chunk is read, and ``more``; nothing comes from pageable memory once the prompt is known."""
    assert all(waits == Counter([DECISION, *more]) for waits in run.waits), run.waits
    assert not any(run.pageable[1:]), run.pageable


CASES = {
    "reference ops": ("wan-1.3b", TORCH),
    "rehearsed graphs": ("wan-1.3b", {"run.ops": "torch", "run.attention": "reference", "run.graphs": "rehearsal"}),
    "as the preset says": ("wan-1.3b", {}),
    "rewards beside nothing": ("wan-1.3b", {"run.overlap": False, "run.batch_rows": 3, "run.decoder_tile": 32}),
    "released": ("wan-1.3b", {"run.schedule": "released", "fidelity": "released"}),
    "relative positions": ("wan-1.3b", {"memory.rope": "relative"}),
    "realtime": ("realtime", {}),
    "realtime, one scale": ("realtime", {"run.linears": "fp8-tensor"}),
    "realtime, reference ops": ("realtime", TORCH),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_full_size_chunk_fits_together_and_waits_once(rehearse, case):
    run = rehearse(*CASES[case])
    check_videos(run)
    check_waits(run)
    assert not run.gpu.captured
    assert run.routes == set(Route)
    assert all(record.frames.device.type == "cuda" for record in run.records)
