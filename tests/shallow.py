"""Full width, few layers: a model's sizes as published but for its depth, for tests that cannot wait for every layer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from runtime import generators
from runtime.rewards.hpsv3 import HPSv3
from runtime.rewards.videoalign import VideoAlign

LAYERS = 2
DEPTHS = {"dit": "layers", "text": "num_layers"}


def make_shallow(monkeypatch, folder: Path) -> None:
    """The generator "wan-1.3b" and both published rewards have ``LAYERS`` layers; its sizes are copied to ``folder``."""
    packaged, _ = generators.find_folder("wan-1.3b", "random")
    for path in packaged.glob("*.json"):
        shutil.copy(path, folder)
    for name, key in DEPTHS.items():
        path = folder / f"{name}.json"
        sizes = json.loads(path.read_text())
        sizes["config"][key] = LAYERS
        path.write_text(json.dumps(sizes))
    monkeypatch.setitem(generators.GENERATORS, "wan-1.3b", generators.Row(str(folder), "random"))
    for reward in (HPSv3, VideoAlign):
        config = reward.kind.config
        config = replace(
            config,
            text=replace(config.text, num_hidden_layers=LAYERS),
            vision=replace(config.vision, depth=LAYERS),
        )
        monkeypatch.setattr(reward, "kind", replace(reward.kind, config=config))
