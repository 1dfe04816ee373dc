"""Standard normal noise that depends on seed, chunk, draw and element only: counter-based Philox.

    counter     = (element // 4, draw, chunk, STREAM)          four 32-bit words
    key         = (seed mod 2^32, seed // 2^32)                two 32-bit words
    w0 w1 w2 w3 = Philox4x32-10(counter, key)
    z0, z1      = normals(w0, w1)      z2, z3 = normals(w2, w3)      element takes z[element mod 4]
    normals(a, b):  r = sqrt(-2 ln u(a)),  t = 2 pi u(b)  ->  r cos t, r sin t
    u(w)        = (w + 1/2) / 2^32, in [2^-33, 1 - 2^-33]: never 0, never 1, so |z| < 6.77

Element counts row-major through ``shape``. A value does not know its batch, its shape, its device or
how the work was split over threads or GPUs; drawing row 3 alone gives row 3.

Shapes   seeds, chunks  B whole numbers each; result [B, *shape], contiguous.
         seed in [0, 2^64), chunk and draw in [0, 2^32), at most 2^34 elements in ``shape``.
         streams        [B, 3] int64, contiguous: seed (two's complement), chunk, draw of each row, on the device that
                        draws. Kernels read it there, so a captured graph serves every chunk. Not range-checked again.
Dtypes   The value is a float32. Other dtypes are casts of it.
Math     The words are the same bits in every implementation. In torch and C++ so are the values: ln, sin and cos are
         float64 series made of + - * / and sqrt, which IEEE 754 rounds the same way everywhere, in one order and
         without fused multiply-add, and one rounding to float32 at the end: within half a unit in the last place (and
         1e-6 of one) of the formula. The series: ``_log_unit`` and ``_cos_sin``. Triton computes in float32, at most
         2 units in the last place from them; why is in ``philox_triton``.
Source   Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; known
         answers from its library Random123, ``kat_vectors``. Box and Muller, 1958.
Raises   ValueError for a number out of range, lists of different lengths, or an ``impl`` that does not run on the
         device; RuntimeError for one that is not built or not installed.
"""

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from runtime.kernels import tuning
from runtime.kernels.build import Build, pointer
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.native import extension
from runtime.kernels.philox_triton import STREAM, normal_kernel
from runtime.kernels.triton_lang import triton
from runtime.kernels.tuning import Config

__all__ = ["STREAM", "implementation", "normal", "normal_reference", "philox_words_reference"]

