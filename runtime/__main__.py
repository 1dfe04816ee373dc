"""The command-line door: ``python -m runtime "PROMPT" -o out.mp4``.

Exit codes: 0 done, 1 the machine failed, 2 the call was wrong, 130 and 143 stopped by Ctrl-C or SIGTERM. Every error
is one line on stderr. Heavy modules are imported only once the arguments are known to be right.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import signal
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.arguments import Job, build_jobs, build_settings, check_files, parse
from runtime.ranks.launch import Launch, launch
from runtime.scenes import scenes_of, spelled
from runtime.settings import Settings

if TYPE_CHECKING:
    from runtime.engine import Engine
    from runtime.paced import PacedEngine
    from runtime.ranks.engine import RankedEngine
    from runtime.trace import TraceWriter
    from runtime.types import Chunk, ChunkEvent, ChunkRecord
    from runtime.video import VideoWriter

    AnyEngine = Engine | PacedEngine | RankedEngine

SHOWN_SEEDS = 8
Builder = Callable[[Settings], "Engine"]


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, with its own exit code."""


@dataclass(slots=True)
class Story:
    """What happened to one prompt so far: for the progress bar, the report and a stop in the middle."""

    chunks: int
    drawn: int = 0  # candidates
    made: int = 0  # chunks, settled or not
    frames: int = 0  # of those chunks
    score: float = math.nan  # of the best history
    best: tuple[Chunk, ...] = ()  # its chunks that are not settled
    routes: Counter[str] = field(default_factory=Counter)  # of the video's chunks but the first
    seeds: list[int] = field(default_factory=list)  # of the video's first chunks
    budget: str = ""  # what was chosen to keep a pace, and the pace that was kept
    began: float = field(default_factory=time.perf_counter)

    def watch(self, record: ChunkRecord) -> None:
        leader = record.survivors[0]
        self.drawn += len(record.candidates)
        self.made = record.index + 1
        self.frames += len(record.frames[record.kept[0]])
        self.score, self.best = leader.score, leader.unsettled

    def settle(self, chunk: ChunkEvent | Chunk) -> None:
        if chunk.index:
            self.routes[chunk.route.value] += 1
        if len(self.seeds) < SHOWN_SEEDS:
            self.seeds.append(chunk.seed)

    @property
    def pace(self) -> str:
        score = f"best {self.score:.3f}, " if math.isfinite(self.score) else ""
        return f"{score}{self.frames / (time.perf_counter() - self.began):.1f} frames/s"


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where the chunks of one video go."""

    video: VideoWriter
    trace: TraceWriter | None
    story: Story

    def settle(self, chunk: ChunkEvent | Chunk) -> None:
        self.video.add(chunk.frames)
        self.story.settle(chunk)
        if self.trace:
            self.trace.settled(chunk)

    def save_best(self) -> None:
        """Append what the best history has beyond the settled chunks: nobody is going to change it any more."""
        for chunk in self.story.best:
            if chunk.index == self.video.written.chunks:
                self.settle(chunk)

    @property
    def kept(self) -> str:
        frames = self.video.written.frames
        if not frames:
            return "no chunk was finished, so there is no video"
        return f"{frames} frames ({self.video.seconds:.1f} s) are playable in {self.video.path}"


def strange_rewards(settings: Settings) -> str:
    """Embedded rewards that are asked about a generator of another world, joined; "" for none."""
    if settings.run.generator.startswith("sprites"):
        return ""
    asked = f"{settings.reward.image}+{settings.reward.video}"
    names = dict.fromkeys(re.findall(r"sprites-(?:image|video)", asked))
    return " and ".join(names)


def load_engine(settings: Settings) -> Engine:
    from runtime.engine import Engine

    return Engine(settings)


def main(argv: Sequence[str] | None = None, build: Builder = load_engine) -> int:
    """Do what the arguments say and return the exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        with stopped_by_sigterm():
            run(parse(sys.argv[1:] if argv is None else argv), build)
        return 0
    except KeyboardInterrupt as stop:
        complain("stopped", stop if stop.args else "nothing was generated yet")
        return 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, (ValueError, RuntimeError, OSError, ImportError))
        complain("error", error if known else f"{type(error).__name__}: {error}")
        return 2 if isinstance(error, ValueError) else 1


