"""How much memory a run will take, item by item, before anything is built; and what to change if it is too much.

    plan = plan_memory(settings)
    print(plan.table())         plan.fits, plan.advice

Weights, pool and states are counted from the real modules on the meta device, which take none. Activations are the most
that lives at once while one real forward runs there, so they follow the code. Items marked "about" are estimates: what
libraries and captured graphs keep for themselves is not ours to count.

What is not needed at the same time is not added up: a phase's items count where their phase is the largest.
Legend: B rows of a batch, S tokens of a chunk, E model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from runtime import rewards
from runtime.generators import find_folder
from runtime.generators.footprint import Decoded, blueprint, decoding, forward_peak
from runtime.generators.linears import weight_bytes
from runtime.memory import pool_blocks
from runtime.parts import DTYPES
from runtime.plan import chunks_for
from runtime.rewards import PUBLISHED
from runtime.rewards.ensemble import members_of
from runtime.search import build_policy
from runtime.settings import CHUNK_FRAMES, MAX_CANDIDATES, MAX_PROMPTS, RunSettings, Settings
from runtime.types import Trajectory
from runtime.weights import read_shapes

GIB = 1 << 30
PHASES = ("always", "text", "denoise", "decode", "reward")
TINY_DECODER = 11_300_000  # weights of a decoder of TAEHV's form, about
STEPS_OF_ADVICE: tuple[tuple[str, Callable[[Settings], Any]], ...] = (
    ("run.offload_text", lambda s: True),
    ("run.decoder_rows", lambda s: 1),
    ("run.decoder_tile", lambda s: 32),
    ("run.batch_rows", lambda s: 1),
    ("run.prompts", lambda s: max(1, s.run.prompts // 2)),
    ("memory.max_sink_frames", lambda s: s.memory.sink_frames),
    ("search.expansions", lambda s: max(1, s.search.expansions // 2)),
    ("search.histories", lambda s: max(1, s.search.histories // 2)),
    ("run.linears", lambda s: "fp8-row"),
)


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """Something that takes memory. ``phase`` is when: "always", or only while one of ``PHASES`` runs."""

    name: str
    nbytes: int
    phase: str = "always"
    exact: bool = True


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run takes on its device. ``budget`` is what it may take, None where nobody can know."""

    items: tuple[MemoryItem, ...]
    budget: int | None
    block_bytes: int
    history_blocks: int  # one more history needs
    advice: str = ""

    @property
    def total(self) -> int:
        """At the fullest moment: what always lies there and the largest phase."""
        return self.during("always") + max(self.during(phase) for phase in PHASES[1:])

    @property
    def fits(self) -> bool | None:
        """None where there is no budget to compare with."""
        return None if self.budget is None else self.total <= self.budget

    def during(self, phase: str) -> int:
        return sum(item.nbytes for item in self.items if item.phase == phase)

    def table(self) -> str:
        """The plan as lines of text."""
        lines = [
            f"{item.name:<44}{'' if item.exact else 'about':>6}{item.nbytes / GIB:>9.3f} GiB  {item.phase}"
            for item in self.items
        ]
        lines.append(f"{'at the fullest moment':<50}{self.total / GIB:>9.3f} GiB")
        if self.budget is not None:
            verdict = "fits" if self.fits else "does not fit"
            lines.append(f"{'budget':<50}{self.budget / GIB:>9.3f} GiB  {verdict}")
        per_history = self.history_blocks * self.block_bytes / GIB
        lines.append(
            f"one more history: {self.history_blocks} KV blocks of {self.block_bytes / 2**20:.0f} MiB, "
            f"{per_history:.3f} GiB; one more candidate: none before it survives"
        )
        return "\n".join(lines + ([self.advice] if self.advice else []))


def plan_memory(settings: Settings, free_bytes: int | None = None) -> MemoryPlan:
    """What ``settings`` take. ``free_bytes`` is the device's free memory; None: ask the device, if it is here.

    With ``run.prompts`` 0 the plan is that of as many prompts as fit, or of one.
    """
    free = free_memory(settings.run) if free_bytes is None else free_bytes
    if settings.run.prompts == 0:
        count = 1 if free is None else max(1, prompts_that_fit(settings, free))
        settings = settings.with_changes({"run.prompts": count})
    plan = _plan(settings, free)
    return replace(plan, advice=_advice(settings, plan, free)) if plan.fits is False else plan


