"""Shows what the five measures say where the answer is known: clean clips, each defect by degrees, clips that wander.

    python -m runtime.bench.quality.known_answers --clips 16 --generated 8

Captions are of the tuning list. ``--generated`` also takes clips through the decoder and makes videos, with the packaged weights.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from runtime import generators
from runtime.bench.quality.prompts import tuning
from runtime.bench.quality.row import MEASURED, SPAN
from runtime.bench.quality.sprites_measures import Measured, measure
from runtime.bench.sprites.corrupt import Defects, corrupt
from runtime.bench.sprites.encode_clips import load_vae
from runtime.bench.sprites.wander import Wander, render_wandering
from runtime.bench.sprites.world import FPS, Scene, render
from runtime.engine import Engine
from runtime.parts import Parts
from runtime.presets import preset

FRAMES, LONG = 81, 477  # of five and of thirty seconds
LEVELS = (0.25, 0.5, 1.0)
DEFECTS = tuple(f.name for f in fields(Defects) if f.name not in ("wrong", "onset"))


def scenes(count: int) -> list[Scene]:
    """A scene for each of the first tuning captions, always the same."""
    return [Scene.draw(caption, random.Random(i)) for i, caption in enumerate(tuning(count))]


def broken(shown: Sequence[Scene], defect: str, level: float) -> list[Measured]:
    """Clips of five seconds with one defect, drawn as they would be for every other level."""
    defects = replace(Defects(), **{defect: level})
    return [
        measure(corrupt(scene, defects, FRAMES, seed=i).frames, scene.caption)
        for i, scene in enumerate(shown)
    ]


def wandering(scene: Scene, seed: int) -> Tensor:
    """A clip of thirty seconds whose look walks away from its caption."""
    return render_wandering(scene, Wander.draw(scene, LONG, 0, random.Random(seed)))


def line(name: str, clips: Iterable[Measured]) -> str:
    """Mean and, in brackets, standard deviation over ``clips`` of each column."""
    table = torch.tensor([[clip.scores()[column] for column in MEASURED] for clip in clips])
    spread = table.std(0) if len(table) > 1 else torch.zeros(len(MEASURED))
    cells = (f"{m:>8.3f} ({s:.3f})" for m, s in zip(table.mean(0), spread, strict=True))
    return f"{name:<24}" + "".join(cells)


def _made(shown: Sequence[Scene]) -> None:
    """Clips as the generator's own decoder shows them, and videos that it makes of the same captions."""
    settings = preset("sprites")
    parts = Parts.load(settings)
    folder = Path(generators.__file__).parent / "sprites"
    vae = load_vae(folder / "vae.safetensors", torch.device("cpu"))
    with torch.no_grad():
        clean = [render(scene, FRAMES)[None] for scene in shown]
        seen = [vae.decode_fresh(vae.encode(clip, piece=8))[0].clamp(0, 1) for clip in clean]
    print(line("through the decoder", map(measure, seen, [s.caption for s in shown])))
    for seconds in (5.0, 30.0):
        changes = {"seconds": seconds, "search.policy": "single"}
        engine = Engine(settings.with_changes(changes), parts)
        pieces: list[list[Tensor]] = [[] for _ in shown]
        for number, event in engine.stream_many([scene.caption.text for scene in shown]):
            pieces[number].append(event.frames)
        videos = [torch.cat(part) for part in pieces]
        found = list(map(measure, videos, [scene.caption for scene in shown]))
        print(line(f"plain streaming, {seconds:g} s", found), flush=True)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.quality.known_answers",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--clips", type=int, default=16, help="captions, at most 64")
    parser.add_argument("--generated", type=int, default=0, help="captions to make videos of")
    args = parser.parse_args()
    try:
        shown, made = scenes(args.clips), scenes(args.generated) if args.generated else []
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'':<24}" + "".join(f"{column:>16}" for column in MEASURED))
    print(line("clean", [measure(render(s, FRAMES), s.caption) for s in shown]))
    for defect in DEFECTS:
        for level in LEVELS:
            print(line(f"{defect} {level:g}", broken(shown, defect, level)), flush=True)
    walks = [measure(wandering(s, i), s.caption).over_time() for i, s in enumerate(shown)]
    print(f"wandering for 30 s, means over spans of {SPAN / FPS:g} s:")
    for column in MEASURED:
        means = torch.tensor([walk[column] for walk in walks]).mean(0)
        print(f"{column:<24}" + "".join(f"{value:>8.3f}" for value in means))
    if made:
        _made(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
