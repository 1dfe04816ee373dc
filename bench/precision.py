"""How far 8-bit products move what is denoised, and what they cost: python -m runtime.bench.precision

Each row: one chunk of one model from one noise, dense in float32 as the exact answer, then dense and 8-bit products in
``--dtype``. The error is that of x0 after the first pass and after the last; bfloat16's own stands beside it. Arithmetic
is the real one on any device: the reference multiplies the same 8-bit numbers that a GPU would, and sums in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.clock import time_in_turns
from runtime.bench.environment import commit, cpu_name
from runtime.generators import load_generator
from runtime.generators.linears import quantise_
from runtime.generators.schedule import Schedule, to_x0
from runtime.generators.wan import WanDiT
from runtime.generators.wan_layers import dense_attention
from runtime.settings import CHUNK_FRAMES, LINEARS

PROMPT = "a red circle moving left"
MODELS = {"sprites": "", "sprites-256": "random", "wan-1.3b": "random"}


@dataclass(frozen=True, slots=True)
class Row:
    """One way of computing one model's chunk against float32."""

    model: str
    weights: str
    linears: str  # what really ran
    dtype: str
    pass_ms: float  # one forward of one candidate, no context
    max_error_1: float  # of x0 after one pass, and after all of them
    relative_error_1: float  # |error| / |x0|, both the root of the sum of squares
    max_error: float
    relative_error: float
    passes: int
    device: str
    torch: str
    commit: str | None


def main() -> int:
    args = _arguments()
    device, rows = torch.device(args.device), []
    for model in args.models:
        for row in measure(model, device, getattr(torch, args.dtype), args.samples):
            if not rows:
                print(f"on {row.device}, torch {row.torch}, commit {row.commit}")
            rows.append(row)
            print(_line(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


@dataclass(frozen=True, slots=True)
class Subject:
    """One DiT in one precision, and a chunk to denoise with it."""

    dit: WanDiT
    embeds: Tensor  # of the prompt
    schedule: Schedule
    noise: tuple[Tensor, ...]  # a draw before every pass, [1, F, C, h, w] float32

    def to(self, dtype: torch.dtype, linears: str) -> Subject:
        """The same weights in ``dtype``, by the kernels that an engine would choose."""
        dit = copy.deepcopy(self.dit).to(dtype)
        dit.ops = "auto"
        quantise_(dit, linears)
        dit.join_()
        return replace(self, dit=dit)

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.patch_embedding.weight.dtype

    @torch.no_grad()
    def forward(self) -> Callable[[Tensor, float], Tensor]:
        """The flow of noisy latents at a timestep, of a first chunk."""
        dit, like = self.dit, self.noise[0]
        text = dit.text_context(self.embeds.to(self.dtype))
        frames = torch.arange(CHUNK_FRAMES, device=like.device)[None]
        rope = dit.rope(frames, *like.shape[-2:])
        moments = {
            t: dit.moment(torch.full((1, 1), t, dtype=torch.float64, device=like.device))
            for t in self.schedule.timesteps
        }

        @torch.no_grad()
        def flow(x: Tensor, timestep: float) -> Tensor:
            return dit(
                x, moments[timestep], text, rope, lambda layer, q, k, v: dense_attention(q, k, v)
            )

        return flow

    def chunk(self) -> Iterator[Tensor]:
        """x0 [1, F, C, h, w] after every pass."""
        flow, x0 = self.forward(), None
        steps = zip(self.schedule.timesteps, self.schedule.sigmas, self.noise, strict=True)
        for timestep, sigma, drawn in steps:
            x = drawn if x0 is None else (1 - sigma) * x0.float() + sigma * drawn
            x = x.to(self.dtype)
            x0 = to_x0(x, flow(x, timestep), sigma)
            yield x0


def subject(model: str, device: torch.device) -> Subject:
    """The named model in float32 with its draws, which are made on the host: every device sees the same."""
    generator = load_generator(
        model, device, torch.float32, weights=MODELS[model], offload_text=True
    )
    source = torch.Generator().manual_seed(0)
    noise = (
        torch.randn(1, *generator.chunk_shape, generator=source).to(device)
        for _ in generator.schedule.timesteps
    )
    embeds = generator.text.encode(PROMPT)
    return Subject(generator.dit, embeds, generator.schedule, tuple(noise))


def measure(
    model: str, device: torch.device, dtype: torch.dtype, samples: int = 10
) -> Iterator[Row]:
    """A row for every way in ``settings.LINEARS``, timed in turns, all from one set of weights."""
    exact = subject(model, device)
    want = list(exact.chunk())
    ways = {how: exact.to(dtype, how) for how in LINEARS}
    times = time_in_turns({h: _pass(way) for h, way in ways.items()}, device, samples=samples)
    for how, way in ways.items():
        got = list(way.chunk())
        yield Row(
            model,
            MODELS[model] or "trained",
            way.dit.linears,
            str(dtype).removeprefix("torch."),
            times[how].median_ms,
            *error(got[0], want[0]),
            *error(got[-1], want[-1]),
            len(got),
            torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            torch.__version__,
            commit(),
        )


def error(got: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest error and that of the whole relative to the whole."""
    off = got.double() - exact.double()
    return off.abs().max().item(), (off.norm() / exact.double().norm()).item()


def _pass(of: Subject) -> Callable[[], Tensor]:
    flow, x = of.forward(), of.noise[0].to(of.dtype)
    return lambda: flow(x, of.schedule.timesteps[0])


def _line(row: Row) -> str:
    return (
        f"{row.model:<13}{row.weights:<9}{row.linears:<25}{row.dtype:<10}{row.pass_ms:>9.2f} ms a pass   "
        f"after 1: max {row.max_error_1:.2e} relative {row.relative_error_1:.2e}   "
        f"after {row.passes}: max {row.max_error:.2e} relative {row.relative_error:.2e}"
    )


def _arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.precision", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=[name for name in MODELS if cuda or name != "wan-1.3b"],
    )
    parser.add_argument("--samples", type=int, default=10, help="most timed passes a row")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not cuda:
        parser.error("--device cuda: this machine has no usable GPU")
    if args.samples < 1:
        parser.error("--samples: want at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
