"""Takes every number of one call of ``python -m runtime.bench``: videos in turns with their baselines, memory, power, ceilings."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from runtime.bench.clock import Ceiling, ceiling, narrow_matmul
from runtime.bench.cost import LineCosts
from runtime.bench.environment import command, environment, host_peak_mb, load, output_kind
from runtime.bench.measure import WARMUP_CHUNKS, make_video
from runtime.bench.power import Meter
from runtime.bench.profile import profile
from runtime.bench.sweep import Sweeper
from runtime.bench.timing import Timing, speedup
from runtime.engine import Engine
from runtime.noise import PhiloxNoise
from runtime.parts import Parts
from runtime.settings import Settings

PROMPTS = (
    "a red circle moving right quickly on a navy background",
    "a yellow star bouncing sideways slowly on a black background",
    "a cyan cross moving up slowly on a gray background",
    "a green square moving left slowly on a navy background",
    "a blue triangle bouncing vertically quickly on a gray background",
    "a pink circle moving down slowly on a forest background",
    "a purple star moving right slowly on a black background",
    "an orange square bouncing diagonally quickly on a navy background",
)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, and how often."""

    settings: Settings
    baselines: Mapping[str, Settings]
    repeats: int = 3
    baseline_repeats: int = 3
    warmups: int = 1
    sweep: Sequence[str] = ()
    sweep_seconds: float = 60.0
    profile: Path | None = None
    preset: str = ""
    say: Say = lambda text: None  # progress, one line each

    def batch(self, number: int) -> list[str]:
        """The prompts of one batch; the same number means the same prompts, whoever makes them."""
        count = self.settings.run.prompts
        return [PROMPTS[(number * count + place) % len(PROMPTS)] for place in range(count)]


@dataclass
class Taken:
    """The raw numbers."""

    ours: Timing
    theirs: dict[str, Timing]
    facts: dict[str, Any] = field(default_factory=dict)  # of the engine that was measured
    together: bool = True  # the baselines took turns with it; else they ran after it
    missing: dict[str, str] = field(default_factory=dict)  # baselines that did not fit, and why


def take(plan: Plan) -> dict[str, Any]:
    """Every number, under the keys of the JSON file."""
    busy = load()  # before there is anything of ours
    engine = _warm(plan, plan.settings, None, "the measured settings")
    parts = engine.parts
    meter = Meter.open(parts.generator.device)
    taken = _begin(plan, engine, meter)
    rest = range(1, plan.repeats)
    taken.together = fits_beside(engine, len(plan.baselines))
    if taken.together:
        _in_turns(plan, engine, taken, meter)
        del engine
    else:
        taken.ours.videos += [make_video(engine, plan.batch(n), meter=meter) for n in rest]
        taken.ours.price(LineCosts.of(engine))
        del engine  # its memory is the baselines' now
        _one_by_one(plan, parts, taken)
    _release()
    result = _facts(plan, taken)
    result["environment"]["load"] = busy
    result["power"] = meter.table(taken.ours.frames / parts.generator.fps)
    result["growth"] = _grown(plan, parts)
    if plan.profile is not None:
        warm = _warm(plan, plan.settings, parts, "the profile")
        result["profile"] = str(profile(warm, plan.batch(0), plan.profile))
        del warm
    dtype = parts.generator.dtype
    del parts
    _release()
    # Last: its buffers would be the peak of this process's memory.
    limit = _ceiling(plan.settings, dtype)
    result["ceilings"] = {**dataclasses.asdict(limit), "dtype": plan.settings.run.dtype}
    result["stages"] = taken.ours.stages(limit)
    result["stages_baseline"] = {name: t.stages(limit) for name, t in taken.theirs.items()}
    return result


def _warm(plan: Plan, settings: Settings, parts: Parts | None, name: str) -> Engine:
    """An engine that has run: kernels are compiled, graphs captured, memory is allocated."""
    plan.say(f"warming up {name}")
    engine = Engine(settings, parts)
    for number in range(plan.warmups):
        make_video(engine, plan.batch(number), most=WARMUP_CHUNKS)
    return engine


def _begin(plan: Plan, engine: Engine, meter: Meter) -> Taken:
    """The first video, and what there is to know of the engine while nothing else takes memory."""
    device, prompts = engine.parts.generator.device, plan.settings.run.prompts
    taken = Taken(Timing([], prompts), {name: Timing([], prompts) for name in plan.baselines})
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    plan.say(f"video 1 of {plan.repeats}")
    taken.ours.videos.append(make_video(engine, plan.batch(0), meter=meter))
    taken.facts = {
        "memory": memory_of(engine, taken.ours),
        "inside": inside(engine),
        "implementations": engine.implementations,
        "latent_size": list(engine.parts.generator.latent_shape[1:]),
    }
    return taken


def _in_turns(plan: Plan, engine: Engine, taken: Taken, meter: Meter) -> None:
    """A video of each baseline, the next of ours ...: what slows the machine down hits all of them."""
    rivals = {}
    for name in plan.baselines:
        if rival := _rival(plan, name, engine.parts, taken):
            rivals[name] = rival
    for number in range(plan.repeats):
        plan.say(f"video {number + 1} of {plan.repeats}")
        if number:
            taken.ours.videos.append(make_video(engine, plan.batch(number), meter=meter))
        if number < plan.baseline_repeats:
            for name, rival in rivals.items():
                taken.theirs[name].videos.append(make_video(rival, plan.batch(number)))
    taken.ours.price(LineCosts.of(engine))
    for name, rival in rivals.items():
        taken.theirs[name].price(LineCosts.of(rival))


