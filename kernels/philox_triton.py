"""Philox and its normals as Triton functions: other kernels draw noise in registers with them.

    draw_tile -> philox_words -> normals

The words are integers, equal everywhere. The normals are float32 arithmetic, where the reference has float64 series:
float64 would cost more than reading and writing the latents. What keeps them within 2 units in the last place:

    radius   u is cut at the power of two nearest to it, so that f = u / 2^e - 1 lies in [-1/3, 1/3] and is exact up to
             one rounding even for u next to 1. -2 ln u = s + rest with s = -2 (e ln 2 + f) kept beside its error, and
             the square root g of the sum gets its remainder ``low``: the radius is g + low.
    angle    integers take whole quarter turns; the rest is y + below quarter turns in [-1/2, 1/2], all 32 bits kept.
             sin = y (pi/2 + S(y^2)), cos = 27/32 + C(y^2): the large part is exact or compensated, the small one rounded.

Relative to 2^-24, g + low is off by at most 0.81 and sin and cos by 0.29 and 0.73: over all 2^32 words each, with errors
of -1.8e-7, 0 and 1.8e-7 put on rsqrt (the hardware's is below 1.4e-7). The products add less than 0.2. That is below 2 in
all, and two final roundings are half a unit each: the difference stays below 3 units, so it is at most 2. Over random
words it is 0 in four values of five and 2 in less than one of a hundred thousand.
The polynomials are minimax fits, their coefficients rounded to float32 one after the other.
"""

from typing import Any

from runtime.kernels.triton_lang import AVAILABLE, INTERPRETED, jit, tl

STREAM = 0x5354_7431  # "STt1": keeps this counter space apart from any other use of the same seed
STREAM_WORD = tl.constexpr(STREAM) if AVAILABLE else None


def _fma_in_float64(x, y, z):
    wide = tl.cast(x, tl.float64) * tl.cast(y, tl.float64) + tl.cast(z, tl.float64)
    return wide.to(tl.float32)


# x * y + z rounded once. The interpreter's tl.fma rounds the product; there, any function can stand in for it.
fma: Any = _fma_in_float64 if INTERPRETED else getattr(tl, "fma", None)


@jit
def philox_words(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of the counter c under the key k, all uint32; vectors and scalars mix."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        # Wide, because the interpreter warns where a 32-bit scalar wraps.
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@jit
def radius(word):
    """sqrt(-2 ln((word + 1/2) / 2^32)) as g + low."""
    high = (word & 0xFFFFFF00).to(tl.float32)
    # The bits of 2^23 or'ed with n are those of 2^23 + n: the last eight bits of the word, plus 1/2.
    last = ((word & 0xFF) | 0x4B000000).to(tl.float32, bitcast=True) - 8388607.5
    x = high + last
    # The exponent e of 3/2 x, where it lies in the bits: x / 2^e is in [2/3, 4/3).
    e = (x.to(tl.int32, bitcast=True) - 0x3F2AAAAB) & -0x800000
    power = (e + 0x3F800000).to(tl.float32, bitcast=True)
    f = ((high - power) + last) * (0x40000000 - e).to(tl.float32, bitcast=True)  # 2 (x / 2^e - 1)
    exponent = e.to(tl.float32)  # e 2^23
    # (32 - e) 2 ln 2 in two parts; the first has so few bits that it is exact.
    whole = fma(exponent, -1.6525883e-07, 44.36133)
    s = whole - f
    part = fma(exponent, -3.406064e-13, ((whole - s) - f) + 9.143083e-05)
    p = fma(f, 0.0002727713, -0.00055042637)
    p = fma(p, f, 0.0009286461)
    p = fma(p, f, -0.0021848166)
    p = fma(p, f, 0.0052215345)
    p = fma(p, f, -0.012507444)
    p = fma(p, f, 0.031248419)
    p = fma(p, f, -0.08333297)
    p = fma(p, f, 0.25000006)
    rest = fma(f * f, p, part)
    total = s + rest
    inverse = tl.rsqrt(total)
    g = total * inverse
    return g, (fma(-g, g, s) + rest) * (0.5 * inverse)


@jit
def angle(word):
    """t = 2 pi (word + 1/2) / 2^32 less whole quarter turns: its quarter turns y + below, sin t / y - 1.5707964 and
    cos t - 0.84375."""
    # Quarter turns from the nearest whole one, times 2^32: the top two bits are gone.
    turn = word << 2
    high = (turn & 0xFFFFFF00).to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10
    # The bits of 2^-9 or'ed with n are those of 2^-9 + n 2^-32; two of them make up for the half in t.
    last = ((turn & 0xFF) | 0x3B000000).to(tl.float32, bitcast=True) - 0.0019531245343387127
    y = high + last
    below = (high - y) + last
    twice = y * below
    z = fma(y, y, twice + twice)
    sine = fma(z, -0.00460373, 0.07968108)
    sine = fma(sine, z, -0.6459636)
    sine = fma(sine, z, -4.371139e-08)
    cosine = fma(z, 0.0008944585, -0.020855593)
    cosine = fma(cosine, z, 0.25366855)
    cosine = fma(cosine, z, -1.2337005)
    cosine = fma(cosine, z, 0.15625)
    return y, below, sine, cosine


@jit
def normals(a, b):
    """Two standard normal values from two uint32 words: r cos t and r sin t of the formula in ``philox``."""
    g, low = radius(a)
    y, below, sine, cosine = angle(b)
    q = g * y
    q_low = fma(low, y, fma(g, below, fma(g, y, -q)))
    sine = fma(q, 1.5707964, fma(q, sine, q_low * 1.5707964))
    cosine = fma(g, 0.84375, fma(g, cosine, low * (cosine + 0.84375)))
    # Back by whole quarter turns: odd ones exchange the two, the signs are single bits.
    quarter = b + 0x20000000
    odd = (quarter & 0x40000000) != 0
    first = tl.where(odd, sine, cosine).to(tl.uint32, bitcast=True)
    second = tl.where(odd, cosine, sine).to(tl.uint32, bitcast=True)
    first = first ^ ((quarter + 0x40000000) & 0x80000000)
    second = second ^ (quarter & 0x80000000)
    return first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True)


@jit
def draw_tile(streams, row, first_block, BLOCK: tl.constexpr):
    """[4 * BLOCK] normals of stream ``row``, beginning with element 4 * first_block.

    A counter is computed once for its four values. They are joined so that each thread holds neighbours and the tile is
    loaded and stored in whole vectors; four strided stores would write every sector four times.
    """
    stream = streams + row * 3
    seed = tl.load(stream)
    chunk = tl.load(stream + 1).to(tl.uint32)
    draw = tl.load(stream + 2).to(tl.uint32)
    block = (first_block + tl.arange(0, BLOCK)).to(tl.uint32)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(block, draw, chunk, STREAM_WORD, low, high)
    z0, z1 = normals(w0, w1)
    z2, z3 = normals(w2, w3)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (4 * BLOCK,))


@jit
def normal_kernel(out, streams, elements, BLOCK: tl.constexpr):
    """Grid [tiles, B]: out [B, elements], any float type."""
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = first * 4 + tl.arange(0, 4 * BLOCK)
    value = draw_tile(streams, row, first, BLOCK)
    tl.store(out + row * elements + element, value.to(out.dtype.element_ty), element < elements)