def run(options: Namespace, build: Builder) -> None:
    settings, jobs = build_settings(options), build_jobs(options)
    ranks = launch()
    if ranks is not None:
        return run_ranked(settings, jobs, options, ranks, build)
    if settings.run.ranks != 1:
        raise ValueError(
            f"run.ranks: want {settings.run.ranks} processes, got one; start them by torchrun"
        )
    check_files(jobs)
    if settings.run.prompts == 0:
        from runtime.sizing import most_prompts

        count = min(most_prompts(settings), len(jobs))
        settings = settings.with_changes({"run.prompts": count})
    built = build(settings)
    engine: Engine | PacedEngine = built
    if options.budget_fps is not None:
        from runtime.paced import PacedEngine

        engine = PacedEngine(built, options.budget_fps)
    generate(engine, jobs, settings, options)


def run_ranked(
    settings: Settings, jobs: Sequence[Job], options: Namespace, ranks: Launch, build: Builder
) -> None:
    """``run`` as one of several processes: the first writes and reports, the others work."""
    from runtime.ranks.door import ranked_engine

    if options.budget_fps is not None:
        raise ValueError("--budget-fps: goes with a single process, whose costs it learns")
    if ranks.rank == 0:
        check_files(jobs)
    with ranked_engine(settings, ranks, options.rank_timeout, build) as engine:
        if engine.idle:
            complain("note", engine.why_idle)
        if ranks.rank == 0:
            return generate(engine, jobs, settings, options)
        for job in jobs:
            engine.work(job.scenes)


def generate(
    engine: AnyEngine, jobs: Sequence[Job], settings: Settings, options: Namespace
) -> None:
    """All the videos, as many at a time as share a batch."""
    if strangers := strange_rewards(settings):
        complain("warning", f"{strangers} know the embedded world alone, not what {settings.run.generator} shows; "
                 "set reward.image and reward.video, or take a --preset")  # fmt: skip
    for job in jobs:
        scenes_of(job.scenes, engine.chunks)  # before a file is touched
        told = [word for _, prompt in job.scenes for word in engine.unknown_words(prompt)]
        if words := list(dict.fromkeys(told)):
            complain("warning", f"the model does not know these words: {', '.join(words)}")
    for first in range(0, len(jobs), engine.batch_prompts):
        group = jobs[first : first + engine.batch_prompts]
        last = first + len(group)
        which = f"{last}" if len(group) == 1 else f"{first + 1}-{last}"
        label = f"prompt {which}/{len(jobs)}" if len(jobs) > 1 else "chunk"
        produce(engine, group, settings, options, label)


def produce(
    engine: AnyEngine, jobs: Sequence[Job], settings: Settings, options: Namespace, label: str
) -> None:
    """Prompts that share a batch, one video each. Whatever ends them early, the chunks before are in the files."""
    with contextlib.ExitStack() as stack:
        sinks = [open_sinks(engine, job, settings, options, stack) for job in jobs]
        watch = stack.enter_context(watching(sinks, label, options.quiet))
        try:
            told = [job.scenes for job in jobs]
            for number, event in engine.stream_many(told, watch=watch):
                sinks[number].settle(event)
        except KeyboardInterrupt as stop:
            for one in sinks:
                one.save_best()
            at = f"after chunk {sinks[0].story.made} of {engine.chunks}"
            raise type(stop)(f"{at}; {kept(sinks)}") from None
        except (RuntimeError, OSError, MemoryError) as error:
            raise RuntimeError(f"{error or type(error).__name__}; {kept(sinks)}") from error
        seconds = time.perf_counter() - sinks[0].story.began
        if options.budget_fps is not None:
            note_budgets(engine, sinks)
    if not options.quiet:
        for job, one in zip(jobs, sinks, strict=True):
            report(job, settings, one, seconds)


