"""Replays single forwards over given caches: the rooms memory, plan and denoise without a search around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from runtime.attention import Context
from runtime.bench.golden.compare import Report, stored, unrotated
from runtime.bench.golden.parts import Case, build_engine
from runtime.engine import Engine
from runtime.generators.schedule import sigma_at, to_x0
from runtime.kernels.rotary import rope_angles, rotate
from runtime.memory import Lease
from runtime.plan import plan_chunk
from runtime.settings import CHUNK_FRAMES
from runtime.types import Branch, Memory, Route, Slot, Trajectory


@torch.no_grad()
def replay(case: Case, dtype: torch.dtype, ops: str = "auto") -> Report:
    """Every recorded call in order; "after ..." calls go on from the memory that the named call left."""
    engine, report = build_engine(case, dtype, ops), Report(case.name, dtype)
    text = engine.parts.generator.encode("recorded")
    last = Memory()
    with engine.pool.lease() as lease:
        for call in case.facts["calls"]:
            state = call["state"] or ""
            if not state.startswith("after"):
                lease.drop(last.slots)
                last = _recorded_memory(case, engine, lease, call)
                last = engine.recipe.keeper.make_room([Trajectory(memory=last)], lease)[0].memory
            _compare(case, engine, report, call, last, text)
    engine.pool.check([])
    return report


def _recorded_memory(case: Case, engine: Engine, lease: Lease, call: Mapping[str, Any]) -> Memory:
    """The call's cache as blocks: recorded keys are rotated to where each block was born."""
    if call["state"] is None:
        return Memory()
    name = next(word for word in call["state"].split() if word.startswith("st"))
    tokens, before = engine.pool.kv.shape[2], call["before"]
    blocks = before["local_end_index"] // tokens
    sinks = before["current_sink_size"] // CHUNK_FRAMES
    initial = case.config["sink_size"] // CHUNK_FRAMES
    starts = [CHUNK_FRAMES * i for i in range(initial)] + list(before["append_sink_start_frame"])
    starts += [call["start_frame"] - CHUNK_FRAMES * back for back in range(blocks - sinks, 0, -1)]
    slots = []
    for place, start in enumerate(starts[:blocks]):
        flags = call["reward_score"].get(str(start), {})
        route = (
            Route.APPEND
            if flags.get("append")
            else Route.EMA
            if flags.get("ema")
            else Route.DISCARD
        )
        slot = Slot(lease.allocate(), start, route)
        _fill(case, engine, slot, name, slice(place * tokens, (place + 1) * tokens))
        slots.append(slot)
    return Memory(tuple(slots[:sinks]), tuple(slots[sinks:]))


def _fill(case: Case, engine: Engine, slot: Slot, name: str, span: slice) -> None:
    dtype = engine.pool.kv.dtype
    _, height, width = engine.parts.generator.latent_shape
    frames = slot.start_frame + torch.arange(CHUNK_FRAMES)[None]
    for layer in range(case.config["num_layers"]):
        key, value = (
            case.inputs[f"{name}/layer{layer}/{part}"][:, span].to(dtype) for part in "kv"
        )
        angles = rope_angles(frames, height // 2, width // 2, key.shape[-1])
        turned = rotate(key, angles.cos().to(dtype), angles.sin().to(dtype))
        engine.pool.write(layer, torch.tensor([slot.block]), turned, value)


def _compare(
    case: Case, engine: Engine, report: Report, call: Mapping[str, Any], memory: Memory, text: Any
) -> None:
    tag, dtype = call["tag"], engine.pool.kv.dtype
    branch = Branch(Trajectory(memory=memory), 0, 0, 0, 0)
    plan = plan_chunk([branch], call["start_frame"] // CHUNK_FRAMES, engine.settings.memory)
    own: dict[int, tuple[Tensor, Tensor]] = {}
    batch = engine.denoiser.batch(plan, [text])
    context = batch.context

    def recording(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own[layer] = (k, v)
        return context(layer, q, k, v)

    x = case.inputs[call["x"]].to(dtype)
    recorded = Context(recording, context.destinations)
    flow = engine.denoiser.flow(replace(batch, context=recorded), x, call["timestep"])
    report.tensor(f"{tag}/flow", flow, case.golden[f"{tag}/flow"])
    x0 = to_x0(x, flow, sigma_at(call["timestep"], case.config["timestep_shift"]))
    report.tensor(f"{tag}/x0", x0, case.golden[f"{tag}/x0"])
    starts = [slot.start_frame for slot in memory.slots] + [call["start_frame"]]
    for layer, (k, v) in own.items():
        keys, values = stored(engine, memory.slots, layer)
        keys = unrotated(engine, torch.cat([keys, k[0]]), starts)
        report.kv(f"{tag}/k", keys[None], case.golden[f"{tag}/after/layer{layer}/k"])
        report.kv(
            f"{tag}/v", torch.cat([values, v[0]])[None], case.golden[f"{tag}/after/layer{layer}/v"]
        )
    after = call["after"]
    if memory.sinks:
        report.decision(
            f"{tag} sink frames", len(memory.sinks) * CHUNK_FRAMES, after["current_sink_size"]
        )
    appended = [slot.start_frame for slot in memory.sinks[engine.settings.memory.sink_chunks :]]
    report.decision(f"{tag} appended sinks", appended, list(after["append_sink_start_frame"]))
