"""Does a prompt that changes in mid-video get its way, and how soon? By what is done to the memory at the switch.

``python -m runtime.bench.sprites.switching`` makes one video per pair of held-out captions and way: the second caption
begins in the middle. The analytic checker then judges the frames right after the switch and those at the end by the second
caption; "fresh" is a video that never knew another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from runtime.bench.environment import environment
from runtime.bench.sprites.accept import ATTRIBUTES, wilson
from runtime.bench.sprites.checker import Verdict, check_clip
from runtime.bench.sprites.world import Caption, held_out_captions
from runtime.engine import Engine
from runtime.presets import preset
from runtime.scenes import Prompts

WAYS = ("all", "window", "none", "fresh")
SWITCH = 6  # chunk: the window has been full for a while
SOON, LATE = 36, 81  # frames judged: three chunks from the switch on, five seconds at the end


def judged(engine: Engine, way: str, first: Caption, second: Caption) -> dict[str, Verdict]:
    """The second caption's frames right after the switch and at the end."""
    told: Prompts = [(0, first.text), (SWITCH, second.text)]
    events = list(engine.stream(second.text if way == "fresh" else told))
    after = torch.cat([event.frames for event in events if event.index >= SWITCH])
    return {"soon": check_clip(after[:SOON], second), "late": check_clip(after[-LATE:], second)}


def rates(verdicts: list[Verdict]) -> dict[str, float]:
    """Share of clips in which each attribute is right, and all that define a caption are."""
    shares = {name: sum(v.right(name) for v in verdicts) / len(verdicts) for name in ATTRIBUTES}
    return shares | {"all": sum(v.all_right for v in verdicts) / len(verdicts)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.sprites.switching", description=__doc__
    )
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--policy", default="single")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    captions = held_out_captions(2 * args.pairs)
    pairs = list(zip(captions[: args.pairs], captions[args.pairs :], strict=True))
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        changes = {"search.policy": args.policy, "seconds": 12.0}
        recache = "all" if way == "fresh" else way
        engine = Engine(preset("sprites").with_changes({**changes, "memory.recache": recache}))
        found = [judged(engine, way, *pair) for pair in pairs]
        for when in ("soon", "late"):
            table = rates([one[when] for one in found])
            rows.append({"recache": way, "when": when, "pairs": len(pairs), **table})
            low, high = wilson(table["all"], len(pairs))
            shown = "  ".join(f"{name} {share:5.1%}" for name, share in table.items())
            print(f"{way:7}{when:6}{shown}   ({low:.1%} to {high:.1%})", flush=True)
    if args.json:
        place = environment(engine.settings, engine.implementations)
        facts = {"policy": args.policy, "switch": SWITCH, "rows": rows, "environment": place}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
