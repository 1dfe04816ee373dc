"""What it saves that siblings share pictures and beginnings in VideoAlign: four candidates whose window of ten chunks is full.

    python -m runtime.bench.sharing                     a small random network on the CPU
    python -m runtime.bench.sharing --device cuda       the published size at 832x480, random weights, bfloat16

Every way is timed in turns with the plain one in the same run, and checked against it: a row is worth no more than its error.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import torch

from runtime.bench.clock import Times, time_in_turns
from runtime.bench.environment import commit, cpu_name
from runtime.rewards import load_reward
from runtime.rewards.qwen2vl import Qwen2VLConfig
from runtime.rewards.qwen2vl_judge import Judge, Kind, PixelBounds
from runtime.rewards.qwen2vl_text import DecoderConfig
from runtime.rewards.qwen2vl_vision import VisionConfig
from runtime.rewards.videoalign import KIND, VideoAlign, sampled_frames
from runtime.types import Clip
from runtime.window import Window

FPS = 16
CHUNKS = 9  # before the newest
STORIES = {  # how many of the nine chunks all four hold, each pair of siblings its own from there on
    "one parent": 9,
    "two parents, one grandparent": 8,
    "two parents, parted three chunks ago": 6,
    "two parents that share nothing": 0,
}
SMALL = Qwen2VLConfig(
    DecoderConfig(
        hidden_size=192,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1024,
    ),
    VisionConfig(depth=4, embed_dim=160, num_heads=4),
)


def small(kind: Kind = KIND) -> Kind:
    """The published kind with an eighth of its width and its tokens' proportions: 60 a picture, 226 of text."""
    return replace(
        kind, config=SMALL, pixels=PixelBounds(60 * 28 * 28, 60 * 28 * 28), filler_tokens=226
    )


def window(shared: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Window:
    """Two pairs of siblings that hold the first ``shared`` chunks together; 9 frames in the first and 12 in the others."""
    source = torch.Generator(device).manual_seed(0)

    def frames(count: int) -> torch.Tensor:
        return torch.rand(count, 3, *size, generator=source, device=device, dtype=dtype)

    chunks = [frames(12 if index else 9) for index in range(CHUNKS)]
    other = [*chunks[:shared], *(frames(len(chunk)) for chunk in chunks[shared:])]
    newest = torch.stack([frames(12) for _ in range(4)])
    return Window(newest, tuple(map(tuple, (chunks, chunks, other, other))))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.sharing", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget-ms", type=float, default=12_000.0)
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    full = device.type == "cuda"
    dtype, size = (torch.bfloat16, (480, 832)) if full else (torch.float32, (168, 280))
    place = torch.cuda.get_device_name() if full else cpu_name()
    reward = VideoAlign(Judge.random(KIND if full else small(), device, dtype))
    print(f"{place}, {dtype}, commit {commit()}; {reward.nbytes / 1e9:.2f} GB of random weights")
    print(
        "| four candidates | pictures | TFLOP | median ms (p20 to p80) | times as fast | largest difference |"
    )
    print("|---|---|---|---|---|---|")
    for name, shared in STORIES.items():
        print(row(name, window(shared, size, device, dtype), reward, asked.budget_ms))
    print("| four candidates | embedded reward, median ms (p20 to p80) | times as fast | equal |")
    print("|---|---|---|---|")
    small_reward = load_reward("sprites-video", str(device))
    for name, shared in STORIES.items():
        recent = window(shared, (96, 96), device, torch.float32)
        print(embedded_row(name, recent, small_reward, asked.budget_ms / 4))
    return 0


def embedded_row(name: str, recent: Window, reward: Any, budget_ms: float) -> str:
    """One story for the embedded video reward, which looks at every different frame once."""
    seen = reward.picks(recent.frames, FPS)
    plain = Clip(recent.pick(seen), "a red circle", FPS, CHUNKS, picked=True)
    shared = replace(plain, twins=recent.twins(seen))
    ways = {"plain": lambda: reward.score(plain), "shared": lambda: reward.score(shared)}
    times = time_in_turns(ways, recent.newest.device, budget_ms=budget_ms)
    got, base = times["shared"], times["plain"]
    same = torch.equal(reward.score(plain), reward.score(shared))
    times_as_fast = base.median_ms / got.median_ms
    return f"| {name} | {_spread(got)} of {_spread(base)} | {times_as_fast:.2f} | {same} |"


def row(name: str, recent: Window, reward: VideoAlign, budget_ms: float) -> str:
    """One story, shared and plain, as a line of a table."""
    seen = sampled_frames(recent.frames, FPS)
    twins = recent.twins(seen)
    plain = Clip(recent.pick(seen), "", FPS, CHUNKS, picked=True)
    shared = replace(plain, twins=twins)
    device = recent.newest.device
    ways = {"plain": lambda: reward.score(plain), "shared": lambda: reward.score(shared)}
    times = time_in_turns(ways, device, budget_ms=budget_ms)
    error = (reward.score(plain) - reward.score(shared)).abs().max().item()
    size = recent.newest.shape[-2:]
    flops = reward.flops_together(recent.twins(range(recent.frames)), *size, FPS)
    all_flops = 4 * reward.flops(recent.frames, *size, FPS)
    pictures = len(reward.prepare(shared).patches)
    got, base = times["shared"], times["plain"]
    return (
        f"| {name} | {pictures} of {4 * len(seen) // 2} | {flops / 1e12:.3g} of {all_flops / 1e12:.3g} | "
        f"{_spread(got)} of {_spread(base)} | "
        f"{base.median_ms / got.median_ms:.2f} ({all_flops / flops:.2f} by FLOPs) | {error:.1e} |"
    )


def _spread(times: Times) -> str:
    return f"{times.median_ms:.0f} ({times.p20_ms:.0f} to {times.p80_ms:.0f})"


if __name__ == "__main__":
    sys.exit(main())
