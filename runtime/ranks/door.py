"""What the command line does when torchrun started it: meet the other ranks, build this rank's engine, part again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from runtime.engine import Engine
from runtime.parts import Parts
from runtime.ranks.agreement import check_supported
from runtime.ranks.crew import Crew
from runtime.ranks.engine import RankedEngine
from runtime.ranks.launch import Launch
from runtime.ranks.reward_engine import RewardEngine
from runtime.ranks.world import Processes
from runtime.settings import Settings


def build_maker(settings: Settings) -> Engine:
    """An engine without rewards."""
    return Engine(settings, Parts.load(settings, rewards=False))


@dataclass(frozen=True, slots=True)
class Builders:
    """What each kind of rank loads."""

    whole: Callable[[Settings], Engine] = Engine
    maker: Callable[[Settings], Engine] = build_maker
    rater: Callable[[Settings], RewardEngine] = RewardEngine.load

    def build(self, settings: Settings, crew: Crew, rank: int) -> Engine | RewardEngine:
        """The engine of ``rank``."""
        if crew.rates_only(rank):
            return self.rater(settings)
        return (self.maker if crew.raters else self.whole)(settings)


@contextlib.contextmanager
def ranked_engine(
    settings: Settings,
    launch: Launch,
    timeout_s: float,
    builders: Builders,
    reward_ranks: int = 0,
) -> Iterator[RankedEngine]:
    """This rank's engine among the others. Whatever ends it early, the others are told why."""
    crew = Crew(launch.size, reward_ranks)
    check_supported(settings, crew)
    mine = {"run.device": device_of(settings.run.device, launch), "run.ranks": crew.makers}
    settings = settings.with_changes(mine)
    world = Processes.join(launch, torch.device(settings.run.device), timeout_s)
    try:
        engine = builders.build(settings, crew, launch.rank)
        yield RankedEngine(engine, world, reward_ranks)
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
