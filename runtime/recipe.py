"""What one video's own settings make of an engine: how its candidates are drawn, judged, kept and remembered.

Videos of one engine share weights, memory and batches, and differ in all that is here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from runtime.generators import Generator
from runtime.memory import KVPool, MemoryKeeper
from runtime.parts import blocks_of, build_policy_of
from runtime.plan import chunks_for
from runtime.score import Scorer
from runtime.search import SearchPolicy
from runtime.settings import MemorySettings, NoiseSettings, Settings

# Of ``reward`` only these may differ between the videos of one engine: the rest is built into it.
OWN_REWARD = ("window_chunks", "tau", "stride", "on_error")
# How much an engine holds is no video's business.
NOBODYS = ("prompts", "memory_share", "verify")


@dataclass(frozen=True)
class Recipe:
    """The rooms that a video's settings shape."""

    settings: Settings
    asked: Settings  # by the caller: where a budget chooses, not what the next chunk is made with
    policy: SearchPolicy
    mixing: NoiseSettings | None  # None: the noise of every chunk is fresh
    memory: MemorySettings  # without sinking where the policy does not route
    keeper: MemoryKeeper
    scorer: Scorer
    chunks: int  # of the whole video
    blocks: int  # KV blocks that the search can need at once

    @property
    def window_chunks(self) -> int:
        return self.settings.reward.window_chunks

    @property
    def together(self) -> tuple[int, ...]:
        """Equal for recipes whose candidates can share a batch: all do the same passes before a choice."""
        return (self.policy.draft_passes,)


def build_recipe(settings: Settings, generator: Generator, pool: KVPool, scorer: Scorer) -> Recipe:
    """The recipe of ``settings``; ``scorer`` is that of the settings, too.

    ValueError for a search that ``pool`` has no room for, or a choice that would leave no pass to do.
    """
    policy, blocks = build_policy_of(settings), blocks_of(settings)
    if blocks > pool.blocks:
        raise ValueError(
            f"search.histories: want at most {pool.blocks} KV blocks for a video, which is what the engine has, "
            f"got {blocks}; lower search.histories or memory.max_sink_frames"
        )
    passes = generator.schedule.passes
    if policy.draft_passes >= passes:
        raise ValueError(
            f"search.draft_passes: want fewer than the {passes} passes of a chunk, got {policy.draft_passes}"
        )
    memory = settings.memory if policy.sinks else replace(settings.memory, sinking=False)
    return Recipe(
        settings,
        settings,
        policy,
        settings.noise if policy.propagates else None,
        memory,
        MemoryKeeper(memory, pool, settings.released, settings.search.seed),
        scorer,
        chunks_for(settings.seconds, generator.fps, generator.time_stride),
        blocks,
    )


def check_own(settings: Settings, engine: Settings, judges: bool) -> None:
    """ValueError for what a video cannot have of its own in an engine that was built with other settings.

    ``judges``: the engine has rewards.
    """
    for room in ("run", "reward"):
        mine, its = getattr(settings, room), getattr(engine, room)
        for field in dataclasses.fields(mine):
            if field.name in (OWN_REWARD if room == "reward" else NOBODYS):
                continue
            wanted, got = getattr(its, field.name), getattr(mine, field.name)
            if wanted != got:
                raise ValueError(
                    f"{room}.{field.name}: want {wanted!r}, with which this engine was built, got {got!r}"
                )
    if settings.fidelity != engine.fidelity:
        raise ValueError(
            f"fidelity: want {engine.fidelity!r}, with which this engine was built, got {settings.fidelity!r}"
        )
    policy = build_policy_of(settings)
    if (policy.judges or policy.rates) and not judges:
        raise ValueError(
            f"search.policy: {settings.search.policy!r} wants rewards, and this engine was built without: "
            f"build it with a policy that has them"
        )
