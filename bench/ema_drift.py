"""How far a sink really moves: 100 merges in bfloat16 under every storage of ``ema_merge``, against float64.

The keys and values are the embedded model's own: the first chunk of one long video is the sink, every later chunk is
merged into it with alpha 0.999, so the intended sink walks 9.5 % of the way from one to the others. "Reached" is the part
of the float64 trajectory's step that a storage makes, along that step. An element's error is counted in units in the last
place of the bfloat16 value it should be; values under 1/16 count as 1/16.

    python -m runtime.bench.ema_drift --plot docs/ema-drift.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from runtime.engine import Engine
from runtime.kernels.ema_merge import Ema, ema_merge_, ema_merge_reference
from runtime.settings import Settings
from runtime.types import ChunkRecord

ALPHA = 0.999
MERGES = 100
PROMPT = "a red circle moving right quickly on a navy background"
STORAGES = ("fp32_shadow", "stochastic", "released")
COLOURS = {"fp32_shadow": "#1b6ca8", "stochastic": "#e08e1b", "released": "#b3352b"}
MEANING = {
    "fp32_shadow": "fp32 shadow (default)",
    "stochastic": "stochastic rounding",
    "released": "released code: three bf16 roundings",
}


Blocks = Sequence[tuple[Tensor, int]]  # blocks [P, S, H, D] and the frames they were born at


@dataclass
class Drift:
    """One storage's walk."""

    reached: list[float] = field(
        default_factory=list
    )  # part of the intended step, after each merge
    intended: list[float] = field(default_factory=list)  # length of that step over the last one's
    errors: Tensor = field(
        default_factory=lambda: torch.empty(0)
    )  # at the end, in ulps, [elements]
    unmoved: float = 0.0  # share of the elements that are what they were at the start


def model_blocks(merges: int) -> Blocks:
    """What the embedded model remembers of the chunks of one video, in bfloat16."""
    changes = {"search.policy": "single", "run.dtype": "bfloat16", "memory.keep_last": True}
    seconds = (merges + 1) * 12 / 16
    engine = Engine(Settings(seconds=seconds).with_changes(changes))
    blocks: list[tuple[Tensor, int]] = []

    def keep(record: ChunkRecord) -> None:
        newest = max(record.survivors[0].memory.slots, key=lambda slot: slot.start_frame)
        blocks.append((engine.pool.kv[:, newest.block].clone(), newest.start_frame))

    for _ in engine.stream(PROMPT, watch=keep):
        pass
    return blocks


def walk(storage: str, blocks: Blocks, impl: str = "auto", device: str = "cpu") -> Drift:
    """Merge every later block into the first, in its dtype and in float64."""
    (sink, born), *line = blocks
    sink = sink.clone().to(device)
    shadow = torch.empty(sink.shape, dtype=torch.float32, device=device)
    shadow_out = shadow if storage == "fp32_shadow" else None
    start = sink.double()
    exact, drift, lengths = start, Drift(), []
    for step, (evicted, frame) in enumerate(line):
        evicted, how = evicted.to(device), Ema(ALPHA, born - frame, storage, 42, step)
        shadow_in = shadow_out if step else None
        ema_merge_(sink, sink, evicted, how, shadow_in=shadow_in, shadow_out=shadow_out, impl=impl)
        exact = ema_merge_reference(exact, evicted.double(), Ema(ALPHA, born - frame))
        wanted, made = exact - start, sink.double() - start
        drift.reached.append(((made * wanted).sum() / wanted.square().sum()).item())
        lengths.append(wanted.norm().item())
    drift.intended = [length / lengths[-1] for length in lengths]
    drift.errors = ((sink.double() - exact) / ulp(exact)).flatten()
    drift.unmoved = (sink.double() == start).double().mean().item()
    return drift


def ulp(x: Tensor) -> Tensor:
    """The distance between neighbouring bfloat16 values at x, at 1/16 for anything smaller."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x.abs().clamp_min(1 / 16)).exponent - 8)


def draw(drifts: dict[str, Drift], path: Path) -> None:
    """Left: the way gone after every merge. Right: what is wrong with each element at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import to_rgb

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.0), width_ratios=(1.25, 1))
    merges = len(drifts["released"].reached)
    steps = range(merges + 1)
    intended = [0.0, *(100 * part for part in drifts["released"].intended)]
    left.plot(steps, intended, color="#222222", lw=4.5, alpha=0.25, label="intended (float64)")
    for name, drift in drifts.items():
        parts = zip(drift.reached, drift.intended, strict=True)
        made = [0.0, *(100 * reached * part for reached, part in parts)]
        dashes = (0, (4, 4)) if name == "stochastic" else "-"
        label = f"{MEANING[name]}: {made[-1]:.1f} %"
        left.plot(steps, made, color=COLOURS[name], lw=2, ls=dashes, label=label)
    left.set(xlabel="merges", ylabel="% of the intended drift", xlim=(0, merges), ylim=(-3, 112))
    left.set_title(f"{merges} chunks merged into a bfloat16 sink, alpha = {ALPHA}", fontsize=10)
    left.legend(frameon=False, fontsize=8.5, loc="upper left")
    bins = [b - 0.5 for b in range(-40, 42)]
    for name, drift in reversed(drifts.items()):
        right.hist(
            drift.errors.clamp(-40, 40).tolist(),
            bins=bins,
            weights=[100 / drift.errors.numel()] * drift.errors.numel(),
            histtype="stepfilled",
            facecolor=(*to_rgb(COLOURS[name]), 0.35),
            edgecolor=COLOURS[name],
            lw=1.3,
        )
    right.set(
        xlabel="error of an element in ulps (outer bars: 40 and more)",
        ylabel="% of elements",
        yscale="log",
    )
    right.set_title(f"after {merges} merges", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Walk with every storage, print the table, draw it if asked."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.ema_drift", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--merges", type=int, default=MERGES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path, help="write a PNG or SVG here")
    options = parser.parse_args(argv)
    if options.merges < 1:
        parser.error("--merges: want at least 1")
    blocks = model_blocks(options.merges)
    drifts = {name: walk(name, blocks, device=options.device) for name in STORAGES}
    print(
        f"{'storage':<14}{'drift reached':>14}{'never moved':>13}{'mean error':>12}{'largest':>10}  ulps"
    )
    for name, drift in drifts.items():
        mean, largest = drift.errors.mean().item(), drift.errors.abs().max().item()
        reached = f"{drift.reached[-1]:>14.1%}{drift.unmoved:>13.1%}"
        print(f"{name:<14}{reached}{mean:>12.3f}{largest:>10.2f}")
    if options.plot:
        draw(drifts, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
