"""Many timed videos of one engine reduced to the tables of a benchmark: stages, latencies, speed. No printing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from runtime.bench.clock import Ceiling
from runtime.bench.cost import ChunkWork, Cost, LineCosts
from runtime.bench.measure import ChunkTime, VideoTime
from runtime.bench.numbers import Dist, dist
from runtime.telemetry import STAGES

WRITE = "write"  # packing and encoding settled frames: the caller's work, inside the measured time all the same
BETWEEN = (
    "between"  # wall time in which no stage ran: the engine's own Python, waiting for the scores
)
ORDER = (*STAGES, WRITE, BETWEEN)

SHOWN = 2000  # times of single chunks in a result, for a picture of how they spread


@dataclass
class Timing:
    """Videos of one engine, and the prices of their chunks."""

    videos: list[VideoTime] = field(default_factory=list)
    prompts: int = 1  # in one batch
    prices: dict[ChunkWork, dict[str, Cost]] = field(default_factory=dict)

    def price(self, costs: LineCosts) -> None:
        """Note what each chunk had to cost, stage by stage."""
        self.prices |= {chunk.work: costs.chunk(chunk.work) for chunk in self.chunks}

    @property
    def frames(self) -> int:
        return sum(video.frames for video in self.videos)

    @property
    def chunks(self) -> list[ChunkTime]:
        return [chunk for video in self.videos for chunk in video.chunks]

    @property
    def pixel_fps(self) -> float:
        """Pixel frames over wall time, everything from the prompt to the closed file inside."""
        return self.frames / sum(video.seconds for video in self.videos)

    def latency(self) -> dict[str, Dist]:
        """When a caller gets something. Chunks are counted as made when they are judged, as shown when they settle."""
        later = [chunk.wall_ms for video in self.videos for chunk in video.chunks[1:]]
        return {
            "first_chunk_ms": dist([video.chunks[0].wall_ms for video in self.videos]),
            "first_shown_ms": dist(
                [v.first_shown_ms for v in self.videos if v.first_shown_ms is not None]
            ),
            "inter_chunk_ms": {**dist(later), "values": [round(ms, 2) for ms in later[:SHOWN]]},
            "settle_delay_chunks": dist([d for video in self.videos for d in video.settle_delays]),
            "video_seconds": dist([video.seconds for video in self.videos]),
        }

    def host_ms(self) -> Dist:
        """Host time inside the stages of a chunk, but for those that wait."""
        return dist([chunk.host_ms for chunk in self.chunks])

    def stage_ms(self) -> dict[str, list[float]]:
        """Stage -> its time in every chunk in which it ran."""
        times: dict[str, list[float]] = {}
        for video in self.videos:
            for chunk in video.chunks:
                for name, spent in chunk.stage_ms.items():
                    times.setdefault(name, []).append(spent)
                # Writing comes in bursts, when something settles: each chunk gets the video's mean.
                written = video.write_ms / len(video.chunks)
                times.setdefault(WRITE, []).append(written)
            idle = _idle_ms(video)
            times.setdefault(BETWEEN, []).extend([idle / len(video.chunks)] * len(video.chunks))
        return times

    def stages(self, ceiling: Ceiling | None = None) -> dict[str, dict[str, Any]]:
        """Per stage and chunk: percentiles, share of all stages' time, work against what the machine can do."""
        times = self.stage_ms()
        total = sum(sum(spent) for spent in times.values())
        names = [*ORDER, *sorted(times.keys() - set(ORDER))]
        return {
            name: {
                **{
                    f"{key}_ms": value for key, value in dist(times[name]).items() if key != "count"
                },
                "count": len(times[name]),
                "share": sum(times[name]) / total,
                **self._work(name, ceiling),
            }
            for name in names
            if times.get(name)
        }

    def _work(self, stage: str, ceiling: Ceiling | None) -> dict[str, float | None]:
        """FLOPs and bytes of a median chunk, and what the stage made of its time over all chunks that have a price."""
        keys = ("flops", "bytes", "tflop_per_s", "gb_per_s", "roofline_share")
        priced: list[tuple[Cost, float]] = []
        for chunk in self.chunks:
            cost = self.prices.get(chunk.work, {}).get(stage)
            if cost is not None and stage in chunk.stage_ms:
                priced.append((cost, chunk.stage_ms[stage]))
        if not priced:
            return dict.fromkeys(keys)
        total, ms = sum((cost for cost, _ in priced), Cost()), sum(spent for _, spent in priced)
        least = sum(least_ms(cost, ceiling) for cost, _ in priced) if ceiling else None
        values = (
            statistics.median(cost.flops for cost, _ in priced),
            statistics.median(cost.bytes for cost, _ in priced) or None,
            total.flops / ms / 1e9,
            total.bytes / ms / 1e6 or None,
            least / ms if least is not None else None,
        )
        return dict(zip(keys, values, strict=True))

    def timeline(self) -> tuple[int, list[dict[str, Any]]]:
        """Index and spans of the chunk whose wall time is the median of all but the first ones."""
        later = [chunk for video in self.videos for chunk in video.chunks[1:]] or self.chunks
        typical = sorted(later, key=lambda chunk: chunk.wall_ms)[(len(later) - 1) // 2]
        rows = [
            {"stage": s.stage, "start_ms": s.start_ms, "end_ms": s.end_ms, "stream": s.stream}
            for s in typical.spans
        ]
        return typical.work.index, rows


def _idle_ms(video: VideoTime) -> float:
    """Wall time of a video in which neither a stage nor the writer ran."""
    covered = sum(chunk.covered_ms for chunk in video.chunks)
    return max(0.0, video.seconds * 1e3 - covered - video.write_ms)


def least_ms(cost: Cost, ceiling: Ceiling) -> float:
    """The least a machine with these ceilings needs: its products or its traffic, whichever takes longer."""
    narrow = ceiling.narrow_tflop_per_s or ceiling.matmul_tflop_per_s
    products = (cost.flops - cost.linears) / ceiling.matmul_tflop_per_s + cost.linears / narrow
    return max(products / 1e9, cost.bytes / ceiling.copy_gb_per_s / 1e6)


def speedup(ours: Timing, theirs: Timing) -> tuple[float, tuple[float, float]]:
    """How many times faster ``ours`` is per frame: ratio of the medians, and the extremes over pairs of videos that
    were timed one right after the other."""
    mine, other = ([v.seconds / v.frames for v in t.videos] for t in (ours, theirs))
    ratios = [slow / fast for fast, slow in zip(mine, other, strict=False)]
    # Over the pairs alone: videos that only one of the two made would compare other prompts.
    paired = len(ratios)
    middle = statistics.median(other[:paired]) / statistics.median(mine[:paired])
    return middle, (min(ratios), max(ratios))
