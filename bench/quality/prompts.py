"""The fixed prompts and seeds of the embedded world's comparison; both lists are held out from training, and disjoint.

``sprites_held_out.txt`` is what tables are made from. ``sprites_tuning.txt`` is for choosing hyper-parameters: whoever tunes
on the first list has no test left.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from runtime.bench.sprites.world import Caption, all_captions

FOLDER = Path(__file__).parent / "prompts"
FILES = {"held-out": "sprites_held_out.txt", "tuning": "sprites_tuning.txt"}
FIRST_SEED = 42
SEED_STEP = 1_000_000  # more than the seeds of one video lie apart


def held_out(count: int) -> list[Caption]:
    """The first ``count`` captions that results are reported on."""
    return split("held-out", count)


def tuning(count: int) -> list[Caption]:
    """The first ``count`` captions that choices may be made on."""
    return split("tuning", count)


def split(name: str, count: int) -> list[Caption]:
    """The first ``count`` captions of a list. ValueError when there are fewer, or no such list."""
    if name not in FILES:
        raise ValueError(f"--split: want one of {', '.join(FILES)}, got {name!r}")
    known = _read(FILES[name])
    if not 1 <= count <= len(known):
        raise ValueError(f"--prompts: want 1 to {len(known)} of the {name} list, got {count}")
    return list(known[:count])


def seeds(count: int) -> tuple[int, ...]:
    """The first ``count`` seeds: every prompt is made once with each of them."""
    return tuple(FIRST_SEED + number * SEED_STEP for number in range(count))


@cache
def _read(name: str) -> tuple[Caption, ...]:
    captions = {caption.text: caption for caption in all_captions()}
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return tuple(captions[line] for line in lines)
