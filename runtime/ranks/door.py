"""What the command line does when torchrun started it: meet the other ranks, build this rank's engine, part again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from runtime.engine import Engine
from runtime.ranks.agreement import check_supported
from runtime.ranks.engine import RankedEngine
from runtime.ranks.launch import Launch
from runtime.ranks.world import Processes
from runtime.settings import Settings


@contextlib.contextmanager
def ranked_engine(
    settings: Settings, launch: Launch, timeout_s: float, build: Callable[[Settings], Engine]
) -> Iterator[RankedEngine]:
    """This rank's engine among the others. Whatever ends it early, the others are told why."""
    check_supported(settings)
    mine = {"run.device": device_of(settings.run.device, launch), "run.ranks": launch.size}
    settings = settings.with_changes(mine)
    world = Processes.join(launch, torch.device(settings.run.device), timeout_s)
    try:
        yield RankedEngine(build(settings), world)
    except BaseException as error:
        world.leave(f"{error}" or type(error).__name__)
        raise
    world.leave()


def device_of(name: str, launch: Launch) -> str:
    """The rank's own device. ValueError for one that all would share, RuntimeError for a rank without a GPU."""
    if torch.device(name).type != "cuda":
        return name
    if torch.device(name).index is not None:
        raise ValueError(f"run.device: want cuda, of which each rank takes its own, got {name}")
    if launch.local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"rank {launch.rank} has no GPU of its own: this machine has {torch.cuda.device_count()}; "
            "start as many processes as it has GPUs"
        )
    torch.cuda.set_device(launch.local_rank)
    return f"cuda:{launch.local_rank}"
