"""Makes the videos of a plan, batch by batch, and has each judged; rows come back in the order they are done.

Every worker loads the world and the weights once; all methods share them. A batch is the unit of work: what is stopped in
the middle of one is made again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import torch
from torch import Tensor

from runtime.bench.quality.costs import Meter
from runtime.bench.quality.plan import Job, Plan
from runtime.bench.quality.row import Cost, Row
from runtime.bench.quality.store import save_frames
from runtime.bench.quality.worlds import Filing, World, load_row
from runtime.engine import Engine
from runtime.parts import Parts
from runtime.settings import RewardSettings, Settings


class Maker:
    """Makes and judges batches. Holds the weights, and the engine of the last batch for the next one like it."""

    def __init__(self, plan: Plan, world: World | None = None, parts: Parts | None = None) -> None:
        """``world`` and ``parts`` that are there already, by default as the plan names them."""
        self.plan = plan
        self.world = world or load_row(plan.world, plan.wishes)
        self.world.texts(len(plan.texts))
        self._given = parts
        self._parts: tuple[Settings, Parts] | None = None
        self._engine: tuple[Settings, Engine, Meter] | None = None

    def make(self, job: Job) -> list[Row]:
        """One row per prompt of the batch."""
        plan = self.plan
        settings = plan.settings(job.method, job.seconds, job.seed)
        settings = settings.with_changes({"run.prompts": len(job.prompts)})
        engine, meter = self._ready(settings)
        texts = [plan.texts[prompt] for prompt in job.prompts]
        meter.begin(texts)
        began = time.perf_counter()
        pieces: list[list[Tensor]] = [[] for _ in texts]
        routes: list[list[str]] = [[] for _ in texts]
        for number, event in engine.stream_many(texts):
            pieces[number].append(to_bytes(event.frames))
            routes[number].append(event.route.value)
        costs = meter.costs(time.perf_counter() - began)
        told = routes if engine.policy.sinks else [[] for _ in texts]
        return [
            self._judged(job, prompt, torch.cat(parts), (cost, tuple(its)), engine.fps)
            for prompt, parts, cost, its in zip(job.prompts, pieces, costs, told, strict=True)
        ]

    def _judged(
        self, job: Job, prompt: int, frames: Tensor, how: tuple[Cost, tuple[str, ...]], fps: int
    ) -> Row:
        """The row of a finished video; ``how`` is what it took and its chunks' routes."""
        plan, world, key = self.plan, self.world, job.key(self.plan.name, prompt)
        kept = prompt < plan.keep and job.seed == plan.seeds[0]
        file = save_frames(plan.wishes.folder, key, frames) if kept else ""
        if isinstance(world, Filing):
            world.file(frames, key, plan.texts[prompt], fps)
        judged = world.judge(frames, prompt, fps)
        return Row(
            key=key,
            text=plan.texts[prompt],
            scores=judged.scores,
            cost=how[0],
            right=judged.right,
            seen=judged.seen,
            over_time=judged.over_time,
            routes=how[1],
            file=file,
        )

    def _ready(self, settings: Settings) -> tuple[Engine, Meter]:
        if self._engine is None or self._engine[0] != settings:
            self._engine = None  # before the next one: its memory is large
            engine = Engine(settings, self._given or self._loaded(settings))
            self._engine = settings, engine, Meter(engine)
        return self._engine[1:]

    def _loaded(self, settings: Settings) -> Parts:
        """The models, loaded anew only for a method that asks for others. Both rewards are there for all."""
        wanted = _models(settings)
        if self._parts is None or self._parts[0] != wanted:
            self._parts = None
            self._parts = wanted, Parts.load(wanted)
        return self._parts[1]


def _models(settings: Settings) -> Settings:
    """Settings that are equal where the models are: what says how they are used is at its default."""
    usual = RewardSettings()
    reward = replace(
        settings.reward, window_chunks=usual.window_chunks, tau=usual.tau, stride=usual.stride
    )
    run = replace(settings.run, prompts=1, batch_rows=0, decoder_rows=0, schedule="survivors")
    return Settings(reward=reward, run=replace(run, speculate=False))


def to_bytes(frames: Tensor) -> Tensor:
    """Frames in [0, 1] as they would be shown: uint8 on the CPU."""
    return frames.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def made(plan: Plan, work: Sequence[Job], world: World) -> Iterator[tuple[Job, list[Row]]]:
    """Every batch with its rows, as soon as it is done. Closing the iterator stops the work."""
    if plan.workers == 1:
        maker = Maker(plan, world)
        for job in work:
            yield job, maker.make(job)
        return
    context = multiprocessing.get_context("spawn")
    count = min(plan.workers, len(work))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, _begin, (plan,))
    with contextlib.ExitStack() as stack:
        stack.callback(_end, pool, others)
        futures: dict[Future[list[Row]], Job] = {pool.submit(_make, job): job for job in work}
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    yield futures.pop(future), future.result()
                except BrokenProcessPool:
                    raise RuntimeError(
                        "a worker process ended by itself, perhaps for want of memory (see above); what is done is "
                        "kept: run the same again, with fewer --workers or a smaller --batch"
                    ) from None


_maker: Maker | None = None  # of a worker process


def _begin(plan: Plan) -> None:
    """In a new worker: one thread, and an end without words when the run is stopped."""
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    _maker = Maker(plan)


def _make(job: Job) -> list[Row]:
    assert _maker is not None, "a worker begins with _begin"
    return _maker.make(job)


def _end(pool: ProcessPoolExecutor, others: set[object]) -> None:
    """Stop the workers now, in the middle of a batch if need be."""
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        if process not in others:
            process.terminate()
            process.join()
