"""Fold an evicted KV block into a sink block, keys turned to the sink's place in time first.

    k[sink] <- alpha * k[sink] + (1 - alpha) * R(sink_start - evicted_start) k[evicted]
    v[sink] <- alpha * v[sink] + (1 - alpha) * v[evicted]

R(d) rotates every temporal pair (2j, 2j+1), j < m, by d * 10000^(-j/m): keys are kept rotated at the frame they were
born at, so an evicted key must be moved to where the sink lies before the two can be averaged.

Shapes   sink     [P, S, H, D] any float dtype. P = 2 * layers: keys then values; S tokens, H heads, D head dim.
         evicted  [P, S, H, D] same shape and dtype.
         shadow   [P, S, H, D] float32 or None: the running value of ``sink`` before rounding.
Math     float32 or wider inside; one rounding per merge. With a shadow the rounding does not accumulate: in bfloat16
         0.999 * x rounds back to x, so without one almost nothing would ever move.
         ``rounding="released"`` rounds after each of the three operations in the cache's dtype, as the released code does.
Source   Stream-T1, memory sinking.
Raises   ValueError for shapes or dtypes that differ and alpha outside [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def temporal_turn(
    shift_frames: float, pairs: int, temporal_pairs: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin [pairs] float64 that move a rotated key by ``shift_frames``; pairs of the other axes stay."""
    rates = torch.pow(
        10000.0, -torch.arange(temporal_pairs, dtype=torch.float64, device=device) / temporal_pairs
    )
    angles = torch.zeros(pairs, dtype=torch.float64, device=device)
    angles[:temporal_pairs] = shift_frames * rates
    return angles.cos(), angles.sin()


def shift_keys(keys: Tensor, shift_frames: float) -> Tensor:
    """Rotated keys [..., D] as if born ``shift_frames`` later; computed in at least float32, returned in their dtype."""
    if shift_frames == 0:
        return keys
    pairs = keys.shape[-1] // 2
    cos, sin = temporal_turn(shift_frames, pairs, pairs - 2 * (pairs // 3), keys.device)
    dtype = torch.promote_types(keys.dtype, torch.float32)
    cos, sin = cos.to(dtype), sin.to(dtype)
    even, odd = keys.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(keys.dtype)


def ema_merge_reference(
    sink: Tensor,
    evicted: Tensor,
    alpha: float,
    shift_frames: float,
    *,
    rounding: str = "once",
    shadow: Tensor | None = None,
) -> Tensor:
    """The plain meaning of the op: the merged block in float32 or wider ("once") or in the cache's dtype ("released").

    ``shift_frames`` is sink start minus evicted start. Nothing is modified; rounding "once" is left to the caller's store.
    """
    if sink.shape != evicted.shape or sink.dtype != evicted.dtype:
        raise ValueError(
            f"evicted: want {list(sink.shape)} {sink.dtype} as the sink, got {list(evicted.shape)} {evicted.dtype}"
        )
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: want a value in [0, 1], got {alpha}")
    layers = sink.shape[0] // 2
    if rounding == "released":
        moved = torch.cat([shift_keys(evicted[:layers], shift_frames), evicted[layers:]])
        return alpha * sink + (1 - alpha) * moved
    wide = torch.promote_types(sink.dtype, torch.float32)
    old = (sink if shadow is None else shadow).to(wide)
    new = evicted.to(wide)
    return alpha * old + (1 - alpha) * torch.cat(
        [shift_keys(new[:layers], shift_frames), new[layers:]]
    )
