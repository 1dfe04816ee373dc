"""Draws sample strips from rows whose frames were kept: one line per method, frames over time, the verdict below each.

    python -m runtime.bench.quality.strips out/quality -o strip.png --prompt 3 --seconds 30

Needs Pillow.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runtime.bench.quality.methods import named
from runtime.bench.quality.row import RIGHT, Row
from runtime.bench.quality.store import load_frames, read

if TYPE_CHECKING:
    from PIL import ImageDraw

SHOWN = 10  # frames of a line
HEIGHT, GAP, MARGIN, LABEL = (
    96,
    4,
    12,
    176,
)  # pixels: of a frame, between frames, around all, of the labels
TEXT, HEAD, FOOT = 12, 22, 24  # pixels: of letters, of the line of times, of a verdict
PAGE, INK, SOFT, GOOD, BAD = "#ffffff", "#1b1f27", "#5b6472", "#27824b", "#b03a2e"


@dataclass(frozen=True, slots=True)
class Strip:
    """What several methods made of one prompt."""

    text: str  # the prompt
    seconds: float
    words: str  # what the picture shows, for whoever cannot see it
    png: bytes


def strips(rows: Iterable[Row], folder: Path, shown: int = SHOWN) -> list[Strip]:
    """One strip for each prompt and length of which frames were kept in ``folder``; lines in the order of ``rows``.

    ValueError for frames that are gone or a bad ``shown``, RuntimeError without Pillow.
    """
    groups: dict[tuple[float, int, int], list[Row]] = {}
    for row in rows:
        if row.file:
            key = row.key
            groups.setdefault((key.seconds, key.prompt, key.seed), []).append(row)
    return [
        Strip(
            text=group[0].text,
            seconds=seconds,
            words="; ".join(f"{named(row.key.method).label}: {_told(row)[0]}" for row in group),
            png=_png([(row, load_frames(folder, row)) for row in group], shown),
        )
        for (seconds, _, _), group in groups.items()
    ]


def _png(lines: Sequence[tuple[Row, Tensor]], shown: int) -> bytes:
    if shown < 2:
        raise ValueError(f"shown: want at least 2 frames of a video, got {shown}")
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise RuntimeError("strips are drawn by Pillow: pip install pillow") from error
    height, width = (int(size) for size in lines[0][1].shape[2:])
    across = round(width * HEIGHT / height)
    size = (
        2 * MARGIN + LABEL + shown * (across + GAP) - GAP,
        2 * MARGIN + HEAD + len(lines) * (HEIGHT + FOOT),
    )
    page = Image.new("RGB", size, PAGE)
    pen = ImageDraw.Draw(page)
    for column in range(shown):
        seconds = lines[0][0].key.seconds * column / (shown - 1)
        place = MARGIN + LABEL + column * (across + GAP), MARGIN
        pen.text(place, f"{seconds:.1f} s", fill=SOFT, font=_font())
    for number, (row, frames) in enumerate(lines):
        top = MARGIN + HEAD + number * (HEIGHT + FOOT)
        _label(pen, row, top)
        picked = torch.linspace(0, len(frames) - 1, shown).round().long()
        for column, frame in enumerate(frames[picked].movedim(1, -1).numpy()):
            picture = Image.fromarray(frame)
            if picture.size != (across, HEIGHT):
                picture = picture.resize((across, HEIGHT), Image.Resampling.LANCZOS)
            page.paste(picture, (MARGIN + LABEL + column * (across + GAP), top))
        words, good = _told(row)
        place = MARGIN + LABEL, top + HEIGHT + 3
        pen.text(place, words, fill=GOOD if good else BAD, font=_font())
    file = io.BytesIO()
    # A palette takes a third of the bytes, and clips of one prompt have few colours.
    page.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(TEXT)


def _label(pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    """The method's name beside its frames, in as many lines as it takes."""
    lines = [""]
    for word in named(row.key.method).label.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=_font()) <= LABEL - MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    for number, line in enumerate(part for part in lines if part):
        pen.text((MARGIN, top + number * (TEXT + 4)), line, fill=INK, font=_font())


def _told(row: Row) -> tuple[str, bool]:
    """The verdict in words, and whether it is a good one; nothing where there is no ground truth."""
    wrong = [f"{name}: {row.seen[name]}" for name, right in row.right.items() if not right]
    good = row.scores.get(RIGHT) == 1.0
    if not row.right:
        return "", good
    if good:
        return "all right" + "".join(f", but {words}" for words in wrong), good
    return "seen " + ", ".join(wrong), good


def main(argv: Sequence[str] | None = None) -> int:
    """Read a run's folder, write one strip."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.quality.strips",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("folder", type=Path, help="what python -m runtime.bench.quality wrote")
    add("-o", "--output", type=Path, default=Path("strip.png"))
    add("--prompt", type=int, default=0, help="its index in the world's list")
    add("--seconds", type=float, help="length of the videos; by default the longest that was kept")
    add("--frames", type=int, default=SHOWN, help="frames of a line")
    add("--methods", nargs="+", metavar="NAME", help="only these, in this order")
    args = parser.parse_args(argv)
    try:
        rows = [row for row in read(args.folder)[1] if row.file and row.key.prompt == args.prompt]
        rows = _chosen(rows, args.seconds, args.methods)
        found = strips(rows, args.folder, args.frames)
        args.output.write_bytes(found[0].png)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: {found[0].text}; {found[0].words}")
    return 0


def _chosen(rows: Sequence[Row], seconds: float | None, methods: Sequence[str] | None) -> list[Row]:
    """Rows of one length, in the order of ``methods``. ValueError where nothing was kept."""
    length = seconds or max((row.key.seconds for row in rows), default=0.0)
    kept = [row for row in rows if row.key.seconds == length]
    if methods is not None:
        kept = [row for name in methods for row in kept if row.key.method == name]
    if not kept:
        raise ValueError(
            "no frames were kept of such videos; see --keep of python -m runtime.bench.quality, "
            "and --prompt, --seconds and --methods"
        )
    return kept


if __name__ == "__main__":
    sys.exit(main())