def prompts_that_fit(settings: Settings, free_bytes: int) -> int:
    """The most prompts that can ride one batch; 0 where not even one fits."""

    def fits(count: int) -> bool:
        return bool(_plan(settings.with_changes({"run.prompts": count}), free_bytes).fits)

    few, many = 0, 1
    most = max(1, MAX_CANDIDATES // _rows(settings))
    while many <= most and fits(many):
        few, many = many, 2 * many
    many = min(many, most + 1)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(middle) else (few, middle)
    return few


def most_prompts(settings: Settings, *, loaded: bool = False) -> int:
    """The prompts that ride one batch when as many as fit are asked for, before weights are loaded.

    ValueError when they are, RuntimeError where not even one fits.
    """
    if loaded:
        raise ValueError(
            "run.prompts=0: what fits is counted before weights are loaded; give a number with parts of your own"
        )
    free = free_memory(settings.run)
    if free is None:
        raise RuntimeError(
            "run.prompts=0: this machine does not say how much memory is free; give a number of prompts"
        )
    count = prompts_that_fit(settings, free)
    if count < 1:
        plan = plan_memory(settings, free)
        raise RuntimeError(
            f"run.prompts=0: not even one prompt fits into {free / GIB:.1f} GiB of free memory; {plan.advice}"
        )
    return min(count, MAX_PROMPTS)


def free_memory(run: RunSettings) -> int | None:
    """Free bytes of the run's device; None where this machine cannot say."""
    if torch.device(run.device).type == "cuda":
        return torch.cuda.mem_get_info(run.device)[0] if torch.cuda.is_available() else None
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def _plan(settings: Settings, free: int | None) -> MemoryPlan:
    sizes = Sizes(settings)
    budget = None if free is None else int(free * settings.run.memory_share)
    items = (*_weights(sizes), *_memories(sizes), *_histories(sizes), *_work(sizes))
    kept = tuple(item for item in items if item.nbytes)
    return MemoryPlan(kept, budget, sizes.block_bytes, settings.memory.max_blocks)


def _advice(settings: Settings, plan: MemoryPlan, free: int | None) -> str:
    """The first single change that is enough, in the order of ``STEPS_OF_ADVICE``, or how far all of them lead."""
    together: dict[str, Any] = {}
    for name, better in STEPS_OF_ADVICE:
        change = {name: better(settings)}
        if settings.with_changes(change) == settings:
            continue
        if _plan(settings.with_changes(change), free).fits:
            return f"it would fit with {name} = {change[name]}"
        together |= change
        smaller = _plan(settings.with_changes(together), free)
        if smaller.fits and len(together) > 1:
            found = ", ".join(f"{key} = {value}" for key, value in together.items())
            return f"no single change is enough; it would fit with {found}"
    smallest = _plan(settings.with_changes(together), free)
    return (
        f"it does not fit even with {', '.join(together)} at their smallest, which take "
        f"{smallest.total / GIB:.1f} GiB of {(plan.budget or 0) / GIB:.1f}; use a device with more memory"
    )


class Sizes:
    """The numbers that every part of a plan asks for."""

    def __init__(self, settings: Settings) -> None:
        run, self.settings = settings.run, settings
        self.dtype = DTYPES[run.dtype]
        self.itemsize = self.dtype.itemsize
        self.source = find_folder(run.generator, run.weights or "random")[
            0
        ]  # sizes need no weights
        self.plan = blueprint(self.source)
        self.policy = build_policy(settings.search, settings.released, settings.memory.sinking)
        self.histories = run.prompts * self.policy.histories
        self.rows = run.prompts * _rows(settings)
        wasteful = run.schedule == "released"
        self.batch = 1 if wasteful else min(self.rows, run.batch_rows or self.rows)
        self.spare = settings.search.histories * settings.search.expansions if wasteful else 0
        self.chunk_values = CHUNK_FRAMES * torch.Size(self.plan.latent_shape).numel()
        stride, (rows, columns) = self.plan.vae.config.time_stride, self.plan.recipe.frame_size
        self.frames_bytes = CHUNK_FRAMES * stride * 3 * rows * columns * self.itemsize
        length = chunks_for(settings.seconds, self.plan.recipe.fps, stride)
        self.chunks = min(length, settings.search.horizon_chunks)
        self.decoded = min(self.rows, run.decoder_rows or self.batch)

    @property
    def block_bytes(self) -> int:
        return torch.Size(self.plan.block_shape).numel() * self.itemsize

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.settings.run.device).type == "cuda"


def _rows(settings: Settings) -> int:
    """Candidates of one prompt at a chunk, the most there are."""
    policy = build_policy(settings.search, settings.released, settings.memory.sinking)
    survivors = (Trajectory(),) * policy.histories
    return max(len(policy.expand(survivors, index)) for index in (0, 1))


def _weights(sizes: Sizes) -> list[MemoryItem]:
    settings, plan = sizes.settings, sizes.plan
    text = MemoryItem(
        "text encoder, weights",
        _numel(plan.text) * sizes.itemsize,
        "text" if settings.run.offload_text else "always",
    )
    items = [
        MemoryItem("DiT, weights", weight_bytes(plan.dit, sizes.dtype, settings.run.linears)),
        text,
        MemoryItem("decoder, weights", _numel(plan.vae) * sizes.itemsize),
    ]
    if settings.reward.decoder == "tiny":
        size = TINY_DECODER * sizes.itemsize
        items.append(MemoryItem("decoder for the rewards, weights", size, exact=False))
    if sizes.policy.judges or sizes.policy.rates:
        for name in (settings.reward.image, settings.reward.video):
            items.append(MemoryItem(f"reward {name}, weights", reward_bytes(name)))
    return items


