"""The closed forms that stand in for text encoder, decoder and rewards in recorded cases, as their README states them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from runtime.engine import Engine, Parts
from runtime.generators import Generator
from runtime.generators.schedule import Schedule
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.noise import TableNoise
from runtime.settings import CHUNK_FRAMES, Settings
from runtime.types import Clip, RewardModel

FPS, TIME_STRIDE = 16, 4
FIRST_SEED = 42  # where plain cases, which record none, begin


@dataclass(frozen=True)
class Case:
    """One recorded case: its folder's five files."""

    name: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]  # golden.json
    inputs: Mapping[str, Tensor]
    golden: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    @staticmethod
    def read(folder: Path) -> Case:
        """ValueError names the file that is missing."""
        names = (
            "config.json",
            "golden.json",
            "inputs.safetensors",
            "golden.safetensors",
            "weights.safetensors",
        )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder}: not a recorded case, {', '.join(missing)} missing")
        texts = (json.loads((folder / name).read_text()) for name in names[:2])
        tensors = (load_file(folder / name) for name in names[2:])
        return Case(folder.name, *texts, *tensors)

    @property
    def chunks(self) -> int:
        return self.config["num_output_frames"] // CHUNK_FRAMES

    @property
    def kind(self) -> str:
        """ "forward" for single forwards over given caches, "search" for searches, "plain" for plain LongLive."""
        if "calls" in self.facts:
            return "forward"
        return "search" if "candidates" in self.facts else "plain"


class FixedText:
    """The recorded prompt embeddings, whatever the prompt."""

    def __init__(self, embeds: Tensor) -> None:
        self.embeds = embeds

    def encode(self, prompt: str) -> Tensor:
        return self.embeds

    def unknown_words(self, prompt: str) -> list[str]:
        return []


class LatentsAsFrames:
    """A decoder that shows the latents themselves, so that rewards can be closed forms of them."""

    def decode(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        return latents, state

    def rows(self, state: Any, rows: Sequence[int]) -> Any:
        return state

    def stack(self, states: Sequence[Any]) -> Any:
        return None


class ClosedForm:
    """One of the recorded rewards of frames x [B, T, C, h, w]; ``kind`` is "short", "long" or "final"."""

    def __init__(self, config: Mapping[str, Any], kind: str) -> None:
        self.config, self.kind = config, kind
        self.horizon = 1 if kind == "short" else config["sliding_window_size"]

    def score(self, clip: Clip) -> Tensor:
        c, n = self.config, clip.chunk
        x = clip.frames.double()
        if self.kind == "short":
            gain = c["short_gain"] * (x * self._phase(x, n, "short").cos()).mean((2, 3, 4))
            return gain.mean(1) + _wave(c["short_wave"], n)
        shift = n if self.kind == "long" else 0
        quality = c["long_gain"] * (x * self._phase(x, shift, "long").sin()).mean(
            (2, 3, 4)
        )  # [B, T]
        if self.kind == "final":
            return quality.mean(1)
        ages = torch.arange(x.shape[1] - 1, -1, -1, dtype=torch.float64)
        weights = c["long_decay"] ** ages
        return (quality * weights).sum(1) / weights.sum() + _wave(c["long_wave"], n)

    def _phase(self, x: Tensor, n: int, kind: str) -> Tensor:
        a, b, d, e = (0.7, 0.9, 1.3, 0.2) if kind == "short" else (0.5, 1.1, -0.8, 0.4)
        channels, rows, columns = (torch.arange(size, dtype=torch.float64) for size in x.shape[2:])
        plane = a * channels[:, None, None] + b * rows[:, None] + d * columns
        return plane + e + self.config[f"{kind}_phase_rate"] * n


def _wave(wave: Sequence[float], n: int) -> float:
    amplitude, rate, phase = wave
    return amplitude * torch.sin(torch.tensor(rate * n + phase, dtype=torch.float64)).item()


def build_engine(case: Case, dtype: torch.dtype, ops: str = "auto") -> Engine:
    """The real engine with the case's sizes, hyper-parameters, weights, noise table and closed-form parts."""
    c = case.config
    sizes = {
        name: c[name] for name in ("dim", "ffn_dim", "freq_dim", "text_dim", "text_len", "channels")
    }
    dit = WanDiT(DiTConfig(heads=c["num_heads"], layers=c["num_layers"], **sizes), ops)
    dit.load_state_dict({k.removeprefix("model."): v for k, v in case.weights.items()})
    generator = Generator(
        text=FixedText(case.inputs["prompt_embeds"]),
        dit=dit.to(dtype),
        decoder=LatentsAsFrames(),
        schedule=Schedule.warped(tuple(c["denoising_step_list"]), c["timestep_shift"]),
        latent_shape=(c["channels"], c["height"], c["width"]),
        fps=FPS,
        time_stride=TIME_STRIDE,
    )
    image, video, final = _rewards(case)
    settings = _settings(case).with_changes({"run.ops": ops})
    return Engine(settings, Parts(generator, image, video, _noise(case, dtype), final))


def _rewards(case: Case) -> tuple[RewardModel, RewardModel, RewardModel]:
    config = {"sliding_window_size": 1, **case.config}
    return ClosedForm(config, "short"), ClosedForm(config, "long"), ClosedForm(config, "final")


def _settings(case: Case) -> Settings:
    c = case.config
    changes: dict[str, Any] = {
        "seconds": (case.chunks * CHUNK_FRAMES * TIME_STRIDE - TIME_STRIDE + 1) / FPS,
        "memory.window_frames": c["local_attn_size"],
        "memory.sink_frames": c["sink_size"],
        "memory.keep_last": True,
        "search.horizon_chunks": case.chunks,
    }
    if case.kind == "plain":
        return Settings().with_changes(
            {**changes, "search.policy": "single", "search.seed": FIRST_SEED}
        )
    return Settings().with_changes(
        {
            **changes,
            "fidelity": "released",
            "search.histories": c["top_k"],
            "search.expansions": c["beam_size"],
            "search.seed": c["seed"],
            "noise.beta": c["noise_fusion_sigma"],
            "memory.max_sink_frames": c["max_sink_size"],
            "memory.ema_alpha": c["ema_alpha"],
            "memory.quality_threshold": c["short_threshold"],
            "memory.transition_threshold": c["long_threshold"],
            "reward.window_chunks": c["sliding_window_size"],
            "reward.tau": c["short_score_fusion_threshold"],
        }
    )


def _noise(case: Case, dtype: torch.dtype) -> TableNoise:
    inputs = case.inputs
    if case.kind == "plain":
        chunks = inputs["noise"].to(dtype).split(CHUNK_FRAMES, dim=1)
        renoise = inputs["renoise"].to(dtype)
        return TableNoise(
            {FIRST_SEED + 1000 * n: [z[0], *renoise[n]] for n, z in enumerate(chunks)}
        )
    seeds = {int(key.split("/")[1]) for key in inputs if key.startswith("noise/")}
    return TableNoise(
        {
            seed: [
                inputs[f"noise/{seed}/init"][0].to(dtype),
                *inputs[f"noise/{seed}/renoise"].to(dtype),
            ]
            for seed in seeds
        }
    )
