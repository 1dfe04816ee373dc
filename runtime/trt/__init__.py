"""TensorRT and TensorRT-RTX: builds engines of exported graphs, keeps them on disk and runs them on torch tensors.

    compiled = open_engine(onnx, spec, EnginePlace("tensorrt", "bf16", folder))
    outputs = compiled({"x": x, "at": at})

``build_engine`` only builds, which TensorRT-RTX does without a GPU. Whatever goes wrong with an engine is an
``EngineError``; a damaged one is set aside and built once more before that. See docs/tensorrt.md.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from pathlib import Path

from runtime.exported import GraphSpec
from runtime.trt import cache
from runtime.trt.build import build_plan
from runtime.trt.cache import Entry, Stamp, prune
from runtime.trt.place import EngineOptions, EnginePlace
from runtime.trt.run import Engine
from runtime.trt.vendor import VENDORS, EngineDamaged, EngineError

__all__ = [
    "EVENTS",
    "VENDORS",
    "EngineDamaged",
    "EngineError",
    "EngineOptions",
    "EnginePlace",
    "build_engine",
    "keys",
    "open_engine",
    "prune",
]

log = logging.getLogger(__name__)

# How often, in this process: "found", "built", "damaged" (then built once more), "refused" (an EngineError from here).
EVENTS: Counter[str] = Counter()


def open_engine(onnx: Path, spec: GraphSpec, place: EnginePlace) -> Engine:
    """The engine of a graph, built first if there is none. EngineError: it cannot be had, run the network by torch."""
    try:
        return _open(onnx, spec, place)
    except EngineError:
        EVENTS["refused"] += 1
        raise


def build_engine(
    onnx: Path, spec: GraphSpec, place: EnginePlace, options: EngineOptions | None = None
) -> Path:
    """Build an engine, unless a whole one is there, and return its file. EngineError says what is at fault."""
    if options is not None:
        place = dataclasses.replace(place, options=options)
    first = cache.entries(spec, place)[0]
    seen = first.stamp
    try:
        with first.read():
            EVENTS["found"] += 1
    except EngineDamaged as error:
        _set_aside(first, seen, error)
        _make(first, onnx, spec, place)
    return first.engine


def keys(spec: GraphSpec, place: EnginePlace) -> list[str]:
    """Of the engines that would do for a graph at a place; what ``prune`` should keep."""
    return [entry.key for entry in cache.entries(spec, place)]


def _open(onnx: Path, spec: GraphSpec, place: EnginePlace) -> Engine:
    _check_device(place)
    candidates = cache.entries(spec, place)
    first = candidates[0]
    entry = next((each for each in candidates if each.stamp), first)
    seen = entry.stamp
    try:
        engine = _load(entry, spec, place)
    except EngineDamaged as error:
        _set_aside(entry, seen, error)
        _make(first, onnx, spec, place)
        return _load(first, spec, place)
    EVENTS["found"] += 1
    return engine


def _check_device(place: EnginePlace) -> None:
    if not place.on_gpu:
        raise EngineError(f"{place.vendor}: engines run on a GPU, got device {place.device}")


def _load(entry: Entry, spec: GraphSpec, place: EnginePlace) -> Engine:
    with entry.read() as plan:
        return Engine(plan, spec, place, entry.jit)


def _set_aside(entry: Entry, seen: Stamp | None, error: EngineError) -> None:
    """Take a damaged engine away, unless there was none or it was built anew since its stamp was ``seen``."""
    if seen is None:
        return
    with cache.locked(entry.folder, "a damaged engine"):
        if entry.stamp == seen:
            EVENTS["damaged"] += 1
            log.warning("%s; it is set aside and built once more", error)
            entry.set_aside()


def _make(entry: Entry, onnx: Path, spec: GraphSpec, place: EnginePlace) -> None:
    """Build an engine, one process at a time; whoever waited finds what the other one built."""
    what = f"{place.vendor} engine of {spec.name}"
    with cache.locked(place.folder, what):
        if entry.stamp is not None:
            return
        cache.check_room(onnx, spec, place.folder)
        version, target = entry.facts["version"], entry.facts["target"]
        log.info("building the %s for %s, which may take minutes", what, target)
        timings = cache.timings_path(place, version, target)
        built = build_plan(onnx, spec, place, cache.read_sealed(timings))
        notes = {
            "seconds": round(built.seconds, 3),
            "layers": built.layers,
            "products": dict(built.products),
        }
        entry.write(built.plan, built.lines, notes)
        if built.timings:
            cache.write_sealed(timings, built.timings)
        EVENTS["built"] += 1
        log.info("built the %s in %.1f s: %s", what, built.seconds, entry.engine)
