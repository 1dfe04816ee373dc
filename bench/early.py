"""How often are early choices right, and what do they save? For the policy ``halving`` and for speculation.

    python -m runtime.bench.early --prompts 4 --seconds 5

halving     The full search draws ``search.drafts`` candidates per history and finishes them all. At every chunk the drafts
            are scored as the policy would after some passes, and the finalists are compared with what the full search
            selected: is its winner among them, are all K? Beside it the policy itself runs on the same prompts and seeds.
speculation The same videos with ``run.speculate`` off and on, in turns: how often the guess was right, and the time ratio.

Rates come with 95 % Wilson intervals, chunks taken as independent; times are medians of interleaved videos.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.bench.environment import environment
from runtime.bench.run import PROMPTS
from runtime.bench.sprites.accept import wilson
from runtime.engine import Engine
from runtime.plan import plan_chunk
from runtime.presets import PRESETS, preset
from runtime.score import Place
from runtime.search import Halving
from runtime.settings import Settings
from runtime.types import ChunkRecord


@dataclass
class Tally:
    """Hits over tries."""

    hits: list[bool] = field(default_factory=list)

    def table(self) -> dict[str, Any]:
        if not self.hits:
            return {"of": 0, "rate": None, "low": None, "high": None}
        rate = sum(self.hits) / len(self.hits)
        low, high = wilson(rate, len(self.hits))
        return {"of": len(self.hits), "rate": rate, "low": max(low, 0.0), "high": min(high, 1.0)}


class Drafts:
    """Scores every finished candidate by what the halving policy would have seen of it, after each number of passes."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.memory = engine, settings.memory
        self.policy = Halving(
            settings.with_changes({"search.policy": "halving"}).search,
            settings.released,
            True,
            True,
        )
        self.passes = range(1, engine.parts.generator.schedule.passes)
        self.winner = {cut: Tally() for cut in self.passes}
        self.everyone = {cut: Tally() for cut in self.passes}
        self.prompt = ""

    @torch.no_grad()
    def watch(self, record: ChunkRecord) -> None:
        """The parents' blocks still hold what they did: nothing is merged or written before the next chunk."""
        engine = self.engine
        branches = [candidate.branch for candidate in record.candidates]
        plan = plan_chunk(branches, record.index, self.memory)
        x = torch.stack([candidate.noise for candidate in record.candidates])
        texts = [engine.parts.generator.encode(self.prompt)] * len(branches)
        place = Place(self.prompt, engine.fps, record.index, record.chunks)
        for cut in self.passes:
            x = engine.denoiser.run(plan, x, texts, range(cut - 1, cut))
            scores = engine.scorer.rate_drafts(engine.decoding.preview(x), place)
            finalists = set(self.policy.finalists(branches, scores))
            self.winner[cut].hits.append(record.kept[0] in finalists)
            self.everyone[cut].hits.append(set(record.kept) <= finalists)


def halving(settings: Settings, prompts: Sequence[str]) -> dict[str, Any]:
    """What the early choice would have kept of the full search's survivors, and the policy against the full search."""
    search = settings.search
    full = Engine(
        settings.with_changes({"search.policy": "stream-t1", "search.expansions": search.drafts})
    )
    drafts = Drafts(full, settings)
    ways = {
        "every draft finished": full,
        "halving": Engine(settings.with_changes({"search.policy": "halving"})),
        "as many finished, none cut": Engine(settings.with_changes({"search.policy": "stream-t1"})),
    }
    spent, scores = ({name: [] for name in ways} for _ in range(2))
    for prompt in prompts:
        drafts.prompt = prompt
        list(full.stream(prompt, watch=drafts.watch))
        for name, engine in ways.items():
            began = time.perf_counter()
            events = list(engine.stream(prompt))
            spent[name].append((time.perf_counter() - began) * 1e3 / len(events))
            scores[name].append(statistics.fmean(event.scores.fused for event in events))
    return {
        "drafts": search.drafts,
        "finished": search.expansions,
        "blind_winner": search.expansions / search.drafts,
        "after_passes": {
            str(cut): {
                "winner_kept": drafts.winner[cut].table(),
                "all_kept": drafts.everyone[cut].table(),
            }
            for cut in drafts.passes
        },
        "ways": {
            name: {
                "chunk_ms": statistics.median(spent[name]),
                "mean_score": statistics.fmean(scores[name]),
            }
            for name in ways
        },
    }


def speculation(settings: Settings, prompts: Sequence[str]) -> dict[str, Any]:
    """Hit rate of the guess, and time with it over time without."""
    engines = {on: Engine(settings.with_changes({"run.speculate": on})) for on in (False, True)}
    spent: dict[bool, list[float]] = {False: [], True: []}
    for prompt in (prompts[0], *prompts):  # the first one warms up
        for on, engine in engines.items():
            began = time.perf_counter()
            list(engine.stream(prompt))
            spent[on].append(time.perf_counter() - began)
    guesses = engines[True].speculation
    hits = Tally([True] * guesses.right + [False] * (guesses.tried - guesses.right))
    ratios = [a / b for a, b in zip(spent[False][1:], spent[True][1:], strict=True)]
    return {
        "right": hits.table(),
        "speedup": statistics.median(ratios),
        "speedup_spread": [min(ratios), max(ratios)],
    }


def main() -> int:
    args = _arguments()
    try:
        settings = preset(args.preset).with_changes(
            {"seconds": args.seconds, "search.drafts": args.drafts}
        )
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(args.prompts)]
        result: dict[str, Any] = {
            "halving": halving(settings, prompts),
            "speculation": speculation(settings, prompts),
            "prompts": prompts,
            "seconds": args.seconds,
            "environment": environment(settings, Engine(settings).implementations),
        }
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.early", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--preset", choices=PRESETS, default="sprites")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--drafts", type=int, default=4, help="begun per history")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.prompts < 1:
        parser.error("--prompts: want at least 1")
    return args


def _print(result: dict[str, Any]) -> None:
    half, guess = result["halving"], result["speculation"]
    print(
        f"halving: {half['drafts']} drafts per history, {half['finished']} finished; "
        f"a blind choice keeps the winner in {half['blind_winner']:.0%}"
    )
    for cut, row in half["after_passes"].items():
        print(
            f"  after pass {cut}: winner kept {_rate(row['winner_kept'])}, all K kept {_rate(row['all_kept'])}"
        )
    for name, row in half["ways"].items():
        print(f"  {name:<28}{row['chunk_ms']:>9.1f} ms a chunk, mean score {row['mean_score']:.4f}")
    low, high = guess["speedup_spread"]
    print(f"speculation: guess right {_rate(guess['right'])}")
    print(f"  {guess['speedup']:.2f}x as fast as without ({low:.2f} to {high:.2f})")


def _rate(table: dict[str, Any]) -> str:
    if table["rate"] is None:
        return "never tried"
    return f"{table['rate']:.0%} ({table['low']:.0%} to {table['high']:.0%} of {table['of']})"


if __name__ == "__main__":
    sys.exit(main())
