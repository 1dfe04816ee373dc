"""What the GPU draws while something runs on it: samples from NVML in the background, ten a second.

    meter = Meter.open(device)          never fails: without NVML ``meter.reason`` says why there is nothing
    with meter.running(): ...           around each timed video
    meter.table(video_seconds)

Joules come from the GPU's own energy counter, or, where it has none, from the sampled power integrated over time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from runtime.bench.numbers import dist

PERIOD_SECONDS = 0.1
REASONS = {  # NVML's bits of what holds the clocks back; the names are NVML's own
    0x01: "idle",
    0x02: "application clocks",
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the GPU. None where this GPU does not tell."""

    at: float  # seconds of time.perf_counter
    watts: float | None
    sm_clock_mhz: float | None
    temperature_c: float | None
    memory_mb: float | None
    reasons: int | None


@dataclass(slots=True)
class Meter:
    """Samples one GPU while ``running``. ``gpu`` None: not available, and ``reason`` says why."""

    gpu: Gpu | None
    reason: str = ""
    samples: list[Sample] = field(default_factory=list)
    joules: float | None = None

    @staticmethod
    def open(device: torch.device) -> Meter:
        """A meter of ``device``, or one that measures nothing and knows why."""
        if device.type != "cuda":
            return Meter(None, "runs on the CPU")
        try:
            import pynvml
        except ImportError:
            return Meter(None, "nvidia-ml-py is not installed")
        try:
            pynvml.nvmlInit()
            # By its id: NVML counts all GPUs of the machine, CUDA only the visible ones.
            uuid = torch.cuda.get_device_properties(device).uuid
            return Meter(Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")))
        except pynvml.NVMLError as error:
            return Meter(None, f"NVML: {error}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample until the block ends."""
        if self.gpu is None:
            yield
            return
        stop = threading.Event()
        first = len(self.samples)
        before = self.gpu.joules()
        thread = threading.Thread(target=self._sample, args=(self.gpu, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            spent = self._spent(self.gpu, before, self.samples[first:])
            if spent is not None:
                self.joules = (self.joules or 0.0) + spent

    def table(self, video_seconds: float) -> dict[str, Any]:
        """The samples in numbers; joules per second of video made. All None where nothing was measured."""
        seen = self.samples
        columns = {
            "watts": [s.watts for s in seen],
            "sm_clock_mhz": [s.sm_clock_mhz for s in seen],
            "temperature_c": [s.temperature_c for s in seen],
            "memory_mb": [s.memory_mb for s in seen],
        }
        held = 0
        for sample in seen:
            held |= sample.reasons or 0
        available = self.gpu is not None and bool(seen)
        joules = self.joules / video_seconds if self.joules is not None and video_seconds else None
        return {
            "available": available,
            "reason": self.reason
            or (None if available else "no samples: the videos were too short"),
            **{
                name: dist([v for v in values if v is not None]) for name, values in columns.items()
            },
            "throttle_reasons": [name for bit, name in REASONS.items() if held & bit],
            "joules_per_video_second": joules,
            "samples": len(seen),
        }

    def _sample(self, gpu: Gpu, stop: threading.Event) -> None:
        while True:
            self.samples.append(gpu.look())
            if stop.wait(PERIOD_SECONDS):
                self.samples.append(gpu.look())
                return

    def _spent(self, gpu: Gpu, before: float | None, samples: list[Sample]) -> float | None:
        after = gpu.joules()
        if before is not None and after is not None:
            return after - before
        drawn = [(s.at, s.watts) for s in samples if s.watts is not None]
        pairs = list(zip(drawn, drawn[1:], strict=False))
        if not pairs:
            return None
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU behind NVML. What it does not support is None, not an error."""

    nvml: Any
    handle: Any

    def look(self) -> Sample:
        nvml, handle = self.nvml, self.handle
        milliwatts = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        sensor = nvml.NVML_TEMPERATURE_GPU
        return Sample(
            time.perf_counter(),
            None if milliwatts is None else milliwatts / 1e3,
            self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            self._ask(lambda: nvml.nvmlDeviceGetTemperature(handle, sensor)),
            None if memory is None else memory / 1e6,
            self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        )

    def joules(self) -> float | None:
        """The energy counter since the driver was loaded."""
        millijoules = self._ask(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        return None if millijoules is None else millijoules / 1e3

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self.nvml.NVMLError:
            return None
