"""The Triton kernel of ``ema_merge``: one program per stretch of one plane, so all layers go in one launch.

Two neighbours make a rotary pair, so keys are split into evens and odds in registers, turned, and joined again; values
are left as they lie. The arithmetic is the reference's, operation by operation: launch with ``enable_fp_fusion=False``.
"""

import functools
from collections.abc import Iterator

import torch

from runtime.kernels import tuning
from runtime.kernels.build import Build, pointer
from runtime.kernels.triton_lang import AVAILABLE, jit, tl

STREAM = 0x454D_4131  # "EMA1": keeps these random bits apart from the noise's
SPACE: list[tuning.Config] = [
    {"BLOCK": block, "num_warps": warps}
    for block in (1024, 2048, 4096, 8192)
    for warps in (4, 8)
    if 8 <= block // (32 * warps) <= 32
]
# Compiled once for all seeds: Triton would take 1 and multiples of 16 for special.
_SEEDS = ("key_low", "key_high", "step")
_jit = functools.partial(jit, do_not_specialize=_SEEDS) if AVAILABLE else jit


@jit
def _turned(fresh, first, turn, turned, head_pairs, BLOCK: tl.constexpr):
    """The leading ``turned`` pairs of every head, turned."""
    x, y = tl.split(tl.reshape(fresh, [BLOCK // 2, 2]))
    pair = (first // 2 + tl.arange(0, BLOCK // 2)) % head_pairs
    moves = pair < turned
    cos = tl.load(turn + pair, mask=moves, other=1.0)
    sin = tl.load(turn + turned + pair, mask=moves, other=0.0)
    even, odd = x * cos - y * sin, x * sin + y * cos
    return tl.reshape(tl.join(tl.where(moves, even, x), tl.where(moves, odd, y)), [BLOCK])


@jit
def _random_bits(first, plane, key_low, key_high, step, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    """16 bits for every element: eight neighbours share the four words of one counter."""
    octet = (first // 8 + tl.arange(0, BLOCK // 8)).to(tl.uint32)
    zero = octet ^ octet
    w0, w1, w2, w3 = tl.philox_impl(
        octet,
        zero ^ plane.to(tl.uint32),
        zero ^ step.to(tl.uint32),
        zero ^ STREAM,
        zero ^ key_low.to(tl.uint32),
        zero ^ key_high.to(tl.uint32),
    )
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK // 2])
    return tl.reshape(tl.join(words & 0xFFFF, words >> 16), [BLOCK])


@_jit
def ema_merge_kernel(
    out,
    sink,
    evicted,
    shadow_in,
    shadow_out,
    turn,
    out_stride,
    sink_stride,
    evicted_stride,
    shadow_in_stride,
    shadow_out_stride,
    elements,
    key_planes,
    head_pairs,
    turned,
    alpha,
    rest,
    key_low,
    key_high,
    step,
    STORAGE: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    plane = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    at = first + tl.arange(0, BLOCK)
    inside = at < elements
    narrow = out.dtype.element_ty
    fresh = tl.load(evicted + plane * evicted_stride + at, mask=inside, other=0.0).to(tl.float32)
    if shadow_in is None:
        old = tl.load(sink + plane * sink_stride + at, mask=inside, other=0.0).to(tl.float32)
    else:
        old = tl.load(shadow_in + plane * shadow_in_stride + at, mask=inside, other=0.0)
    if plane < key_planes:
        fresh = _turned(fresh, first, turn, turned, head_pairs, BLOCK)
    kept = alpha * old
    if STORAGE == "released":
        kept = kept.to(narrow).to(tl.float32)
        fresh = (rest * fresh.to(narrow).to(tl.float32)).to(narrow).to(tl.float32)
        mixed = kept + fresh
    else:
        mixed = kept + rest * fresh
    if shadow_out is not None:
        tl.store(shadow_out + plane * shadow_out_stride + at, mixed, mask=inside)
    if STORAGE == "stochastic":
        random = _random_bits(first, plane, key_low, key_high, step, STREAM, BLOCK)
        bits = (mixed.to(tl.uint32, bitcast=True) + random) >> 16
        bits = tl.where(mixed != mixed, 0x7FC0, bits)
        result = bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = mixed.to(narrow)
    tl.store(out + plane * out_stride + at, result, mask=inside)


def builds() -> Iterator[Build]:
    """Every shipped form. Launch them with ``enable_fp_fusion=False``."""
    forms = [(torch.float32, "once")]
    forms += [(torch.bfloat16, s) for s in ("once", "fp32_shadow", "stochastic", "released")]
    forms += [(torch.float16, s) for s in ("once", "fp32_shadow", "released")]
    for config in tuning.shipped("ema_merge"):
        for dtype, storage in forms:
            yield _build(dtype, storage, config)
            if storage == "fp32_shadow":
                yield _build(dtype, storage, config, first=True)


def _build(dtype: torch.dtype, storage: str, config: tuning.Config, first: bool = False) -> Build:
    """``first``: a sink that was never merged before has no shadow to read."""
    pointers = dict.fromkeys(("out", "sink", "evicted"), pointer(dtype)) | {"turn": "*fp32"}
    shadows = ("shadow_in", "shadow_out")
    strides = [f"{name}_stride" for name in ("out", "sink", "evicted", *shadows)]
    # Up to 2^31 elements between the planes of a pool: some 290 blocks at full size.
    signature = pointers | dict.fromkeys(strides, "i32")
    constants: dict[str, object] = {"STORAGE": storage, "STREAM": STREAM, "BLOCK": config["BLOCK"]}
    if storage == "fp32_shadow":
        signature |= dict.fromkeys(shadows, "*fp32")
    else:
        constants |= dict.fromkeys(shadows)
    if first:
        del signature["shadow_in"]
        constants["shadow_in"] = None
    for name in ("elements", "key_planes", "head_pairs", "turned", *_SEEDS):
        signature[name] = "i32"
    signature |= {"alpha": "fp32", "rest": "fp32"}
    when = " first" if first else ""
    label = f"ema_merge {dtype} {storage}{when} BLOCK={config['BLOCK']}".replace("torch.", "")
    aligned = frozenset({*pointers, *strides, *(set(shadows) & set(signature)), "elements"})
    return Build(
        label,
        ema_merge_kernel,
        signature,
        constants,
        config["num_warps"],
        aligned=aligned,
        fused=False,
    )
