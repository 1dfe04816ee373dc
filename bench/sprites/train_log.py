"""What every training script of the embedded world shares: a text log of means, atomic checkpoints, final weights."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


class TrainLog:
    """Collects named values per step and appends their means to a text file, one line a call of ``write``."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, step: int, **values: Tensor) -> None:
        for name, value in values.items():
            self.values[name].append(value.detach().float())

    def write(self, step: int, seconds: float) -> None:
        means = {name: torch.stack(items).mean().item() for name, items in self.values.items()}
        self.values.clear()
        words = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        with self.path.open("a") as file:
            file.write(f"step {step + 1} {words} seconds {seconds:.0f}\n")

    def finish(
        self, path: Path, weights: dict[str, Tensor], config: dict[str, Any], steps: int
    ) -> None:
        """Write bfloat16 weights and, beside them, the configuration that rebuilds the module."""
        save_file({k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}, path)
        path.with_suffix(".json").write_text(
            json.dumps({"config": config, "steps": steps}, indent=1) + "\n"
        )


def atomic_save(value: object, path: Path) -> None:
    """torch.save to a temporary name, then rename: a checkpoint is whole or absent."""
    draft = path.with_suffix(".part")
    torch.save(value, draft)
    os.replace(draft, path)


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA when there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
