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
from runtime.kernels.frame_pack import rgb24, yuv420
from runtime.presets import preset
from runtime.types import Route
from tests.pretended_gpu import PretendedGPU
from tests.shallow import make_shallow

SECONDS = 4.0  # 6 chunks: the window is full after 4
RANDOM = {"run.weights": "random", "reward.weights": "random"}
pytestmark = [
    pytest.mark.skipif(not triton_lang.AVAILABLE, reason="needs Triton's launchers"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU: rehearse there"),
]
TORCH = {"run.ops": "torch", "run.attention": "sdpa", "run.graphs": "off"}
DECISION = "runtime/score.py:numbers_of"
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
            gpu.launches.clear()  # of probes, which are small
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


def known_builds():
    """What the ahead-of-time gate compiles, from every ``builds()``."""
    names = [info.name for info in pkgutil.iter_modules(runtime.kernels.__path__)]
    modules = [importlib.import_module(f"runtime.kernels.{name}") for name in names]
    sources = {module.builds for module in modules if hasattr(module, "builds")}
    return [build for source in sources for build in source()]


def check_launches(gpu):
    """Every launch is of a form that some build has; the message says how it differs from the nearest."""
    builds = known_builds()
    for launch in gpu.launches:
        own = [build for build in builds if build.kernel.fn is launch.kernel]
        ways = [launch.differs(build) for build in own]
        nearest = min(ways, key=len, default=["no build of this kernel"])
        assert not nearest, f"{launch.kernel.__name__}: {nearest}"


CASES = {
    "as the preset says": ("wan-1.3b", {}),
    "realtime": ("realtime", {}),
}
MORE = {
    "realtime, one scale": ("realtime", {"run.linears": "fp8-tensor"}),
    "torch alone": ("wan-1.3b", TORCH),
    "realtime, torch alone": ("realtime", TORCH),
    "relative positions": ("wan-1.3b", {"memory.rope": "relative"}),
    "true angles": ("wan-1.3b", {"noise.mode": "slerp"}),
    "stochastic sinks": ("wan-1.3b", {"memory.ema_storage": "stochastic"}),
    "one after the other": ("wan-1.3b", {"run.overlap": False, "run.batch_rows": 3}),
    "tiles": ("wan-1.3b", {"run.decoder_tile": 32}),
    "released": ("wan-1.3b", {"run.schedule": "released", "fidelity": "released"}),
    "rehearsed graphs": (
        "wan-1.3b",
        {"run.ops": "torch", "run.attention": "reference", "run.graphs": "rehearsal"},
    ),
}
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in MORE]


@pytest.mark.parametrize("case", [*CASES, *SLOW])
def test_a_full_size_chunk_fits_together_and_waits_once(rehearse, case):
    run = rehearse(*{**CASES, **MORE}[case])
    check_videos(run)
    check_waits(run)
    assert not run.gpu.captured
    assert run.routes == set(Route)
    assert all(record.frames.device.type == "cuda" for record in run.records)
    check_launches(run.gpu)


@pytest.mark.slow
def test_an_early_choice_reads_one_more_number_a_candidate(rehearse):
    run = rehearse("wan-1.3b", {"search.policy": "halving"})
    check_videos(run)
    check_waits(run, EARLY)
    check_launches(run.gpu)
    assert {len(record.candidates) for record in run.records} == {4}


def test_a_guess_reads_the_video_reward_before_the_decision(rehearse):
    run = rehearse("wan-1.3b", {"run.speculate": True})
    check_videos(run)
    *before, last = run.waits
    assert all(waits == Counter([DECISION, EARLY]) for waits in before)
    assert last == Counter([DECISION])  # nothing comes after it
    assert not any(run.pageable[1:])
    check_launches(run.gpu)
    assert 0 < run.engine.speculation.right < run.engine.speculation.tried


@pytest.mark.slow
def test_two_prompts_share_every_batch_and_one_decision(rehearse):
    run = rehearse("wan-1.3b", {"run.prompts": 2}, ("a boat on a lake", "a hill"))
    check_videos(run, 2)
    check_waits(run)
    check_launches(run.gpu)


@pytest.mark.slow
def test_a_new_prompt_in_mid_video_waits_no_more_than_the_first_one(rehearse):
    """The blocks are written again by launches alone; the only pageable copies are the prompts' own."""
    run = rehearse("wan-1.3b", {}, ([(0, "a boat on a lake"), (4, "a hill")],))
    check_videos(run)
    assert all(waits == Counter([DECISION]) for waits in run.waits), run.waits
    assert [bool(copies) for copies in run.pageable] == [index in (0, 4) for index in range(6)]
    assert run.pageable[4] == Counter(["runtime/generators/text.py:encode"])
    check_launches(run.gpu)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan-1.3b", "realtime"])
def test_the_published_depth_fits_together(unpoisoned, name):
    run = Rehearsal(name, {})
    check_videos(run)
    check_waits(run)
    check_launches(run.gpu)
    assert run.gpu.captures >= 2
    linears = {"wan-1.3b": "dense", "realtime": "fp8-row (scaled_mm)"}
    assert run.engine.implementations["linears"] == linears[name]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [(8, 0), (10, 0)])
def test_other_gpus_launch_what_was_compiled_for_them(rehearse, monkeypatch, capability):
    monkeypatch.setattr(PretendedGPU, "capability", capability)
    run = rehearse("wan-1.3b", {})
    check_videos(run)
    check_launches(run.gpu)


@pytest.mark.parametrize("pack", [rgb24, yuv420])
def test_frames_are_packed_by_what_was_compiled(pack):
    with PretendedGPU() as gpu:
        frames = torch.empty(12, 3, 480, 832, device="cuda", dtype=torch.bfloat16)
        assert pack(frames).device.type == "cuda"
    assert len(gpu.launches) == 1
    check_launches(gpu)
