"""What a rank that only judges has instead of an engine: rewards and a video's facts, but no generator and no KV memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from runtime.emit import Emitter
from runtime.generators import find_folder
from runtime.generators.folder import read_pace
from runtime.generators.wan import TextContext
from runtime.guarding import guards_of
from runtime.lanes import Lanes
from runtime.lines import Line, Video
from runtime.memory import KVPool, Lease, MemoryKeeper
from runtime.parts import Rewards, build_policy_of, find_device
from runtime.plan import chunks_for
from runtime.recipe import Recipe, build_scorer
from runtime.scenes import Scene
from runtime.score import Place
from runtime.search import SearchPolicy
from runtime.settings import Settings
from runtime.telemetry import StageClock
from runtime.types import Watch

UNREAD = TextContext((), ())  # nobody here draws by a prompt


@dataclass(frozen=True, slots=True)
class Film:
    """What the generator's sizes say of a video's time."""

    fps: int
    time_stride: int  # pixel frames per latent frame

    @staticmethod
    def of(settings: Settings) -> Film:
        """Of the generator that ``settings`` name; none of its weights is read. ValueError where it is unknown."""
        folder, _ = find_folder(settings.run.generator, settings.run.weights)
        return Film(*read_pace(folder))


class RewardEngine:
    """Asks the rewards about what other ranks drew. Knows every video as ``Engine`` does, and has no tensor of it."""

    def __init__(self, settings: Settings, rewards: Rewards, film: Film) -> None:
        self.settings, self.rewards, self.fps = settings, rewards, film.fps
        device = find_device(settings.run.device)
        self.clock = StageClock(device)
        self.lanes = Lanes(device, settings.run.overlap)
        models = {"image": rewards.image, "video": rewards.video, "final": rewards.final}
        self.guards = guards_of(models, settings.reward.deadline_s)
        self.pool = KVPool(0, (2, 1, 1, 1), torch.float32, device, settings.run.ops)
        self.chunks = chunks_for(settings.seconds, film.fps, film.time_stride)
        self.recipe = self._recipe()

    @staticmethod
    def load(settings: Settings) -> RewardEngine:
        """With the rewards that ``settings`` name."""
        return RewardEngine(settings, Rewards.load(settings), Film.of(settings))

    @property
    def policy(self) -> SearchPolicy:
        return self.recipe.policy

    @property
    def implementations(self) -> dict[str, str]:
        """What the rewards run on."""
        return self.rewards.running

    def unknown_words(self, prompt: str) -> list[str]:
        """None that it knows of: the tokeniser is where the generator is."""
        return []

    def begin(
        self, recipe: Recipe, scenes: tuple[Scene, ...], lease: Lease, watch: Watch | None = None
    ) -> Line:
        """A video before its first chunk."""
        emitter = Emitter(recipe.settings.search.horizon_chunks)
        return Line(Video(0, scenes, scenes[0], UNREAD, recipe, lease, emitter, watch), ())

    def ready(self, line: Line) -> Line:
        """The line in the scene of its next chunk, which is judged by frames of its own alone."""
        if line.scene is line.video.scene:
            return line
        fresh = tuple(replace(one, frames=()) for one in line.survivors)
        return replace(line, video=replace(line.video, scene=line.scene), survivors=fresh)

    def place(self, line: Line) -> Place:
        """As ``Engine.place``."""
        video = line.video
        return Place(video.prompt, self.fps, line.index, self.chunks, video.number)

    def _recipe(self) -> Recipe:
        settings = self.settings
        return Recipe(
            settings=settings,
            asked=settings,
            policy=build_policy_of(settings),
            mixing=None,
            memory=settings.memory,
            keeper=MemoryKeeper(settings.memory, self.pool, settings.released),
            scorer=build_scorer(settings, self.guards, settings.run.batch_rows),
            chunks=self.chunks,
            blocks=0,
        )
