"""Builds an engine of every graph of an export: on the GPU at hand, or by TensorRT-RTX for several GPUs without one.

What fails is an ``EngineError`` that names file, node or profile; see docs/tensorrt.md.
"""

from __future__ import annotations

import json

import torch

from runtime.exported import ENGINES, Exported
from runtime.trt import EnginePlace, build_engine


def build_engines(exported: Exported, target: str, keep_log: bool) -> None:
    """Build what is not there yet for ``target``, "tensorrt" or "tensorrt-rtx", and say what lies where."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = EnginePlace(target, exported.precision, exported.folder / ENGINES, device)
    for name, spec in exported.graphs.items():
        path = build_engine(exported.path(name), spec, place)
        if not keep_log:
            path.with_suffix(".log").unlink(missing_ok=True)
        manifest = json.loads(path.with_suffix(".json").read_text())
        where, built = manifest["facts"]["target"], manifest["build"]
        products = ", ".join(f"{count} {kind}" for kind, count in built["products"].items())
        print(
            f"{path} ({path.stat().st_size / 2**20:.1f} MiB): {name} for {where}, "
            f"products: {products}, built in {built['seconds']:.1f} s"
        )
