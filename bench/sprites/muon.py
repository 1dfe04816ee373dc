"""Muon for matrices of any rank, AdamW for the rest: fewer steps to the same loss on the small models trained here.

torch.optim.Muon takes 2-D parameters only, and half of ours are convolutions.
Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; update scale 0.2 * sqrt(max side)
as in Liu et al., "Muon is scalable for LLM training", 2025, so that it shares AdamW's learning rate.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix to each of ``update`` [count, rows, columns], by Newton-Schulz in bfloat16."""
    a, b, c = COEFFICIENTS
    x = update.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; a parameter of rank > 2 counts as [first axis, the rest]."""

    def __init__(
        self, parameters: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(
            parameters, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike = defaultdict(list)  # one batched product per shape
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for shape, parameters in alike.items():
                updates = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(updates), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean = state["mean"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum).flatten(1)


class Pair:
    """Muon for hidden matrices and AdamW for everything else, driven by one learning rate."""

    def __init__(self, model: nn.Module, edges: tuple[str, ...]) -> None:
        """``edges`` are name parts of first and last layers and embeddings, which AdamW handles better."""
        named = list(model.named_parameters())
        hidden = [p for n, p in named if p.ndim >= 2 and not any(edge in n for edge in edges)]
        chosen = {id(p) for p in hidden}
        rest = [p for _, p in named if id(p) not in chosen]
        self.parts = [Muon(hidden), torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0)]

    def step(self, rate: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, saved: list[dict]) -> None:
        for part, state in zip(self.parts, saved, strict=True):
            part.load_state_dict(state)
