"""Makes the videos that the diagnosis is about, and writes down every candidate on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from runtime.bench.quality.why_intervals import mean_of
from runtime.bench.quality.why_judge import TOTAL, Sight, judge
from runtime.bench.quality.why_oracle import with_oracle
from runtime.bench.quality.why_seen import GATES, REWARDS, Seen
from runtime.bench.quality.why_walks import PROBE, is_probe, walking
from runtime.bench.sprites.world import Caption
from runtime.engine import Engine
from runtime.parts import Parts
from runtime.settings import Settings
from runtime.types import ChunkRecord


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    walks: int = 4  # plain videos of each prompt
    probed: int = 2  # of them, that the same noises are tried under
    probes: int = 2  # noises

    def __post_init__(self) -> None:
        for name, least, most in (("walks", 2, 49), ("probed", 0, self.walks), ("probes", 0, 49)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"--{name}: want {least} to {most}, got {value}")


@dataclass
class Found:
    """All candidates, and what each method's video of each prompt shows."""

    seen: list[Seen] = field(default_factory=list)
    # method -> the measures of its video of each prompt; "single" is the mean over the walks
    videos: dict[str, list[Mapping[str, float]]] = field(default_factory=dict)

    def add(self, method: str, shows: Mapping[str, float]) -> None:
        self.videos.setdefault(method, []).append(shows)

    def extend(self, other: Found) -> None:
        """With all that ``other`` found, which is about other prompts."""
        self.seen += other.seen
        for method, videos in other.videos.items():
            self.videos.setdefault(method, []).extend(videos)


class Runs:
    """Three engines on one generator: the search as it is set, the same steered by the judge, and plain walks."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self.plan = plan
        parts = Parts.load(settings)
        if parts.image is None or parts.video is None:
            raise RuntimeError(
                f"search.policy: {settings.search.policy!r} asks no rewards; use 'stream-t1' or 'beam'"
            )
        self.search = Engine(settings, parts)
        self.oracle = Engine(settings, with_oracle(parts))
        self.walks = walking(settings, parts, plan.walks, plan.probed, plan.probes)

    def prompt(self, number: int, caption: Caption) -> Found:
        """Everything about one caption."""
        found = Found()
        seen, videos = watched(self.search, number, caption, "search")
        found.seen += seen
        found.add("stream-t1", judge(videos, caption))
        found.add("oracle", judge(shown(self.oracle, caption), caption))
        self._walk(number, caption, found)
        return found

    def _walk(self, number: int, caption: Caption, found: Found) -> None:
        seen: list[Seen] = []
        chunks: list[Tensor] = []
        sight = Sight(caption)

        def look(record: ChunkRecord) -> None:
            chunks.append(record.frames[list(record.kept)])
            seen.extend(see(record, sight, number, "walk"))

        run(self.walks, caption, look)
        videos = torch.cat(chunks, 1)  # [walks, T, 3, H, W]
        shows = [judge(video, caption) for video in videos]
        found.seen += [
            replace(one, video=shows[one.place]) if one.run == "walk" else one for one in seen
        ]
        last = [one for one in seen if one.run == "walk" and one.chunk == self.walks.chunks - 1]
        liked = max(last, key=lambda one: one.rewards["long"]).place
        found.add("single", {name: sum(s[name] for s in shows) / len(shows) for name in shows[0]})
        found.add("best-of-n", shows[liked])
        found.add("best-of-n, oracle", max(shows, key=lambda s: s[TOTAL]))


def run(engine: Engine, caption: Caption, look: Callable[[ChunkRecord], None] | None) -> Tensor:
    """One video, [T, 3, H, W] in [0, 1]."""
    with contextlib.closing(engine.stream(caption.text, watch=look)) as events:
        return torch.cat([event.frames for event in events])


def shown(engine: Engine, caption: Caption) -> Tensor:
    return run(engine, caption, None)


def watched(engine: Engine, number: int, caption: Caption, name: str) -> tuple[list[Seen], Tensor]:
    """One video and all the candidates on its way."""
    seen: list[Seen] = []
    sight = Sight(caption)
    frames = run(engine, caption, lambda record: seen.extend(see(record, sight, number, name)))
    return seen, frames


def see(record: ChunkRecord, sight: Sight, number: int, name: str) -> list[Seen]:
    """The candidates of one chunk, judged. Among walks, probes are told from others."""
    places = {row: place for place, row in enumerate(record.kept)}
    found = []
    for candidate, shows in zip(record.candidates, sight.look(record), strict=True):
        branch, scores = candidate.branch, candidate.scores
        probe = name == "walk" and is_probe(branch)
        found.append(
            Seen(
                prompt=number,
                run="probe" if probe else name,
                chunk=record.index,
                history=branch.rank,
                noise=branch.expansion - PROBE if probe else branch.expansion,
                place=places.get(candidate.row, -1),
                rewards={reward: getattr(scores, reward) for reward in (*REWARDS, *GATES)},
                route=candidate.route.value,
                shows=shows,
            )
        )
    return found


def ceiling(found: Found, reference: str = "single") -> list[dict[str, float | str | None]]:
    """Mean measures of every method's videos, and the difference of its Total to the reference's, prompt by prompt."""
    rows: list[dict[str, float | str | None]] = []
    for method, videos in found.videos.items():
        means = {name: sum(v[name] for v in videos) / len(videos) for name in videos[0]}
        against = zip(videos, found.videos[reference], strict=True)
        gain = mean_of((i, a[TOTAL] - b[TOTAL]) for i, (a, b) in enumerate(against))
        rows.append(
            {
                "method": method,
                **means,
                "gain": gain["mean"],
                "low": gain["low"],
                "high": gain["high"],
            }
        )
    return rows
