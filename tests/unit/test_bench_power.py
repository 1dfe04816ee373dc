"""What NVML tells, by a fake NVML: samples while something runs, energy, what this GPU does not know."""

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from runtime.bench.power import Meter

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


class FakeNvml(ModuleType):
    """A GPU of 200 W whose counter runs with the wall clock."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self, without=()):
        super().__init__("pynvml")
        self.without, self.began, self.asked = set(without), time.perf_counter(), []

    def _tell(self, name, value):
        if name in self.without:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self):
        self._tell("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._tell("power", 200_000)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=self._tell("memory", 3_000_000_000))

    def nvmlDeviceGetClockInfo(self, handle, kind):
        assert kind == self.NVML_CLOCK_SM
        return self._tell("clock", 1980)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return self._tell("temperature", 61)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self._tell("reasons", 0x04 | 0x40)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self._tell("energy", int((time.perf_counter() - self.began) * 200_000))


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(without=...)`` puts a fake NVML in place."""

    def put(without=()):
        fake = FakeNvml(without)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        properties = SimpleNamespace(uuid="1234-abcd")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        return fake

    return put


def run(meter, seconds=0.25):
    began = time.perf_counter()
    with meter.running():
        time.sleep(seconds)
    return time.perf_counter() - began


def test_samples_come_while_it_runs_and_only_then(gpu):
    fake = gpu()
    meter = Meter.open(CUDA)
    run(meter)
    time.sleep(0.25)
    table = meter.table(video_seconds=1.0)
    assert fake.asked == ["GPU-1234-abcd"]  # not by index: CUDA may count other GPUs than NVML
    assert table["available"] and table["reason"] is None and table["samples"] >= 2
    assert table["watts"]["median"] == 200.0 and table["sm_clock_mhz"]["max"] == 1980
    assert table["temperature_c"]["p95"] == 61 and table["memory_mb"]["median"] == 3000.0
    assert table["throttle_reasons"] == ["software power cap", "hardware thermal slowdown"]


@pytest.mark.parametrize("without", [(), ("energy",)], ids=["counter", "integrated"])
def test_energy_is_that_of_all_runs_per_second_of_video(gpu, without):
    gpu(without)
    meter = Meter.open(CUDA)
    seconds = run(meter) + run(meter)
    joules = meter.table(video_seconds=2.0)["joules_per_video_second"]
    assert (
        joules <= 200 * seconds / 2 * 1.001
    )  # 200 W for as long as it ran, looked at from outside
    assert joules >= (200 * 0.25 if not without else 1.0)  # the counter knows of all of it


def test_what_a_gpu_does_not_tell_is_nothing_and_no_error(gpu):
    gpu(("power", "clock", "temperature", "memory", "reasons", "energy"))
    meter = Meter.open(CUDA)
    run(meter, 0.01)
    table = meter.table(1.0)
    assert table["available"] and table["watts"]["median"] is None and table["watts"]["count"] == 0
    assert table["throttle_reasons"] == [] and table["joules_per_video_second"] is None


def test_without_nvml_there_is_a_reason_and_no_numbers(gpu, monkeypatch):
    assert Meter.open(CPU).table(1.0)["reason"] == "runs on the CPU"
    gpu(("init",))
    assert Meter.open(CUDA).reason == "NVML: Not Supported"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = Meter.open(CUDA)
    run(meter, 0.0)
    table = meter.table(1.0)
    assert not table["available"] and table["reason"] == "nvidia-ml-py is not installed"
    assert table["watts"]["p50"] is None and table["joules_per_video_second"] is None


def test_a_video_that_fails_stops_the_sampling(gpu):
    gpu()
    meter = Meter.open(CUDA)
    with pytest.raises(RuntimeError), meter.running():
        raise RuntimeError
    taken = len(meter.samples)
    time.sleep(0.15)
    assert len(meter.samples) == taken