def reward_bytes(expression: str) -> int:
    """Bytes of the weights of a reward or of an ensemble's members; 0 for one that has none or is unknown here."""
    return sum(_member_bytes(name) for name in members_of(expression))


def _member_bytes(name: str) -> int:
    if name in PUBLISHED:
        return 2 * PUBLISHED[name][0]
    folder, _, leaf = name.partition("-")
    path = Path(rewards.__file__).parent / folder / f"{leaf}.safetensors"
    if not path.is_file():
        return 0
    return 4 * sum(torch.Size(shape).numel() for shape in read_shapes(path).values())


def _memories(sizes: Sizes) -> list[MemoryItem]:
    """The pool and what belongs to it."""
    settings, config = sizes.settings, sizes.plan.dit.config
    blocks = settings.run.prompts * pool_blocks(settings.memory, sizes.policy.histories)
    blocks += sizes.spare
    items = [MemoryItem(f"KV pool, {blocks} blocks", blocks * sizes.block_bytes)]
    storage = settings.memory.ema_storage
    shadowed = storage == "fp32_shadow" or (storage == "auto" and not settings.released)
    if shadowed and sizes.itemsize < 4 and sizes.policy.sinks:
        shadow = sizes.block_bytes // sizes.itemsize * 4
        items.append(MemoryItem("merged sinks in float32, at most", sizes.histories * shadow))
    token_bytes = sizes.plan.block_shape[1] * config.dim * sizes.itemsize  # [S, E]
    if settings.run.attention in ("triton", "reference") or (
        settings.run.attention == "auto" and sizes.on_gpu
    ):
        working = 3 * sizes.batch * token_bytes
    else:  # every row's context in one piece, all layers
        longest = settings.memory.max_blocks
        working = sizes.batch * (2 * config.layers * longest + 1) * token_bytes
    items.append(MemoryItem("attention, working buffers", working))
    prompts = 1 if settings.run.prompts == 1 else sizes.rows
    text = 2 * config.layers * config.text_len * config.dim * sizes.itemsize
    items.append(MemoryItem("prompts' keys and values", prompts * text))
    return items


def _decoding(sizes: Sizes) -> Decoded:
    return decoding(sizes.source, sizes.decoded, sizes.dtype, sizes.settings.run.decoder_tile)


def _histories(sizes: Sizes) -> list[MemoryItem]:
    """What survivors carry: frames and latents until they are settled, noise, a row of the decoder's state."""
    carried = max(sizes.chunks, min(sizes.settings.reward.window_chunks, sizes.chunks))
    values = (carried + 1) * sizes.chunk_values * sizes.itemsize
    state = _decoding(sizes).state_bytes
    return [
        MemoryItem("histories, frames", sizes.histories * carried * sizes.frames_bytes),
        MemoryItem("histories, latents and noise", sizes.histories * values),
        MemoryItem("histories, decoder states", sizes.histories * state),
    ]


def _work(sizes: Sizes) -> list[MemoryItem]:
    """What lives only while a stage runs."""
    settings, rows, batch = sizes.settings, sizes.rows, sizes.batch
    decoded = _decoding(sizes)
    forward = forward_peak(sizes.source, batch, sizes.dtype)
    if settings.run.linears != "dense":  # the widest activation once more, in one byte
        forward += batch * sizes.plan.block_shape[1] * sizes.plan.dit.config.ffn_dim
    captured = settings.run.graphs == "cuda" or (settings.run.graphs == "auto" and sizes.on_gpu)
    name = "captured graphs, private pool" if captured else "denoising, activations"
    stacked = sizes.decoded * decoded.state_bytes if sizes.decoded > 1 else 0
    made = rows * (decoded.state_bytes + sizes.frames_bytes)  # by decoding, until the choice
    items = [
        MemoryItem(name, forward, "always" if captured else "denoise", exact=False),
        MemoryItem("candidates, latents", 3 * rows * sizes.chunk_values * sizes.itemsize, "always"),
        MemoryItem("candidates, frames and states", made, "decode"),
        MemoryItem("parents' decoder states, stacked", stacked, "decode"),
        MemoryItem("decoding, activations", decoded.peak_bytes, "decode", exact=False),
    ]
    if not sizes.policy.judges:
        return items
    window = min(settings.reward.window_chunks, sizes.chunks) * sizes.frames_bytes
    names = {*members_of(settings.reward.image), *members_of(settings.reward.video)}
    busy = sum(PUBLISHED[name][1] for name in names & PUBLISHED.keys())
    return [
        *items,
        MemoryItem("candidates, frames and states", made, "reward"),
        MemoryItem("candidates, window of frames", 2 * rows * window, "reward"),
        MemoryItem("rewards, activations", busy, "reward", exact=False),
    ]


def _numel(module: nn.Module) -> int:
    """Weights, one that is known under two names counted once."""
    return sum(weight.numel() for weight in module.parameters())
