"""How often would another way of judging have selected the same candidates?

One engine generates videos with settings A, the full way. At every chunk other judges look at the very same candidates,
and the search policy selects again with their scores; what A selected goes on, so that one early difference cannot make
all later ones. Counted per chunk: the same winner, the same set of K, the rank correlation of the scores (Kendall's
tau-b), and what B's selection costs, as the mean score under A that it loses, in units of the chunk's range of scores.

    python -m runtime.bench.agreement --against reward.stride=4 --against reward.tau=0 reward.window_chunks=4
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.arguments import typed
from runtime.bench.environment import environment
from runtime.bench.judges import Judge, Rewards
from runtime.bench.sprites.accept import wilson
from runtime.engine import Engine
from runtime.parts import Parts
from runtime.presets import PRESETS, preset
from runtime.score import Place
from runtime.settings import Settings
from runtime.types import ChunkRecord

SEED_STEP = 1_000_000  # more than the seeds of one video lie apart


@dataclass(frozen=True, slots=True)
class Turn:
    """One chunk judged twice. ``lost`` and ``tau`` are None where the scores leave them open."""

    candidates: int
    kept: int
    same_winner: bool
    same_set: bool
    same_scores: bool
    tau: float | None
    lost: float | None

    @property
    def chance(self) -> float:
        """How often a blind choice would have hit the same set."""
        return 1 / math.comb(self.candidates, self.kept)


def compare(
    full: Sequence[float], other: Sequence[float], chosen: Sequence[int], again: Sequence[int]
) -> Turn:
    """Scores of A and B for the same candidates, and the rows that each selects, best first."""
    finite = [score for score in full if math.isfinite(score)]
    spread = max(finite) - min(finite) if finite else 0.0
    means = [
        sum(full[row] for row in rows) / len(rows) if rows else math.nan for rows in (chosen, again)
    ]
    lost = (means[0] - means[1]) / spread if spread > 0 else 0.0
    return Turn(
        len(full),
        len(chosen),
        bool(again) and chosen[0] == again[0],
        set(chosen) == set(again),
        list(full) == list(other),
        kendall_tau(full, other),
        lost if math.isfinite(lost) else None,
    )


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation in [-1, 1] with ties counted as tau-b does; None where either side cannot rank."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    if any(not math.isfinite(value) for value in (*a, *b)):
        return None
    signs = [(_sign(a[i] - a[j]), _sign(b[i] - b[j])) for i, j in pairs]
    ranked = [sum(abs(pair[side]) for pair in signs) for side in (0, 1)]
    if not min(ranked, default=0):
        return None
    return sum(x * y for x, y in signs) / math.sqrt(ranked[0] * ranked[1])


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


@dataclass
class Agreement:
    """What all turns of one judge come to."""

    name: str
    turns: list[Turn] = field(default_factory=list)

    def table(self) -> dict[str, Any]:
        """Rates with 95 % intervals, over the chunks at which there was something to choose."""
        open_turns = [turn for turn in self.turns if turn.candidates > 1]
        choices = [turn for turn in open_turns if turn.kept < turn.candidates]
        taus = sorted(turn.tau for turn in open_turns if turn.tau is not None)
        lost = sorted(turn.lost for turn in choices if turn.lost is not None)
        return {
            "name": self.name,
            "chunks": len(self.turns),
            "same_winner": _rate(
                [t.same_winner for t in open_turns], [1 / t.candidates for t in open_turns]
            ),
            "same_set": _rate([t.same_set for t in choices], [t.chance for t in choices]),
            "kendall_tau": {
                "mean": _mean(taus),
                "min": min(taus, default=None),
                "count": len(taus),
            },
            "lost": {"mean": _mean(lost), "max": max(lost, default=None), "count": len(lost)},
            "identical_scores": bool(self.turns) and all(t.same_scores for t in self.turns),
        }


def _rate(hits: Sequence[bool], chances: Sequence[float]) -> dict[str, Any]:
    """Hits over tries with their Wilson interval, and what blind choices would reach."""
    if not hits:
        return {"count": 0, "of": 0, "rate": None, "low": None, "high": None, "chance": None}
    rate = sum(hits) / len(hits)
    low, high = wilson(rate, len(hits))
    return {
        "count": sum(hits),
        "of": len(hits),
        "rate": rate,
        "low": max(low, 0.0),
        "high": min(high, 1.0),
        "chance": sum(chances) / len(chances),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def watch_with(
    engine: Engine, prompt: str, judges: Mapping[str, Judge], found: Mapping[str, Agreement]
) -> None:
    """Generate one video and let every judge look at every chunk of it."""

    def look(record: ChunkRecord) -> None:
        place = Place(prompt, engine.fps, record.index, record.chunks)
        full = [candidate.scores.fused for candidate in record.candidates]
        chosen = engine.policy.select(record.candidates)
        for name, judge in judges.items():
            other = list(judge(record, place))
            if len(other) != len(full):
                raise RuntimeError(
                    f"{name}: want {len(full)} scores, one per candidate, got {len(other)}"
                )
            again = _selected(engine, record, other)
            found[name].turns.append(compare(full, other, chosen, again))

    for _ in engine.stream(prompt, watch=look):
        pass


def _selected(engine: Engine, record: ChunkRecord, scores: Sequence[float]) -> tuple[int, ...]:
    """The rows that the engine's own policy selects with other scores; none where no score is finite."""
    if not any(map(math.isfinite, scores)):
        return ()
    candidates = [
        replace(candidate, scores=replace(candidate.scores, fused=score))
        for candidate, score in zip(record.candidates, scores, strict=True)
    ]
    return engine.policy.select(candidates)


