"""What an engine is made of: a generator, rewards and a source of noise, loaded by the names in the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from runtime.backends import Backing, Place, load_backed
from runtime.generators import Generator, load_generator, load_scoring_decoder
from runtime.memory import pool_blocks
from runtime.noise import PhiloxNoise
from runtime.search import SearchPolicy, build_policy
from runtime.settings import Settings
from runtime.types import Decoder, NoiseSource, RewardModel

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """What an engine is made of. Tests and replays hand in their own; everybody else names parts in ``Settings``."""

    generator: Generator
    image: RewardModel | None  # None where the policy asks no reward
    video: RewardModel | None
    noise: NoiseSource
    final: RewardModel | None = None  # rates whole videos at the end; None: the video reward
    scoring: Decoder | None = None  # of the frames that rewards see; None: the generator's
    # What the rewards run on, by role and by the names of their models.
    backings: Mapping[str, Mapping[str, Backing]] = field(default_factory=dict)

    @property
    def running(self) -> dict[str, str]:
        """Role of a reward -> what its models run on now; an engine may have given way."""
        return {
            role: ", ".join(dict.fromkeys(one.name for one in models.values()))
            for role, models in self.backings.items()
        }

    @staticmethod
    def load(settings: Settings) -> Parts:
        run, reward, policy = settings.run, settings.reward, build_policy_of(settings)
        device, dtype = find_device(run.device), DTYPES[run.dtype]
        generator = load_generator(
            run.generator,
            device,
            dtype,
            run.ops,
            run.weights,
            run.linears,
            run.offload_text,
            run.decoder_tile,
            run.verify,
        )
        scoring = None
        if reward.decoder == "tiny" and policy.judges:
            scoring = load_scoring_decoder(run.generator, device, dtype, run.weights)
        noise = PhiloxNoise(device, dtype, run.ops)
        if not (policy.judges or policy.rates):
            return Parts(generator, None, None, noise, scoring=scoring)
        place = Place(device, dtype, run.verify)
        image, its = load_backed(reward.image, reward, place)
        video, theirs = load_backed(reward.video, reward, place)
        backings = {"image reward": its, "video reward": theirs}
        return Parts(generator, image, video, noise, scoring=scoring, backings=backings)


def build_policy_of(settings: Settings) -> SearchPolicy:
    """The search policy that ``settings`` ask for."""
    return build_policy(settings.search, settings.released, settings.memory.sinking)


def blocks_of(settings: Settings) -> int:
    """KV blocks that the search for one video can need at once."""
    run, search = settings.run, settings.search
    blocks = pool_blocks(settings.memory, build_policy_of(settings).histories, run.ranks)
    if run.schedule == "released":
        blocks += search.histories * search.expansions  # the clean pass is run for all
    if run.speculate:
        blocks += 2 * search.histories  # new blocks, and sinks merged on trial
    return blocks


def find_device(name: str) -> torch.device:
    """The device called ``name``. ValueError for no device at all, RuntimeError for one that this machine lacks."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(
            f"run.device: {name!r} cannot be used here ({reason}); use 'cpu'"
        ) from None
    return device
