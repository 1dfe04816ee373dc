"""The DiT's big products in 8 bits: weights rounded to e4m3 once, activations on the way in.

    "fp8-row"     a scale for every output row of a weight and every token
    "fp8-tensor"  one scale for a weight and one for a batch of tokens

Rounded are the products of the blocks that every token passes: q, k and v joined, o, the feed-forward's two, q and o of
cross attention. Embeddings, head, modulation and the prompt's keys and values stay as they are. Where torch's scaled
product runs (GPUs from sm_89 on; in recent versions the CPU) it is used; elsewhere a reference multiplies the same 8-bit
numbers in float32. ``WanDiT.linears`` names which.

Source: W8A8 with dynamic activation scales, as in public 8-bit inference; ``torch._scaled_mm``.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.generators.wan import WanDiT
from runtime.generators.wan_layers import Block
from runtime.kernels.fp8_quantize import fp8_quantize, fp8_quantize_reference

log = logging.getLogger(__name__)

BY_ROWS = {"fp8-row": True, "fp8-tensor": False}
PROBE = 32  # a multiple of the 16 that the scaled product wants of every size


class Fp8Linear(nn.Module):
    """x @ W^T + b with both factors in e4m3. Legend: M tokens, K inputs, N outputs."""

    weight: Tensor  # [N, K] e4m3
    scale: Tensor  # [N, 1] or [] float32
    bias: Tensor | None  # [N]

    def __init__(self, weight: Tensor, bias: Tensor | None, by_rows: bool, scaled: bool) -> None:
        """``scaled``: by torch's scaled product, see ``scaled_product_runs``; else by the reference."""
        super().__init__()
        values, scale = fp8_quantize_reference(weight.detach(), by_rows)
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.by_rows = by_rows
        self.scaled = scaled
        # Chips whose product is not there have no 8-bit floats for a kernel either.
        self.rounding = "auto" if scaled else "torch"

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in x's dtype."""
        rows = x.reshape(-1, x.shape[-1])  # [M, K]
        values, scale = fp8_quantize(rows, self.by_rows, self.rounding)
        product = self._scaled if self.scaled else self._reference
        return product(values, scale, x.dtype).unflatten(0, x.shape[:-1])

    def _scaled(self, values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        own = self.scale.t() if self.by_rows else self.scale  # [1, N]
        weight = self.weight.t()  # the product wants its second factor column by column
        return torch._scaled_mm(values, weight, scale, own, bias=self.bias, out_dtype=dtype)

    def _reference(self, values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        own = self.scale.t() if self.by_rows else self.scale
        y = F.linear(values.float(), self.weight.float()) * (scale * own)
        return (y if self.bias is None else y + self.bias.float()).to(dtype)


def scaled_product_runs(device: torch.device, dtype: torch.dtype, by_rows: bool) -> bool:
    """Whether torch's scaled product takes these scales and gives this dtype here: it is asked, once, at load."""
    with torch.no_grad():
        ones = torch.ones(PROBE, PROBE, device=device, dtype=dtype)
        probe = Fp8Linear(ones, ones[0], by_rows, True)
        try:
            got = probe(ones)
        except torch.OutOfMemoryError:
            raise  # says nothing about the product
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            return False
        return bool((got == PROBE + 1).all())


@torch.no_grad()
def quantise_(dit: WanDiT, how: str) -> None:
    """Round the products of every block, one block at a time, so that both forms of one block are the most there is.

    ``how`` is "dense" (nothing happens), "fp8-row" or "fp8-tensor". Call it where the weights will stay: moving the
    module to another dtype afterwards would undo it.
    """
    if how == "dense":
        return
    if how not in BY_ROWS:
        raise ValueError(f"run.linears: want dense, {', '.join(BY_ROWS)}, got {how!r}")
    if dit.linears != "dense":
        raise ValueError(f"run.linears: these weights are {dit.linears} already")
    place = dit.patch_embedding.weight
    scaled = scaled_product_runs(place.device, place.dtype, BY_ROWS[how])
    if not scaled:
        log.warning(
            "run.linears=%r: torch has no scaled product of this kind on %s in %s, so the slow reference runs; "
            "it has the same rounding and saves no time",
            how,
            place.device,
            place.dtype,
        )
    for block in dit.blocks:
        _quantise_block_(block, BY_ROWS[how], scaled)
    dit.linears = f"{how} ({'scaled_mm' if scaled else 'reference'})"


def _quantise_block_(block: Block, by_rows: bool, scaled: bool) -> None:
    def rounded(linear: Any) -> nn.Module:
        return Fp8Linear(linear.weight, linear.bias, by_rows, scaled)

    own, cross, ffn = block.self_attn, block.cross_attn, block.ffn
    parts = own.q, own.k, own.v
    weight, bias = (torch.cat([getattr(p, name) for p in parts]) for name in ("weight", "bias"))
    block.joined = None
    block.product = Fp8Linear(weight, bias, by_rows, scaled)
    own.q, own.k, own.v = (nn.Identity() for _ in parts)  # their weights are in ``product``
    own.o, cross.q, cross.o = rounded(own.o), rounded(cross.q), rounded(cross.o)
    ffn[0], ffn[2] = rounded(ffn[0]), rounded(ffn[2])


def weight_bytes(dit: WanDiT, dtype: torch.dtype, how: str) -> int:
    """Bytes of the weights of a dense ``dit``, on the meta device or not, once they are in ``dtype`` and rounded ``how``."""
    total = sum(weight.numel() for weight in dit.parameters()) * dtype.itemsize
    if how == "dense":
        return total
    for block in dit.blocks:
        own, cross, ffn = block.self_attn, block.cross_attn, block.ffn
        products = ((own.q, own.k, own.v), (own.o,), (cross.q,), (cross.o,), (ffn[0],), (ffn[2],))
        for linears in products:
            total += sum(linear.weight.numel() for linear in linears) * (1 - dtype.itemsize)
            total += 4 * (sum(linear.out_features for linear in linears) if BY_ROWS[how] else 1)
    return total
