"""Rounds the products of a network to 8 bits (e4m3): weights once, activations as they come, each by one scale per tensor.

    x -> Quantize -> Dequantize -> product <- Dequantize <- weight in 8 bits

Scales are powers of two, so they are exact in every dtype around the products and cost no bit of the mantissa. Those of
activations come from a calibration: the largest value that a linear read while torch scored a few clips. Larger ones
saturate. Heads, norms, attention and the first projection of patches stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from runtime.export.graph import Settle, as_ir, as_torch, put_constant_, transpose_
from runtime.export.pieces import Piece, Plan
from runtime.export.verify import ModuleGraph

EIGHT = torch.float8_e4m3fn
LARGEST = torch.finfo(EIGHT).max  # 448


def scale_of(largest: float) -> float:
    """The least power of two that brings ``largest`` into range; 1 where there is nothing to scale."""
    return 2.0 ** math.ceil(math.log2(largest / LARGEST)) if largest > 0.0 else 1.0


def rounded(x: Tensor, scale: float) -> Tensor:
    """``x`` over ``scale`` in 8 bits, saturated as QuantizeLinear does."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(EIGHT)


@dataclass(frozen=True, slots=True)
class Rounding:
    """Scales of the activations that linears read, by piece and by the linear's name."""

    scales: Mapping[str, Mapping[str, float]]

    @staticmethod
    def calibrated(plan: Plan) -> Rounding:
        """From the plan's clips, by torch."""
        largest: dict[str, dict[str, float]] = {name: {} for name in plan.pieces}
        with ExitStack() as stack:
            for name, piece in plan.pieces.items():
                stack.enter_context(watched(piece, plan.rounded, largest[name]))
            reward = plan.on_graphs(
                {name: ModuleGraph(piece) for name, piece in plan.pieces.items()}
            )
            for clip in plan.clips():
                reward.score(clip)
        if not any(largest.values()):
            raise ValueError(
                "--precision fp8: this reward has no products that are rounded; use fp16"
            )
        return Rounding({name: {linear: scale_of(most) for linear, most in found.items()} for name, found in largest.items()})  # fmt: skip

    def of(self, piece: str) -> Settle:
        """What puts 8 bits in the place of a piece's weights."""
        scales, done = self.scales[piece], {}

        def settle(model: Any, node: Any) -> None:
            linear = node.inputs[0].name.removesuffix(".weight")
            if linear in scales:
                _round(model, node, scales[linear], done)
            else:
                transpose_(model, node)

        return settle


@contextmanager
def watched(piece: Piece, prefixes: Any, largest: dict[str, float]) -> Iterator[None]:
    """Keep the largest value that every linear to be rounded reads."""

    def watch(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), inputs[0].abs().max().item())

        return note

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linears(piece, prefixes)]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def linears(piece: Piece, prefixes: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linears of a piece that are rounded."""
    for name, module in piece.module.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(tuple(prefixes)):
            yield name, module


def _round(model: Any, node: Any, activation_scale: float, done: dict[Any, Any]) -> None:
    """Put the weight that ``node`` turns, and what its products read, into 8 bits."""
    import onnx_ir as ir

    value, name = node.inputs[0].const_value, node.inputs[0].name
    dtype = value.dtype  # around the products
    scale = scale_of(as_torch(value).abs().max().float().item())
    weight = put_constant_(
        model, node, name, value, lambda w: rounded(w.T, scale), ir.DataType.FLOAT8E4M3FN
    )
    products = [user for user, _ in weight.uses()]
    zero = _constant(model, "fp8.zero", torch.zeros((), dtype=EIGHT))
    its_scale = _constant(model, f"{name}.scale", torch.tensor(scale, dtype=_torch(dtype)))
    wide = _node(products[0], "DequantizeLinear", [weight, its_scale, zero], weight, dtype)
    ir.convenience.replace_all_uses_with(weight, wide)
    wide.producer().replace_input_with(0, weight)
    for product in products:
        read = product.inputs[0]
        key = read.name, activation_scale
        if key not in done:
            scales = _constant(model, f"{read.name}.scale.{activation_scale}", torch.tensor(activation_scale, dtype=_torch(dtype)))  # fmt: skip
            narrow = _node(product, "QuantizeLinear", [read, scales, zero], read, ir.DataType.FLOAT8E4M3FN)  # fmt: skip
            done[key] = _node(product, "DequantizeLinear", [narrow, scales, zero], read, dtype)
        product.replace_input_with(0, done[key])


def _node(before: Any, kind: str, inputs: list[Any], like: Any, dtype: Any) -> Any:
    """The output of a new node that stands before another one."""
    import onnx_ir as ir

    node = ir.Node("", kind, inputs)
    output = node.outputs[0]
    output.name = f"{inputs[0].name}.{kind}.{inputs[1].name}"
    output.shape, output.type = like.shape, ir.TensorType(dtype)
    before.graph.insert_before(before, node)
    return output


def _constant(model: Any, name: str, tensor: Tensor) -> Any:
    import onnx_ir as ir

    if name not in model.graph.initializers:
        value = as_ir(tensor, name)
        fresh = ir.Value(name=name, shape=ir.Shape(tuple(tensor.shape)), type=ir.TensorType(value.dtype), const_value=value)  # fmt: skip
        model.graph.register_initializer(fresh)
    return model.graph.initializers[name]


def _torch(dtype: Any) -> torch.dtype:
    return {"FLOAT": torch.float32, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16}[dtype.name]  # fmt: skip
