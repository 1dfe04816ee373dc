"""The graphs of a reward as an export writes them: published ones with a layer or two, embedded ones as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from runtime.export.graph import write_graph
from runtime.export.pieces import Wanted, make_plan
from runtime.exported import GraphSpec
from tests.picture_folder import write_shallow
from tests.reward_folder import SIZES, write_folder

PICTURES = ("clip-h", "imagereward", "mps")


def small_pieces(
    name: str, precision: str, folder: Path
) -> Iterator[tuple[Path, GraphSpec, nn.Module]]:
    """(file, entry of export.json, module) of each graph that the rewards do not share: VideoAlign looks as HPSv3 does."""
    wanted = Wanted(reward=name, precision=precision)
    if name in PICTURES:
        wanted = dataclasses.replace(wanted, weights=str(write_shallow(folder, name)))
    elif not name.startswith("sprites"):
        # One layer of the decoder is its last; the precision that rewards are published in gets one before it.
        layers = 2 if precision == "bf16" else 1
        vision = {**SIZES["vision_config"], "depth": 1}
        weights = write_folder(folder, name, vision_config=vision, num_hidden_layers=layers)
        wanted = dataclasses.replace(
            wanted,
            weights=str(weights),
            frames=24 if name == "videoalign" else None,
            frame_size=(64, 96),
            prompt_words=16,
        )
    for graph, piece in make_plan(wanted).pieces.items():
        if (name, graph) != ("videoalign", "vision"):
            spec = write_graph(graph, piece, folder)
            yield folder / spec.file, spec, piece.module
