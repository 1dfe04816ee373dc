"""The nouns of the line: what a candidate, its memory, its scores and a chunk of finished video are. All frozen.

Legend: B rows, F latent frames of a chunk, C latent channels, h x w latent size, T pixel frames, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


class Route(Enum):
    """What happens to a chunk's keys and values when it leaves the window."""

    DISCARD = "discard"
    EMA = "ema"
    APPEND = "append"


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of one candidate chunk. ``quality_gain`` and ``long_drop`` are what its two gates looked at."""

    short: float
    long: float
    fused: float
    quality_gain: float = 0.0
    long_drop: float = 0.0


@dataclass(frozen=True, slots=True)
class Slot:
    """One KV block a history can see: where it lies, the frame it was born at, its route for the day it leaves, and the
    chunk it was made from."""

    block: int
    start_frame: int
    route: Route = Route.DISCARD
    latents: Tensor | None = field(default=None, compare=False, repr=False)  # [F, C, h, w]


@dataclass(frozen=True, slots=True)
class Memory:
    """The KV context of a history as block ids: sinks in the order they joined, then the window, oldest first."""

    sinks: tuple[Slot, ...] = ()
    window: tuple[Slot, ...] = ()

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.sinks + self.window


@dataclass(frozen=True, slots=True)
class Chunk:
    """A generated chunk that a survivor carries until it is settled."""

    index: int
    seed: int
    latents: Tensor  # [F, C, h, w]
    frames: Tensor  # [T, 3, H, W] in [0, 1]
    scores: Scores
    route: Route


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A history that survived: what its next chunk needs, and nothing that it does not.

    Siblings share every value by reference; forking one copies nothing.
    """

    memory: Memory = Memory()
    seed: int = 0  # of its newest chunk
    seed_chunk: int = 0  # chunk at which that seed was first used
    noise: Tensor | None = None  # [F, C, h, w], the newest chunk's initial noise
    decoder: Any = None  # one row of the decoder's state
    scoring: Any = (
        None  # one row of the scoring decoder's state, where rewards have a decoder of their own
    )
    latents: tuple[Tensor, ...] = ()  # of the reward window, newest last, each [F, C, h, w]
    frames: tuple[
        Tensor, ...
    ] = ()  # of the reward window as rewards saw it, newest last, each [T, 3, H, W]
    shorts: tuple[float, ...] = ()  # image rewards of the recent window, newest last
    short_sum: float = 0.0  # over every chunk so far that has one
    judged: int = 0  # chunks that have one
    long: float = math.nan  # video reward at the newest chunk that has one
    score: float = 0.0
    unsettled: tuple[Chunk, ...] = ()  # chunks not yet shown, oldest first


@dataclass(frozen=True, slots=True)
class Branch:
    """A candidate to draw: which history it extends and from which seed."""

    parent: Trajectory
    rank: int  # of the parent among the survivors
    expansion: int
    seed: int
    seed_chunk: int


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Everything the device needs to know about one chunk's batch, decided on the host: one entry per row each.

    ``blocks[row]`` are the context's block ids in attention order; ``shifts[row]`` the frames by which each of those
    blocks' keys is moved before it is attended to (0 unless sinks are re-based). A row's draws are those of its seed and
    the chunk that seed was first used at. ``targets`` are the blocks that a clean pass writes; empty: none.
    """

    start_frames: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    shifts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    seed_chunks: tuple[int, ...]
    targets: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.blocks)

    def take(self, rows: Sequence[int]) -> ChunkPlan:
        """The plan of some of the rows."""
        columns = (getattr(self, name) for name in self.__slots__)
        return ChunkPlan(
            *(tuple(column[row] for row in rows) if column else () for column in columns)
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A drawn, denoised and scored branch."""

    branch: Branch
    row: int
    noise: Tensor  # [F, C, h, w]
    latents: Tensor  # [F, C, h, w]
    scores: Scores
    route: Route


@dataclass(frozen=True, slots=True)
class Shown:
    """A kept candidate's chunk in the video."""

    frames: Tensor  # [T, 3, H, W]
    seen: (
        Tensor  # the same as later rewards will see it; ``frames`` itself where they see the video
    )
    state: Any  # one row of the decoder's state
    scoring: Any  # one row of the scoring decoder's state; None without one


