"""One of several processes of a video, for tests: ``python -m tests.rank_process SCENARIO FOLDER PORT PORT``.

torchrun's variables say which one it is; what it saw goes to ``rank_N.json`` in the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from runtime.__main__ import main
from runtime.engine import Engine
from runtime.ranks.engine import RankedEngine
from runtime.ranks.launch import Launch, launch
from runtime.ranks.world import Processes, RankFailed
from runtime.settings import Settings
from runtime.types import ChunkEvent
from tests.tiny import Likes, prettiness, tiny_dit, tiny_engine, tiny_vae

CHUNKS = 6
COMMON = {"memory.quality_threshold": -0.3, "run.litters": True, "search.seed": 3}
VIDEOS = {
    "stream-t1": {"search.histories": 4},
    "beam": {"search.policy": "beam", "search.expansions": 3},
    "best-of-n": {"search.policy": "best-of-n"},
    "horizon": {"search.histories": 3, "search.horizon_chunks": 1},
}
DOOR = ["x", "--set", "run.litters=true", "--set", "search.horizon_chunks=1", "--seconds", "18"]
LIMIT_S, HANG_S = 60.0, 10.0


def engine_of(changes: dict, judge: Callable = prettiness) -> Engine:
    return tiny_engine(CHUNKS, {**COMMON, **changes}, image=Likes(judge))


def door_engine(settings: Settings, judge: Callable = prettiness) -> Engine:
    """What the command line builds: tiny parts that make pictures."""
    asked = {"run.litters": True, "search.horizon_chunks": 1}
    dit = tiny_dit(dtype=torch.float32)
    return tiny_engine(CHUNKS, asked, dit=dit, decoder=tiny_vae(), image=Likes(judge))


def digest(events: Iterable[ChunkEvent]) -> list[str]:
    """A chunk a line: everything of a video that a user could compare."""
    lines = []
    for e in events:
        pixels = hashlib.sha256(e.frames.numpy().tobytes() + e.latents.numpy().tobytes())
        lines.append(f"{e.index} {e.seed} {e.route.value} {e.scores} {pixels.hexdigest()}")
    return lines


def trouble_on(rank: int, what: Callable[[], object]) -> Callable:
    """A reward that makes trouble on one rank, at chunk 3."""

    def judge(frames: torch.Tensor, chunk: int) -> float:
        if chunk == 3 and launch().rank == rank:
            what()
        return prettiness(frames, chunk)

    return judge


def without_memory(rank: int) -> Engine:
    """An engine that cannot decode on one rank after the first chunks."""
    engine = engine_of({})
    decoder, calls = engine.parts.generator.decoder, []
    decode = decoder.decode

    def once_too_often(latents: torch.Tensor, state: object) -> tuple:
        calls.append(latents)
        if launch().rank == rank and len(calls) > 3:
            raise torch.OutOfMemoryError
        return decode(latents, state)

    decoder.decode = once_too_often
    return engine


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def library(here: Launch) -> dict:
    """Videos on the ranks of one world; then one rank runs out of memory; then it dies."""
    seen: dict = {}
    world = Processes.join(here, torch.device("cpu"), LIMIT_S)
    for name, changes in VIDEOS.items():
        seen[name] = digest(RankedEngine(engine_of(changes), world).stream("x"))
    try:
        list(RankedEngine(without_memory(1), world).stream("x"))
    except RuntimeError as error:
        seen["out of memory"] = f"{type(error).__name__}: {error}"
    seen["after"] = digest(RankedEngine(engine_of({}), world).stream("x"))
    try:
        list(RankedEngine(engine_of({}, trouble_on(1, die)), world).stream("x"))
    except RankFailed as error:
        seen["dead"] = str(error)
    world.leave()
    return seen


def door(here: Launch, folder: Path, ports: list[str]) -> dict:
    """The command line twice: all is well; then a rank hangs."""
    seen = {"well": main([*DOOR, "-o", str(folder / "well.mp4")], door_engine)}
    os.environ["MASTER_PORT"] = ports[1]
    hangs = trouble_on(1, lambda: time.sleep(600))
    call = [*DOOR, "-o", str(folder / "hangs.mp4"), "--rank-timeout", str(HANG_S), "--quiet"]
    seen["hangs"] = main(call, lambda settings: door_engine(settings, hangs))
    return seen


if __name__ == "__main__":
    scenario, folder, *ports = sys.argv[1:]
    os.environ["MASTER_PORT"] = ports[0]
    torch.set_num_threads(1)
    me = launch()
    told = library(me) if scenario == "library" else door(me, Path(folder), ports)
    (Path(folder) / f"rank_{me.rank}.json").write_text(json.dumps(told))