def _one_by_one(plan: Plan, parts: Parts, taken: Taken) -> None:
    """The baselines alone, where there is no memory for two engines."""
    for name in plan.baselines:
        _release()
        rival = _rival(plan, name, parts, taken)
        if rival is None:
            continue
        timing = taken.theirs[name]
        timing.videos += [make_video(rival, plan.batch(n)) for n in range(plan.baseline_repeats)]
        timing.price(LineCosts.of(rival))
        del rival


def _rival(plan: Plan, name: str, parts: Parts, taken: Taken) -> Engine | None:
    """The engine of a baseline; None, and a note, where it does not fit: what was measured is not lost for it."""
    other = plan.baselines[name]
    try:
        return _warm(plan, other, _parts_for(plan.settings, other, parts), name)
    except torch.OutOfMemoryError as error:
        taken.missing[name] = str(error).splitlines()[0]
        del taken.theirs[name]
        return None


def fits_beside(engine: Engine, others: int) -> bool:
    """Whether ``others`` more engines of about this size, but for the models, can be there at the same time."""
    device = engine.parts.generator.device
    if device.type != "cuda" or not others:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - held
    work = torch.cuda.max_memory_allocated(device) - held
    # Half as much again: a baseline has more blocks, and keeps its own recordings and contexts.
    return free + cached >= 1.5 * (others * engine.pool.nbytes + work)


def _parts_for(settings: Settings, other: Settings, parts: Parts) -> Parts | None:
    """The models of ``settings`` as ``other`` runs them, weights shared; None: they have to be loaded anew."""
    run = settings.run
    back = {
        f"run.{name}": getattr(run, name) for name in ("schedule", "ops", "attention", "graphs")
    }
    if other.with_changes(back) != settings:
        return None
    if other.run.ops == run.ops:
        return parts
    dit = copy.copy(parts.generator.dit)  # another module of the same weights
    dit.ops = other.run.ops
    generator = dataclasses.replace(parts.generator, dit=dit)
    noise = PhiloxNoise(generator.device, generator.dtype, other.run.ops)
    return dataclasses.replace(parts, generator=generator, noise=noise)


def memory_of(engine: Engine, timing: Timing) -> dict[str, Any]:
    """Peaks of the process and the GPU so far, and the KV pool."""
    pool, device = engine.pool, engine.parts.generator.device
    block = pool.kv.nbytes // pool.blocks
    held = max((max(chunk.work.contexts) for chunk in timing.chunks), default=0)
    cuda = device.type == "cuda"
    return {
        "host_peak_mb": host_peak_mb(),
        "gpu_peak_mb": torch.cuda.max_memory_allocated(device) / 1e6 if cuda else None,
        "gpu_reserved_mb": torch.cuda.max_memory_reserved(device) / 1e6 if cuda else None,
        "kv_bytes": pool.nbytes,
        "kv_bytes_per_history": held * block,  # the most that one held; siblings share them
        "block_bytes": block,
        "pool_blocks": pool.blocks,
        "history_blocks": held,
    }


def _facts(plan: Plan, taken: Taken) -> dict[str, Any]:
    """What is known without ceilings."""
    ours, theirs, settings, facts = taken.ours, taken.theirs, plan.settings, taken.facts
    ratios = {name: speedup(ours, other) for name, other in theirs.items()}
    index, spans = ours.timeline()
    on_gpu = torch.device(settings.run.device).type == "cuda"
    return {
        "speedup": {name: ratio for name, (ratio, _) in ratios.items()},
        "speedup_spread": {name: list(spread) for name, (_, spread) in ratios.items()},
        "in_turns": taken.together,
        "baselines_missing": taken.missing,
        "pixel_fps": ours.pixel_fps,
        "pixel_fps_baseline": {name: other.pixel_fps for name, other in theirs.items()},
        "inside": facts["inside"],
        "latency": ours.latency(),
        "latency_baseline": {name: other.latency() for name, other in theirs.items()},
        "timeline": spans,
        "timeline_chunk": index,
        "host_ms": ours.host_ms() if on_gpu else None,
        "memory": facts["memory"],
        "videos": len(ours.videos) * ours.prompts,
        "videos_baseline": {name: len(t.videos) * t.prompts for name, t in theirs.items()},
        "frames": ours.frames,
        "chunks": len(ours.chunks),
        "chunk_frames": ours.chunks[-1].work.frames,
        "latent_size": facts["latent_size"],
        "settings": dataclasses.asdict(settings),
        "environment": {
            **environment(settings, facts["implementations"]),
            "preset": plan.preset,
            "command": command(),
        },
    }


def inside(engine: Engine) -> str:
    """What the frames per second hold, in words."""
    judged = engine.policy.judges or engine.policy.rates
    rewards = "both rewards, " if judged else "no rewards (the policy asks none), "
    return f"text, denoising, decoder, {rewards}search and writing ({output_kind()})"


def _grown(plan: Plan, parts: Parts) -> dict[str, list[dict[str, Any]]]:
    sweeper = Sweeper(plan.settings, parts, PROMPTS, plan.sweep_seconds)
    growth: dict[str, list[dict[str, Any]]] = {}
    for axis in plan.sweep:
        growth[axis] = []
        for point in sweeper.axis(axis):
            plan.say(f"sweep over {axis}: {point['x']}")
            growth[axis].append(point)
    return growth


def _ceiling(settings: Settings, dtype: torch.dtype) -> Ceiling:
    run = settings.run
    limit = ceiling(run.device, dtype)
    if run.linears != "dense" and torch.device(run.device).type == "cuda":
        limit = dataclasses.replace(limit, narrow_tflop_per_s=narrow_matmul(run.device))
    return limit


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