@dataclass(frozen=True, slots=True)
class Incident:
    """A reward that did not judge some candidates: which, where, and why. Whoever has one got a degraded video."""

    role: str  # "image", "video", "draft", "final"
    chunk: int
    rows: tuple[int, ...]  # of the video's candidates
    reason: str
    kind: str = "raised"  # "raised", "late", "memory", or "not finite": judged, but by no number

    @property
    def sentence(self) -> str:
        many = f"{len(self.rows)} candidate" + ("" if len(self.rows) == 1 else "s")
        return f"{self.role} reward: no score for {many} of chunk {self.chunk} ({self.kind}): {self.reason}"


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """All that was decided at one chunk, for whoever watches: traces, progress bars, benchmarks, replays."""

    index: int
    chunks: int
    candidates: tuple[Candidate, ...]
    kept: tuple[int, ...]  # rows of the candidates that survive, best first
    survivors: tuple[Trajectory, ...]
    frames: Tensor  # [B, T, 3, H, W], the candidates as the image reward saw them
    stage_ms: dict[
        str, float
    ]  # of the whole batch; in the record of its last video, empty in the others'
    prompt: int = 0  # which of the prompts that were asked for together
    incidents: tuple[Incident, ...] = ()  # rewards that did not judge


Watch = Callable[[ChunkRecord], None]


@dataclass(frozen=True, slots=True)
class ChunkEvent:
    """A settled chunk: nothing that follows can change it any more."""

    index: int
    frames: Tensor  # [T, 3, H, W] in [0, 1]
    latents: Tensor  # [F, C, h, w]
    seed: int
    scores: Scores
    route: Route
    # stage -> milliseconds of the turn in which it settled; {} for what is shown at the end
    timings: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def pixels(self) -> Tensor:
        """The frames as bytes on the host, uint8 [T, 3, H, W]."""
        return self.frames.mul(255).round_().clamp_(0, 255).to("cpu", torch.uint8)


Twins = tuple[
    tuple[int, ...], ...
]  # for every row and frame the first row that holds the very same one there


@dataclass(frozen=True, slots=True)
class Clip:
    """What a reward model judges: a batch of candidate clips of one prompt."""

    frames: Tensor  # [B, T, 3, H, W] float in [0, 1]
    prompt: str
    fps: int
    chunk: int  # index of the newest chunk; most models ignore it
    twins: Twins = ()  # (): nothing is known of what the rows share
    picked: bool = False  # ``frames`` are those that the reward picks, and not the whole clip


class Compiled(Protocol):
    """One exported graph behind a plain call, whatever runs it."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named inputs -> named outputs, which are good until the next call."""
        ...


class RewardModel(Protocol):
    """Judges a batch of clips. Owns its weights, its preprocessing and nothing else."""

    horizon: int  # chunks it wants to see: 1 for the newest only

    def score(self, clip: Clip) -> Tensor:
        """Scores [B] fp32, higher is better, on any device; NaN means "cannot judge" and is never selected."""
        ...


@runtime_checkable
class Picking(Protocol):
    """A reward model that looks at some frames of a clip alone, so that nobody has to copy the others."""

    def picks(self, frames: int, fps: int) -> Sequence[int]:
        """Which of ``frames`` frames ``score`` wants to be handed, in order."""
        ...


class Decoder(Protocol):
    """Turns latents into frames, remembering what came before in an immutable state."""

    def decode(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """latents [B, F, C, h, w], state of B rows or None for an empty one -> frames [B, T, 3, H, W], new state."""
        ...

    def rows(self, state: Any, rows: Sequence[int]) -> Any:
        """The state of some rows."""
        ...

    def stack(self, states: Sequence[Any]) -> Any:
        """One state whose rows are those of ``states``, in order; None when they are None."""
        ...


@dataclass(frozen=True, slots=True)
class Draws:
    """One standard normal draw for each of B rows: a pure function of (seed, chunk, number, element)."""

    seeds: tuple[int, ...]
    chunks: tuple[int, ...]  # at which each seed was first used
    number: int  # 0 is a chunk's noise, p >= 1 what is added before pass p, counted from 0
    streams: Tensor | None = (
        None  # [B, 3] int64, the same numbers where they are needed on the device already
    )


class NoiseSource(Protocol):
    """Where standard normal draws come from, and what is made of them in the same step."""

    fixed: bool  # reads a draw's numbers from ``streams``, so that a captured graph can be told of the next chunk's

    def draw(self, draws: Draws, shape: tuple[int, ...]) -> Tensor:
        """The draws themselves, [B, *shape]."""
        ...

    def propagate(
        self, previous: Tensor, parents: Sequence[int], draws: Draws, beta: float, mode: str
    ) -> Tensor:
        """Parents' noise [N, ...] blended with draws, [B, ...]: row b has parent ``previous[parents[b]]``.

        ``mode`` is "blend" or "slerp"; see ``runtime.kernels.slerp_noise``.
        """
        ...

    def renoise(self, x0: Tensor, draws: Draws, sigma: float) -> Tensor:
        """(1 - sigma) * x0 + sigma * draws for clean latents x0 [B, ...]."""
        ...


def row_ranges(rows: int, size: int) -> list[range]:
    """``rows`` cut into ranges of at most ``size``; 0 leaves them whole."""
    step = size or rows
    return [range(first, min(first + step, rows)) for first in range(0, rows, step)]


def take_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of x by host integers. An index that has to be brought to the device first would make the host wait."""
    return torch.cat([x[row : row + 1] for row in rows])
