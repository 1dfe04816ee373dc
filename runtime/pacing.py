"""Budget mode of a running video: before each chunk its recipe becomes what the pace allows, after it the costs are learnt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from runtime.budget import WALL, Budget, Choice
from runtime.costs import Costs
from runtime.engine import Engine
from runtime.lines import Line
from runtime.recipe import Recipe
from runtime.settings import CHUNK_FRAMES


class Pacing:
    """One video's budget, and the clock that it keeps to. A reader's pause does not count."""

    def __init__(self, engine: Engine, recipe: Recipe, pace_fps: float, costs: Costs) -> None:
        self.engine, self.asked = engine, recipe
        settings, stride = recipe.settings, engine.parts.generator.time_stride
        most = settings.search.histories, settings.search.expansions, settings.reward.stride
        frames = (CHUNK_FRAMES - 1) * stride + 1, CHUNK_FRAMES * stride
        self.budget = Budget(pace_fps, most, costs, frames)
        self._choice: Choice | None = None
        self._since = time.monotonic()

    def chosen(self, line: Line) -> Line:
        """The line with the recipe of its next chunk. Asked again before the chunk is made, it is the same."""
        if self._choice is None:
            self._choice = self.budget.choose(line.index, len(line.survivors))
        choice = self._choice
        changes = {
            "search.histories": choice.histories,
            "search.expansions": choice.expansions,
            "reward.stride": choice.stride,
        }
        settings = self.asked.settings.with_changes(changes)
        if settings == line.video.recipe.settings:
            return line
        recipe = self.engine.recipe_of(settings)
        # Memory was set aside for what was asked for, and a snapshot goes on with that.
        recipe = replace(recipe, blocks=self.asked.blocks, asked=self.asked.settings)
        return replace(line, video=replace(line.video, recipe=recipe))

    def paused(self) -> None:
        """Nobody reads: the time until now is not the engine's."""
        self._since = time.monotonic()

    def made(self, rows: int, kept: int, frames: int, stage_ms: Mapping[str, float], share: float) -> None:  # fmt: skip
        """Learn what the chunk took; ``share`` is this video's part of the turn's rows."""
        assert self._choice is not None, "a chunk was made that nobody chose for"
        now = time.monotonic()
        spent = {**stage_ms, WALL: 1e3 * (now - self._since)}
        self.budget.observe(self._choice, rows, kept, frames, spent, share)
        self._choice, self._since = None, now