def note_budgets(engine: AnyEngine, sinks: Sequence[Sinks]) -> None:
    """Tell each video's story and trace what its budget chose and kept."""
    from runtime.paced import PacedEngine, described

    assert isinstance(engine, PacedEngine), "a pace is kept by an engine that keeps one"
    for number, one in enumerate(sinks):
        one.story.budget = engine.budgets[number].report()
        if one.trace:
            one.trace.notes["budget"] = described(engine.budgets[number])


def open_sinks(
    engine: AnyEngine, job: Job, settings: Settings, options: Namespace, stack: contextlib.ExitStack
) -> Sinks:
    """The files of one video, closed with ``stack``."""
    from runtime.trace import TraceWriter
    from runtime.video import VideoWriter

    writer = VideoWriter(job.output, engine.fps, scale=options.scale, ops=settings.run.ops)
    video = stack.enter_context(writer)
    trace = stack.enter_context(TraceWriter(job.trace)) if job.trace else None
    if trace:
        trace.begin(
            spelled(job.scenes), settings, engine.fps, engine.chunks, engine.implementations
        )
    return Sinks(video, trace, Story(engine.chunks))


def kept(sinks: Sequence[Sinks]) -> str:
    """What is in the files."""
    return "; ".join(one.kept for one in sinks)


@contextlib.contextmanager
def watching(
    sinks: Sequence[Sinks], label: str, quiet: bool
) -> Iterator[Callable[[ChunkRecord], None]]:
    """A ``Watch`` that feeds each video's story and trace and, on a terminal, a progress bar."""
    from tqdm import tqdm

    chunks = sum(one.story.chunks for one in sinks)
    with tqdm(total=chunks, desc=label, unit="chunk", disable=quiet or None) as bar:

        def watch(record: ChunkRecord) -> None:
            mine = sinks[record.prompt]
            mine.story.watch(record)
            if mine.trace:
                mine.trace(record)
            bar.set_postfix_str(mine.story.pace, refresh=False)
            bar.update()

        yield watch


def report(job: Job, settings: Settings, sinks: Sinks, seconds: float) -> None:
    """Say what was done and where it is."""
    search, story, video = settings.search, sinks.story, sinks.video
    frames = video.written.frames
    how = f"{search.policy} ({settings.fidelity}), K={search.histories}, M={search.expansions}"
    work = f"{story.drawn} candidates for {story.chunks} chunks"
    say(f"search  {how}, seed {search.seed}: {work}")
    if story.routes:
        say(f"routes  {', '.join(f'{name} {n}' for name, n in sorted(story.routes.items()))}")
    more = ", ..." if video.written.chunks > len(story.seeds) else ""
    say(f"seeds   {', '.join(map(str, story.seeds))}{more}")
    say(f"speed   {frames / seconds:.1f} frames/s with decoder and rewards ({seconds:.1f} s)")
    if story.budget:
        say(f"budget  {story.budget}")
    path = video.path.resolve()
    size = f"{video.size_bytes / 1024:.0f} KiB, {frames} frames of {video.width}x{video.height}"
    say(f"video   {path} ({size}, {video.seconds:.1f} s at {video.fps} fps)")
    if job.trace:
        trace = job.trace.resolve()
        png = trace.with_suffix(".png")
        say(f"trace   {trace}")
        draw = [this_python(), "-m", "runtime.bench.tree", str(trace), "-o", str(png)]
        say(f"tree    {shlex.join(draw)}")


def this_python() -> str:
    """How to call the running Python from here: by its path when it lies below this folder, else by its usual name."""
    path, here = Path(sys.executable), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else "python"


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``Terminated`` for a while; only the main thread may ask."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say(text: str) -> None:
    """Print on stdout whatever its encoding is."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def complain(kind: str, message: object) -> None:
    """One line on stderr."""
    print(f"{kind}: {' '.join(str(message).split()) or type(message).__name__}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
