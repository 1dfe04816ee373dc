"""Rows to 8-bit floats (e4m3) with a scale each, or one for all: what an 8-bit product wants of its activations.

    scale = max(|x|) / 448,   values = e4m3(x * (448 / max(|x|)))      so that   x ~ values * scale

448 is the largest e4m3 number. The maximum is taken over a row, or over the whole tensor; all zeros give zeros and the
smallest scale.

Shapes   x       [M, K], last axis dense, rows at any stride. One of float32, bfloat16, float16.
         values  [M, K] float8_e4m3fn, dense.
         scale   [M, 1] float32 by rows, [] of the whole tensor.
Math     float32; the product is rounded once, to nearest even. Bit-equal on all implementations.
Source   OCP 8-bit floating point specification 1.0, format E4M3; dynamic scaling as usual for 8-bit inference.
Raises   ValueError for a wrong shape, dtype or layout.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from runtime.kernels import check, tuning
from runtime.kernels.build import Build, pointer
from runtime.kernels.dispatch import NARROW, implementation
from runtime.kernels.triton_lang import INTERPRETED, jit, tl, triton
from runtime.kernels.tuning import Config

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
TINY = 1e-12  # the smallest maximum there is: below it everything is zero
OFFERS = {"triton": NARROW}
WIDEST = 16384  # elements of a row that one program holds
SPACE: list[Config] = [{"num_warps": warps, "num_stages": 1} for warps in (1, 2, 4, 8, 16)]


def fp8_quantize_reference(x: Tensor, by_rows: bool = True) -> tuple[Tensor, Tensor]:
    """The plain-torch meaning of ``fp8_quantize``; runs anywhere, in any float dtype."""
    largest = _largest(x.float(), by_rows)
    values = (x.float() * (LARGEST / largest)).clamp(-LARGEST, LARGEST)
    return values.to(E4M3), largest / LARGEST


def _largest(x: Tensor, by_rows: bool) -> Tensor:
    axes = {"dim": -1, "keepdim": True} if by_rows else {}
    largest = torch.linalg.vector_norm(x, float("inf"), dtype=torch.float32, **axes)
    return largest.clamp_min(TINY)


# Triton's interpreter loses the carry when it rounds to 8 bits, so there values are brought to the grid first: for three
# bits of mantissa, and in steps of 2^-9 below 2^-6. On a GPU the conversion itself rounds to nearest even.
@jit
def _on_the_grid(x):
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    small = (tl.abs(x) + 24576.0) - 24576.0  # 1.5 * 2^14: the last bit of a sum is worth 2^-9
    signed = (small.to(tl.int32, bitcast=True) | (bits & -0x80000000)).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(x) < 0.015625, signed, normal)


# One program is one row, which is read once and stays in registers between its maximum and its rounding. ``scale`` is
# written by rows, and read where one maximum was found before.
@jit
def _fp8_quantize_kernel(
    x, values, scale, x_m,
    K: tl.constexpr, BLOCK_K: tl.constexpr, BY_ROWS: tl.constexpr, GRID_FIRST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    wide = tl.load(x + row * x_m + k, mask=k < K, other=0.0).to(tl.float32)
    if BY_ROWS:
        largest = tl.maximum(tl.max(tl.abs(wide), axis=0), 1e-12)
        tl.store(scale + row, tl.div_rn(largest, 448.0))
    else:
        largest = tl.load(scale)
    scaled = wide * tl.div_rn(448.0, largest)
    scaled = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
    if GRID_FIRST:
        scaled = _on_the_grid(scaled)
    tl.store(values + row * K + k, scaled.to(values.dtype.element_ty), mask=k < K)


def fp8_quantize(
    x: Tensor, by_rows: bool = True, impl: str = "auto", config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """x [M, K] -> values [M, K] e4m3 and scale, [M, 1] or []; see the module docstring."""
    check.shape("x", x, ["M", "K"])
    if not x.numel():
        raise ValueError(f"x: want at least one element, got {list(x.shape)}")
    asked, impl = impl, implementation(impl, x.device, x.dtype, OFFERS)
    if impl == "torch" or (asked == "auto" and x.shape[1] > WIDEST):
        return fp8_quantize_reference(x, by_rows)
    if x.shape[1] > WIDEST:
        raise ValueError(f"x: want rows of at most {WIDEST}, got {x.shape[1]}; use impl='torch'")
    check.dense_rows("x", x, 1)
    rows, width = x.shape
    values = torch.empty(rows, width, dtype=E4M3, device=x.device)
    found = x.new_empty(rows, 1, dtype=torch.float32) if by_rows else _largest(x, by_rows)
    _fp8_quantize_kernel[(rows,)](
        x,
        values,
        found,
        x.stride(0),
        K=width,
        BLOCK_K=triton.next_power_of_2(width),
        BY_ROWS=by_rows,
        GRID_FIRST=INTERPRETED,
        **(config or tuning.nearest("fp8_quantize", {"width": width}, tuning.gpu_name())),
    )
    return values, found if by_rows else found / LARGEST


def builds() -> Iterator[Build]:
    """Both widths of a full-size block by rows, and the first by tensor; chips before sm_89 have no 8-bit floats."""
    for row in tuning.rows("fp8_quantize", "default"):
        width, config = row["shape"]["width"], row["config"]
        for by_rows in (True, False):
            for dtype in sorted(NARROW, key=str):
                if dtype != torch.bfloat16 and not by_rows:
                    continue
                yield Build(
                    f"fp8_quantize {dtype} K={width} {'rows' if by_rows else 'tensor'}",
                    _fp8_quantize_kernel,
                    {
                        "x": pointer(dtype),
                        "values": pointer(E4M3),
                        "scale": pointer(torch.float32),
                        "x_m": "i32",
                    },
                    {
                        "K": width,
                        "BLOCK_K": 1 << (width - 1).bit_length(),
                        "BY_ROWS": by_rows,
                        "GRID_FIRST": False,
                    },
                    config["num_warps"],
                    config["num_stages"],
                    frozenset(["x", "values", "scale", "x_m"]),
                    archs=(90, 100),
                )