_LOW = 0xFFFF_FFFF
_MULTIPLIERS = 0xD251_1F53, 0xCD9E_8D57
_WEYL = 0x9E37_79B9, 0xBB67_AE85
_SQRT_HALF_BITS = 0x3FE6_A09E_667F_3BCD  # sqrt(1/2) as float64
# Highest power first. The factorials are exact in float64, so each quotient is rounded once.
_ATANH = [1 / n for n in range(23, 0, -2)]
_SIN = [(-1) ** (n // 2) / math.factorial(n) for n in range(17, 0, -2)]
_COS = [(-1) ** (n // 2) / math.factorial(n) for n in range(16, -1, -2)]


def philox_words_reference(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10 of counter [..., 4] under key [..., 2] -> [..., 4]; int64 holding 32-bit words."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # A product may wrap below zero; masking removes the copies of the sign from its high half.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, ((p0 >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], -1)


def _series(coefficients: list[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _log_unit(word: Tensor) -> Tensor:
    """ln u(word) = e ln 2 + 2 atanh((m - 1) / (m + 1)) for u = 2^e m, m in [sqrt(1/2), sqrt(2))."""
    bits = (word.double() + 0.5).view(torch.int64)
    exponent = (bits - _SQRT_HALF_BITS) >> 52
    f = (bits - (exponent << 52)).view(torch.float64) - 1.0
    s = f / (f + 2.0)
    return (exponent - 32).double() * math.log(2) + (s + s) * _series(_ATANH, s * s)


def _cos_sin(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi u(word): integers take whole quarter turns, Taylor series the rest."""
    quadrant = (word + (1 << 29)) >> 30
    t = ((word - (quadrant << 30)).double() + 0.5) * 2.0**-30 * (math.pi / 2)  # in [-pi/4, pi/4]
    sine, cosine = _series(_SIN, t * t) * t, _series(_COS, t * t)
    odd = (quadrant & 1) == 1
    x, y = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    return torch.where(((quadrant + 1) & 2) == 2, -x, x), torch.where((quadrant & 2) == 2, -y, y)


def normals_reference(words: Tensor) -> Tensor:
    """Four words [..., 4] int64 -> their four standard normal values [..., 4] float32."""
    radius = (_log_unit(words[..., 0::2]) * -2.0).sqrt()  # [..., 2]
    cosine, sine = _cos_sin(words[..., 1::2])
    return torch.stack([radius * cosine, radius * sine], -1).float().flatten(-2)


def draw_reference(streams: Tensor, elements: int) -> Tensor:
    """streams [B, 3] -> [B, elements] float32, on the streams' device."""
    B, blocks = len(streams), -(-elements // 4)
    seed, chunk, draw = streams.view(B, 1, 3).unbind(-1)  # each [B, 1]
    key = torch.stack([seed & _LOW, (seed >> 32) & _LOW], -1)
    block = torch.arange(blocks, device=streams.device).expand(B, blocks)
    fixed = torch.stack([draw, chunk, torch.full_like(draw, STREAM)], -1).expand(B, blocks, 3)
    words = philox_words_reference(torch.cat([block.unsqueeze(-1), fixed], -1), key)
    return normals_reference(words).flatten(1)[:, :elements]


def normal_reference(
    seeds: Sequence[int],
    chunks: Sequence[int],
    draw: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The plain-torch meaning of ``normal``; runs on any device that has float64."""
    table = streams(seeds, chunks, draw, device)
    return draw_reference(table, elements_of(shape)).to(dtype).reshape(len(seeds), *shape)


def streams(
    seeds: Sequence[int], chunks: Sequence[int], draw: int, device: torch.device | str = "cpu"
) -> Tensor:
    """[B, 3] int64 on ``device``: what tells each row's draw from all others. Checks every number on the host."""
    return upload(stream_words(seeds, chunks, draw), torch.int64, device).view(len(seeds), 3)


def stream_words(seeds: Sequence[int], chunks: Sequence[int], draw: int) -> list[int]:
    """``streams`` as a flat list. ValueError for a number outside its range."""
    if len(seeds) != len(chunks):
        raise ValueError(f"chunks: want one for each of the {len(seeds)} seeds, got {len(chunks)}")
    draw = _whole("draw", draw, 32)
    words: list[int] = []
    for seed, chunk in zip(seeds, chunks, strict=True):
        seed = _whole("seed", seed, 64)
        words += (seed - (seed >> 63 << 64), _whole("chunk", chunk, 32), draw)
    return words


def upload(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Numbers of the host on ``device``, without waiting for it: a pageable copy would."""
    host = torch.tensor(numbers, dtype=dtype)
    if torch.device(device).type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def normal(
    seeds: Sequence[int],
    chunks: Sequence[int],
    draw: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
) -> Tensor:
    """Draw [len(seeds), *shape]: row b belongs to ``seeds[b]``, ``chunks[b]`` and ``draw``."""
    impl = implementation(impl, device)
    if impl == "torch":
        return normal_reference(seeds, chunks, draw, shape, device, dtype)
    elements, table = elements_of(shape), streams(seeds, chunks, draw, device)
    narrow = dtype if dtype in NARROW else torch.float32
    out = torch.empty(len(seeds), *shape, dtype=narrow, device=device)
    if not out.numel():
        return out.to(dtype)
    if impl == "triton":
        config = tuning.nearest("slerp_noise", {"elements": elements}, tuning.gpu_name())
        normal_kernel[grid(elements, len(out), config)](out, table, elements, **config)
    else:
        sizes = len(out), elements
        extension().philox_normal(
            out.data_ptr(),
            str(narrow).removeprefix("torch."),
            table.data_ptr(),
            sizes,
            torch.get_num_threads(),
        )
    return out.to(dtype)


def grid(elements: int, rows: int, config: Config) -> tuple[int, int]:
    """Programs of a kernel that draws ``4 * BLOCK`` values of one row each."""
    return triton.cdiv(elements, 4 * config["BLOCK"]), rows


def builds() -> Iterator[Build]:
    """Every form of the kernel that ``normal`` could launch."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for config in tuning.shipped("slerp_noise"):
            yield Build(
                f"philox normal {dtype} BLOCK={config['BLOCK']}",
                normal_kernel,
                {"out": pointer(dtype), "streams": "*i64", "elements": "i32"},
                {"BLOCK": config["BLOCK"]},
                config["num_warps"],
                aligned=frozenset({"out", "streams", "elements"}),
            )


def elements_of(shape: Sequence[int]) -> int:
    """How many values a row of ``shape`` has; ValueError for more than a row's counters can number."""
    elements = math.prod(shape)
    if elements > 1 << 34 or any(size < 0 for size in shape):
        raise ValueError(
            f"shape: want sizes of at least 0 and at most 2^34 elements, got {list(shape)}"
        )
    return elements


def _whole(name: str, value: int, bits: int) -> int:
    value = operator.index(value)
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name}: want a whole number in [0, 2^{bits}), got {value}")
    return value
