"""The Triton kernels of ``slerp_noise`` and ``renoise``: noise is drawn in registers wherever it is needed.

    blend, renoise   mix_kernel
    slerp            dots_kernel -> turn_kernel -> mix_kernel, which draws the same noise again instead of reading it

Legend: B rows, N parents, E elements of a row, T tiles of a row.
"""

from runtime.kernels.philox_triton import draw_tile, fma
from runtime.kernels.triton_lang import jit, tl


@jit
def mix_kernel(
    out,  # [B, E]
    previous,  # [N, E]
    parents,  # [B] int32, or None: row b reads row b
    streams,  # [B, 3] int64
    weights,  # [B, 2] float32 for slerp, sigma [B] float32 to renoise, or None
    keep,  # weight of ``previous`` where there are no ``weights``
    fresh,  # weight of the draw
    elements,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid [T, B]: out[b] = keep * previous[parents[b]] + fresh * draw, rounded once to ``out``'s type."""
    row = tl.program_id(1).to(tl.int64)
    source = row if parents is None else tl.load(parents + row).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = first * 4 + tl.arange(0, 4 * BLOCK)
    inside = element < elements
    before = tl.load(previous + source * elements + element, inside, other=0.0).to(tl.float32)
    if MODE == "slerp":
        keep = tl.load(weights + row * 2)
        fresh = tl.load(weights + row * 2 + 1)
    elif MODE == "renoise":
        fresh = tl.load(weights + row)
        keep = 1.0 - fresh
    value = fma(before, keep, draw_tile(streams, row, first, BLOCK) * fresh)
    tl.store(out + row * elements + element, value.to(out.dtype.element_ty), inside)


@jit
def dots_kernel(partials, previous, parents, streams, elements, BLOCK: tl.constexpr):
    """Grid [T, B]: partials [B, T, 3] float64 = <p, p>, <e, e>, <p, e> of each tile of parent p and draw e."""
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1).to(tl.int64)
    source = row if parents is None else tl.load(parents + row).to(tl.int64)
    first = tile.to(tl.int64) * BLOCK
    element = first * 4 + tl.arange(0, 4 * BLOCK)
    inside = element < elements
    p = tl.load(previous + source * elements + element, inside, other=0.0).to(tl.float64)
    e = tl.where(inside, draw_tile(streams, row, first, BLOCK), 0.0).to(tl.float64)
    to = partials + (row * tiles + tile) * 3
    tl.store(to, tl.sum(p * p, 0))
    tl.store(to + 1, tl.sum(e * e, 0))
    tl.store(to + 2, tl.sum(p * e, 0))


@jit
def _sine(x):
    """sin(x) in float64 from its series, after whole half turns: off by less than 1e-14 for |x| <= 2 pi."""
    half_turns = tl.floor(x * 0.3183098861837907 + 0.5)
    rest = x - half_turns * 3.141592653589793
    term = rest
    total = rest
    for n in tl.static_range(1, 12):
        term = term * rest * rest * (-1.0 / (2 * n * (2 * n + 1)))
        total += term
    odd = half_turns - 2.0 * tl.floor(half_turns * 0.5)
    return total * (1.0 - 2.0 * odd)


@jit
def _arccos(cosine):
    """The angle in float64: its sixteenth is small enough for ten terms of the arcsine's series."""
    c = tl.sqrt(0.5 + 0.5 * cosine)  # of half the angle
    s = tl.sqrt(0.5 - 0.5 * cosine)
    for _ in tl.static_range(3):
        c = tl.sqrt(0.5 + 0.5 * c)
        s = s / (2.0 * c)
    power = s
    total = s
    for n in tl.static_range(1, 11):
        power = power * s * s * ((2 * n - 1) / (2 * n))
        total += power / (2 * n + 1)
    return 16.0 * total


@jit
def turn_kernel(
    weights, partials, tiles, beta, beta_low, PARALLEL: tl.constexpr, TILES: tl.constexpr
):
    """Grid [B]: weights [B, 2] float32 that turn a row's parent towards its draw, from the partials of ``dots_kernel``.

    beta + beta_low is beta: a float argument of a kernel is float32.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    pp = tl.zeros((TILES,), tl.float64)
    ee = tl.zeros((TILES,), tl.float64)
    pe = tl.zeros((TILES,), tl.float64)
    for start in range(0, tiles, TILES):
        at = partials + (row * tiles + start + tile) * 3
        inside = start + tile < tiles
        pp += tl.load(at, inside, other=0.0)
        ee += tl.load(at + 1, inside, other=0.0)
        pe += tl.load(at + 2, inside, other=0.0)
    p_norm, e_norm = tl.sqrt(tl.sum(pp, 0)), tl.sqrt(tl.sum(ee, 0))
    one = 1.0 + 0.0 * p_norm
    p_inverse = tl.where(p_norm > 0, one / tl.where(p_norm > 0, p_norm, one), 0.0)
    e_inverse = tl.where(e_norm > 0, one / tl.where(e_norm > 0, e_norm, one), 0.0)
    cosine = tl.sum(pe, 0) * p_inverse * e_inverse
    cosine = tl.minimum(tl.maximum(cosine, -one), one)

    keep = tl.cast(beta, tl.float64) + tl.cast(beta_low, tl.float64)
    fresh = tl.sqrt((1.0 - keep) * (1.0 + keep))
    share = _arccos(keep) * 0.6366197723675814
    length = keep * keep * p_norm + fresh * fresh * e_norm
    angle = _arccos(cosine)
    sine = tl.sqrt((1.0 - cosine) * (1.0 + cosine))
    spans = sine > PARALLEL
    safe = tl.where(spans, sine, one)
    # Without a plane: the blend of the unit vectors at length 1, and the parent where that is no direction either.
    size = tl.sqrt(tl.maximum(keep * keep + fresh * fresh + 2.0 * keep * fresh * cosine, 0.0 * one))
    points = (size > PARALLEL) & (angle > 1.0)
    solid = tl.where(points, size, one)
    flat_p = tl.where(points, keep / solid, one)
    flat_e = tl.where(points, fresh / solid, 0.0 * one)
    turn_p = tl.where(spans, _sine((1.0 - share) * angle) / safe, flat_p)
    turn_e = tl.where(spans, _sine(share * angle) / safe, flat_e)
    tl.store(weights + row * 2, (turn_p * length * p_inverse).to(tl.float32))
    tl.store(weights + row * 2 + 1, (turn_e * length * e_inverse).to(tl.float32))
