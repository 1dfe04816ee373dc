"""Engine parts small enough to run a whole search in milliseconds, with random weights and rewards in closed form.

Legend: B rows, F latent frames of a chunk, T frames, C latent channels, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runtime.bench.golden.parts import FixedText
from runtime.engine import Engine, Parts
from runtime.generators import Generator, StreamingVAE
from runtime.generators.schedule import Schedule
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.noise import PhiloxNoise, TableNoise
from runtime.settings import Settings
from runtime.types import Clip, Draws

CHANNELS, SIDE = 4, 2
STEPS = (1000, 500)
STRIDE = 2  # of ``Echo``
Judge = Callable[
    [Tensor, int], float
]  # frames [T, C, h, w] of one clip, index of its newest chunk -> score


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scrambled(module: nn.Module, by: float = 0.1) -> nn.Module:
    """Every weight moved off its ones and zeros, so that a swapped norm or bias shows."""
    source = generator_of(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=source), alpha=by)
    return module.eval()


def tiny_dit(layers: int = 1, dtype: torch.dtype = torch.float64) -> WanDiT:
    config = DiTConfig(
        dim=24,
        heads=2,
        layers=layers,
        ffn_dim=24,
        freq_dim=8,
        text_dim=6,
        text_len=4,
        channels=CHANNELS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = WanDiT(config)
    return scrambled(dit).to(dtype)


def tiny_vae() -> StreamingVAE:
    """The real autoencoder: 4 frames per latent frame after the first, as Wan's."""
    config = VAEConfig(
        latent_channels=CHANNELS,
        base_dim=4,
        dim_mult=(1, 1, 1),
        res_blocks=1,
        space_downsample=(True, False),
        time_downsample=(True, True),
        mid_attention=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StreamingVAE(WanVAE(config))


class Echo:
    """A decoder with a memory: two frames per latent frame after the first, each an echo of all that came before."""

    time_stride = STRIDE

    def decode(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        frames = []
        for latent in latents.unbind(1):
            if state is None:
                state = latent
                frames += [latent]
            else:
                state = 0.5 * state + latent
                frames += [state, latent - state]
        assert state is not None
        return torch.stack(frames, dim=1), state

    def rows(self, state: Tensor, rows: Sequence[int]) -> Tensor:
        return state[list(rows)]

    def stack(self, states: Sequence[Tensor | None]) -> Tensor | None:
        known = [state for state in states if state is not None]
        return torch.cat(known) if known else None


class Likes:
    """A reward that judges one clip at a time by ``judge``."""

    def __init__(self, judge: Judge, horizon: int = 1) -> None:
        self.judge, self.horizon = judge, horizon

    def score(self, clip: Clip) -> Tensor:
        scores = [self.judge(frames, clip.chunk) for frames in clip.frames]
        return torch.tensor(scores, dtype=torch.float64)


class ByRow:
    """A reward that looks at nothing: ``scores(chunk, rows)`` gives one number per row."""

    horizon = 1

    def __init__(self, scores: Callable[[int, int], Sequence[float]]) -> None:
        self.scores = scores

    def score(self, clip: Clip) -> Tensor:
        return torch.tensor(self.scores(clip.chunk, len(clip.frames)), dtype=torch.float64)


def prettiness(frames: Tensor, chunk: int) -> float:
    """An image reward in closed form: the mean over a plane of waves that drifts from chunk to chunk."""
    return 4 * _against_waves(frames, 1.7, 0.2 + 0.8 * chunk).mean().item()


def motion(frames: Tensor, chunk: int) -> float:
    """A video reward in closed form: newer frames weigh more, so order and length of the clip matter."""
    ages = torch.arange(len(frames) - 1, -1, -1, dtype=torch.float64)
    weights = 0.9**ages
    values = _against_waves(frames, 2.3, 0.4 + 0.55 * chunk)
    return 8 * ((values * weights).sum() / weights.sum()).item()


def _against_waves(frames: Tensor, rate: float, phase: float) -> Tensor:
    x = frames.double().flatten(1)  # [T, C * h * w]
    return (x * torch.cos(rate * torch.arange(x.shape[1], dtype=torch.float64) + phase)).mean(1)


REWARDS = {"image": Likes(prettiness), "video": Likes(motion, 10)}


class SeedNoise(TableNoise):
    """Draws that depend on seed and draw alone, as recorded tables do."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype

    def one(self, seed: int, draw: int, shape: Sequence[int]) -> Tensor:
        source = generator_of(1_000_003 * draw + seed)
        return torch.randn(tuple(shape), generator=source, dtype=torch.float64).to(self.dtype)

    def draw(self, draws: Draws, shape: tuple[int, ...]) -> Tensor:
        return torch.stack([self.one(seed, draws.number, shape) for seed in draws.seeds])


def tiny_engine(
    chunks: int,
    changes: Mapping[str, Any] | None = None,
    *,
    dit: WanDiT | None = None,
    steps: tuple[int, ...] = STEPS,
    decoder: Any = None,
    **parts: Any,
) -> Engine:
    """An engine of tiny parts that makes ``chunks`` chunks; ``parts`` are ``image``, ``video``, ``noise``, ``final``."""
    dit = dit or tiny_dit()
    dtype = dit.patch_embedding.weight.dtype
    decoder = decoder or Echo()
    stride = decoder.vae.config.time_stride if isinstance(decoder, StreamingVAE) else STRIDE
    embeds = torch.randn(1, 3, dit.config.text_dim, generator=generator_of(1))
    generator = Generator(
        text=FixedText(embeds),
        dit=dit,
        decoder=decoder,
        schedule=Schedule.warped(steps),
        latent_shape=(CHANNELS, SIDE, SIDE),
        fps=stride,  # so that a chunk lasts three seconds
        time_stride=stride,
    )
    defaults = {**REWARDS, "noise": PhiloxNoise(torch.device("cpu"), dtype, "torch")}
    return Engine(settings_of(chunks, changes or {}), Parts(generator, **{**defaults, **parts}))


def settings_of(chunks: int, changes: Mapping[str, Any]) -> Settings:
    """Of ``tiny_engine``: a chunk lasts three seconds."""
    return Settings().with_changes({"seconds": 3.0 * chunks, **changes})
