"""What both rewards of the embedded world are made of: a trained network, its vocabulary, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from runtime.rewards.graphs import WholeNetwork
from runtime.rewards.sprites_net import read_words
from runtime.types import Compiled
from runtime.weights import load_weights_

if TYPE_CHECKING:
    from typing_extensions import Self


class SpritesReward:
    """Loads a network of kind ``network``, or its exported graph; always in float32."""

    packaged: ClassVar[Path]
    network: ClassVar[type[nn.Module]]
    reading: ClassVar[Any]  # the named tuple that the network returns

    def __init__(self, net: nn.Module, words: tuple[str, ...], device: torch.device) -> None:
        # Another that computes the same may take its place.
        self.net: Any = net.to(device, torch.float32).eval().requires_grad_(False)
        self.words = words
        self.device = device

    @classmethod
    def load(cls, device: str | torch.device = "cpu", path: str | Path | None = None) -> Self:
        """The trained reward from ``path`` (a .safetensors file with a .json beside it), by default the packaged one.

        Raises ValueError for a missing or wrong file, naming file and key.
        """
        path = Path(path) if path else cls.packaged
        words = read_words(path)
        net = cls.network(len(words))
        load_weights_(net, path)
        return cls(net, words, torch.device(device))

    @classmethod
    def on_graphs(
        cls,
        device: str | torch.device,
        path: str | Path | None,
        graphs: Mapping[str, Compiled],
        constants: Mapping[str, Any],
    ) -> Self:
        """On the exported graph of these weights, which are small enough to be read all the same."""
        reward = cls.load(device, path)
        reward.net = WholeNetwork(graphs["whole"], cls.reading)
        return reward