def measure(
    settings: Settings,
    prompts: Sequence[str],
    seeds: int,
    judges_of: Callable[[Engine], Mapping[str, Judge]],
    parts: Parts | None = None,
) -> list[Agreement]:
    """Every prompt from ``seeds`` seeds through one engine per seed. RuntimeError for a policy that asks no rewards."""
    parts = parts or Parts.load(settings)
    found: dict[str, Agreement] = {}
    for number in range(seeds):
        seed = settings.search.seed + number * SEED_STEP
        engine = Engine(settings.with_changes({"search.seed": seed}), parts)
        if not engine.policy.judges:
            raise RuntimeError(
                f"search.policy: {settings.search.policy!r} asks no rewards at its chunks, so there is nothing to "
                f"agree with; use 'stream-t1' or 'beam'"
            )
        judges = judges_of(engine)
        for name in judges:
            found.setdefault(name, Agreement(name))
        for prompt in prompts:
            watch_with(engine, prompt, judges, found)
    return list(found.values())


def changes_of(pairs: Sequence[str]) -> dict[str, Any]:
    """``["reward.stride=4"]`` as changes of settings. ValueError for a pair without a value."""
    changes = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--against: want NAME=VALUE, got {pair!r}")
        changes[name.strip()] = typed(name.strip(), text.strip())
    return changes


def show(tables: Sequence[Mapping[str, Any]]) -> str:
    """The tables as text, a row per judge."""
    wide = max(len(table["name"]) for table in tables)
    lines = [
        f"{'judged with':<{wide}}  {'same winner':<24}{'same set':<24}{'tau':>6}{'lost':>8}{'worst':>8}"
    ]
    for table in tables:
        tau, lost = table["kendall_tau"]["mean"], table["lost"]
        numbers = [_number(value) for value in (tau, lost["mean"], lost["max"])]
        lines.append(
            f"{table['name']:<{wide}}  {_interval(table['same_winner']):<24}{_interval(table['same_set']):<24}"
            f"{numbers[0]:>6}{numbers[1]:>8}{numbers[2]:>8}"
        )
        if table["identical_scores"]:
            lines.append(
                f"{'':<{wide}}  its scores are the full way's, bit for bit: these settings change nothing here"
            )
    return "\n".join(lines)


def _interval(rate: Mapping[str, Any]) -> str:
    if not rate["of"]:
        return "nothing to choose"
    return f"{rate['rate']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> int:
    args = _arguments()
    try:
        base = {"seconds": args.seconds, "search.seed": args.seed, "run.device": args.device}
        settings = preset(args.preset).with_changes({**base, **changes_of(args.set)})
        asked = {" ".join(pairs): changes_of(pairs) for pairs in args.against}
        found = measure(
            settings,
            _prompts(args),
            args.seeds,
            lambda engine: {name: Rewards(engine, changes) for name, changes in asked.items()},
        )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tables = [agreement.table() for agreement in found]
    print(
        f"{args.prompts} prompts of {settings.seconds:g} s from {args.seeds} seeds, {tables[0]['chunks']} chunks; 95 % "
        f"intervals as if chunks were independent; lost: part of the chunk's range of scores"
    )
    print(show(tables))
    if args.json:
        place = {**environment(settings, {}), "preset": args.preset}
        rows = {"judges": tables, "settings": asdict(settings), "environment": place}
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.agreement", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="sprites")
    add(
        "--against",
        nargs="+",
        action="append",
        required=True,
        metavar="NAME=VALUE",
        help="reward settings of one other judge; again for another judge",
    )
    add(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the full way"
    )
    add("--prompts", type=int, default=8, metavar="N", help="captions that training never saw")
    add("--prompts-file", type=Path, metavar="FILE", help="prompts of yours instead, one a line")
    add("--seconds", type=float, default=5.0)
    add("--seeds", type=int, default=1, metavar="N", help="videos of each prompt")
    add("--seed", type=int, default=42)
    add("--device", default="cpu")
    add("--json", type=Path, metavar="FILE", help="write the numbers there")
    args = parser.parse_args()
    if min(args.prompts, args.seeds) < 1:
        parser.error("--prompts and --seeds: want at least 1")
    return args


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts_file is None:
        from runtime.bench.sprites.world import held_out_captions

        return [caption.text for caption in held_out_captions(args.prompts)]
    lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()][: args.prompts]
    if not prompts:
        raise ValueError(f"--prompts-file: want a prompt a line, got none: {args.prompts_file}")
    args.prompts = len(prompts)
    return prompts


if __name__ == "__main__":
    sys.exit(main())
