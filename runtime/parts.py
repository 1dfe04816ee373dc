"""What an engine is made of: a generator, rewards and a source of noise, loaded by the names in the settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from runtime.generators import Generator, load_generator, load_scoring_decoder
from runtime.noise import PhiloxNoise
from runtime.rewards import load_reward
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
        image = video = None
        if policy.judges or policy.rates:
            image, video = (
                load_reward(name, run.device, reward.weights, dtype, reward.statistics)
                for name in (reward.image, reward.video)
            )
        noise = PhiloxNoise(device, dtype, run.ops)
        return Parts(generator, image, video, noise, scoring=scoring)


def build_policy_of(settings: Settings) -> SearchPolicy:
    """The search policy that ``settings`` ask for."""
    return build_policy(settings.search, settings.released, settings.memory.sinking)


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
