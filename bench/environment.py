"""Where and with what a number was taken: versions, commit, processor, GPU, and the command itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import runtime
from runtime.generators import GENERATORS
from runtime.settings import Settings, weights_home

DRIVER = Path("/proc/driver/nvidia/version")


def environment(settings: Settings, implementations: dict[str, str]) -> dict[str, Any]:
    """Everything somebody needs to take the same numbers again."""
    cuda, run = torch.cuda.is_available(), settings.run
    return {
        "runtime": runtime.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda,
        "driver": driver(),
        "device": run.device,
        "dtype": run.dtype,
        "linears": run.linears,
        "weights": weights_of(run.generator, run.weights),
        "output": output_kind(),
        "implementations": implementations,
        "seed": settings.search.seed,
    }


def weights_of(generator: str, asked: str) -> str:
    """What the generator's weights are: "packaged", "random" or the folder that they lie in."""
    if asked or generator not in GENERATORS:
        return asked or generator
    own = GENERATORS[generator].weights
    return {"package": "packaged", "given": str(weights_home() / generator)}.get(own, own)


def load() -> float | None:
    """How many processes wanted to run, on average of the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def command() -> str:
    """The running command, to be typed again."""
    return shlex.join(["python", "-m", "runtime.bench", *sys.argv[1:]])


def version(package: str) -> str | None:
    """The installed version of a package; None without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The NVIDIA driver's version; None where there is none."""
    try:
        words = DRIVER.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def output_kind() -> str:
    """What happens to finished frames inside the measured time."""
    found = importlib.util.find_spec("av") is not None
    return "encoded to MP4" if found else "packed to yuv420, not encoded: PyAV is not installed"


def host_peak_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def commit() -> str | None:
    """The checkout's commit, with ``+`` when files differ from it; None outside a checkout."""
    root = Path(runtime.__file__).parent.parent
    try:
        run = ["git", "-C", str(root)]
        head = subprocess.run(
            [*run, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
