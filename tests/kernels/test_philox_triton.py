"""The words and normals that Triton kernels draw in registers, word by word against the published answers and float64."""

import pytest
import torch

from runtime.kernels import philox
from runtime.kernels.philox_triton import angle, draw_tile, normals, philox_words, radius
from runtime.kernels.triton_lang import jit, tl
from tests.kernels.test_philox import GPU, KNOWN_ANSWERS, TRITON, units_apart, words

pytestmark = pytest.mark.skipif(not TRITON, reason="no GPU, no interpreter")
DEVICE = "cuda" if GPU else "cpu"

UNIT = 2.0**-24
# Bounds of the module's docstring in these units: the radius, the sine and the cosine of the angle.
RADIUS, SINE, COSINE = 0.81, 0.29, 0.73
EDGES = [
    *(0, 1, 2, 255, 256, 257, 2**23, 2**24 - 1, 2**24),
    *(2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**30 - 1, 3 * 2**30),
    *(2**29 - 1, 2**29, 3 * 2**29 - 1, 3 * 2**29, 5 * 2**29, 7 * 2**29 - 1, 7 * 2**29),
    *(2**32 - 257, 2**32 - 256, 2**32 - 2, 2**32 - 1),
    # Where the radius goes over to the next power of two.
    *(1431655764, 1431655765, 1431655766, 2863311529, 2863311530, 2863311531, 2863311532),
]


@jit
def words_kernel(out, counters, keys, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    c0, c1, c2, c3 = (
        tl.load(counters + row * 4).to(tl.uint32),
        tl.load(counters + row * 4 + 1).to(tl.uint32),
        tl.load(counters + row * 4 + 2).to(tl.uint32),
        tl.load(counters + row * 4 + 3).to(tl.uint32),
    )
    k0, k1 = tl.load(keys + row * 2).to(tl.uint32), tl.load(keys + row * 2 + 1).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(c0, c1, c2, c3, k0, k1)
    tl.store(out + row * 4, w0.to(tl.int64))
    tl.store(out + row * 4 + 1, w1.to(tl.int64))
    tl.store(out + row * 4 + 2, w2.to(tl.int64))
    tl.store(out + row * 4 + 3, w3.to(tl.int64))


@jit
def normals_kernel(out, a, b, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    first, second = normals(
        tl.load(a + at, inside, other=0).to(tl.uint32),
        tl.load(b + at, inside, other=0).to(tl.uint32),
    )
    tl.store(out + 2 * at, first, inside)
    tl.store(out + 2 * at + 1, second, inside)


@jit
def parts_kernel(out, word, count, BLOCK: tl.constexpr):
    """out [6, count]: radius in two parts; y, below, sine, cosine of the angle."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    w = tl.load(word + at, inside, other=0).to(tl.uint32)
    g, low = radius(w)
    y, below, sine, cosine = angle(w)
    tl.store(out + at, g, inside)
    tl.store(out + count + at, low, inside)
    tl.store(out + 2 * count + at, y, inside)
    tl.store(out + 3 * count + at, below, inside)
    tl.store(out + 4 * count + at, sine, inside)
    tl.store(out + 5 * count + at, cosine, inside)


@jit
def tile_kernel(out, streams, elements, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first * 4 + tl.arange(0, 4 * BLOCK)
    tl.store(out + row * elements + at, draw_tile(streams, row, first, BLOCK), at < elements)


def triton_normals(a: torch.Tensor, b: torch.Tensor, block: int = 1 << 18) -> torch.Tensor:
    """[N, 2] of words [N] int64."""
    out = torch.empty(len(a), 2, device=DEVICE)
    block = block if DEVICE == "cpu" else 1024
    normals_kernel[(-(-len(a) // block),)](out, a.to(DEVICE), b.to(DEVICE), len(a), BLOCK=block)
    return out.cpu()


def exact_normals(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return philox.normals_reference(torch.stack([a, b], -1))


def random_words(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 2**32, (count,), generator=torch.Generator().manual_seed(seed))


def test_words_match_the_published_answers():
    answers = [[words(part) for part in answer] for answer in KNOWN_ANSWERS.values()]
    answers.append(answers[0])  # four rows
    counters, keys, want = (
        torch.tensor(part, device=DEVICE) for part in zip(*answers, strict=True)
    )
    got = torch.empty_like(counters)
    words_kernel[(1,)](got, counters, keys, ROWS=4)
    assert torch.equal(got, want)


def test_words_match_torchs_for_any_counter_and_key():
    counters, keys = random_words(4096, 0).view(1024, 4), random_words(2048, 1).view(1024, 2)
    got = torch.empty_like(counters, device=DEVICE)
    words_kernel[(1,)](got, counters.to(DEVICE), keys.to(DEVICE), ROWS=1024)
    assert torch.equal(got.cpu(), philox.philox_words_reference(counters, keys))


def test_extreme_words_stay_within_two_units():
    a, b = torch.cartesian_prod(torch.tensor(EDGES), torch.tensor(EDGES)).unbind(1)
    got = triton_normals(a.contiguous(), b.contiguous())
    assert units_apart(got, exact_normals(a, b)) <= 2
    assert got.abs().max() < 6.77


@pytest.mark.parametrize("near", ["anything", "one", "zero", "whole quarter turns"])
def test_random_words_stay_within_two_units(near):
    count = 1 << 18
    a, b = random_words(count, 2), random_words(count, 3)
    if near == "one":
        a |= 0xFFFF_0000
    elif near == "zero":
        a &= 0xFFFF
    elif near == "whole quarter turns":
        b = ((b & 0xC000_0000) + (b & 0xFFFF) - 0x8000) & 0xFFFF_FFFF
    got, want = triton_normals(a, b), exact_normals(a, b)
    assert units_apart(got, want) <= 2
    assert (got != want).float().mean() < 0.25  # most values are the same bits


def check_bounds(word: torch.Tensor, block: int) -> None:
    """What a product of radius and sine or cosine may be off by follows from how far each of them is off."""
    parts = torch.empty(6, len(word), device=word.device)
    parts_kernel[(-(-len(word) // block),)](parts, word, len(word), BLOCK=block)
    g, low, y, below, sine, cosine = parts.double()
    exact = (philox._log_unit(word) * -2.0).sqrt()
    assert ((g + low) / exact - 1).abs().max() <= RADIUS * UNIT
    quadrant = (word + (1 << 29)) >> 30
    turn = (word - (quadrant << 30)).double() + 0.5  # 2^-30 quarter turns
    assert torch.equal((y + below) * 2.0**30, turn)
    t = turn * 2.0**-30 * (torch.pi / 2)
    half_pi = 13176795 / 2**23  # the float32 nearest to it
    assert ((y + below) * (half_pi + sine) / t.sin() - 1).abs().max() <= SINE * UNIT
    assert ((0.84375 + cosine) / t.cos() - 1).abs().max() <= COSINE * UNIT


def test_radius_and_angle_keep_the_bounds_from_which_two_units_follow():
    assert (
        RADIUS + max(SINE, COSINE) + 0.2 < 2
    )  # and half a unit for each of the two last roundings: below 3
    check_bounds(
        torch.cat([torch.tensor(EDGES), random_words(1 << 18, 4)]).to(DEVICE),
        1024 if GPU else 1 << 19,
    )


@pytest.mark.slow
def test_every_word_keeps_them():
    """Half an hour in the interpreter, seconds on a GPU."""
    step = 1 << 24
    for first in range(0, 1 << 32, step):
        check_bounds(torch.arange(first, first + step, device=DEVICE), 1024 if GPU else step)


def test_values_do_not_know_block_size_row_order_or_grid():
    seeds, chunks, elements = [3, 2**64 - 5, 3, 77], [1, 2**32 - 1, 1, 0], 61
    table = philox.streams(seeds, chunks, 9)
    want = philox.draw_reference(table, elements)
    seen = []
    for block in (4, 16, 64):
        for order in ([0, 1, 2, 3], [3, 1], [2]):
            out = torch.full((len(order), elements), 7.0, device=DEVICE)
            grid = -(-elements // (4 * block)), len(order)
            tile_kernel[grid](out, table[order].to(DEVICE), elements, BLOCK=block)
            assert units_apart(out.cpu(), want[order]) <= 2
            seen.append((order, out.cpu()))
    whole = seen[0][1]
    assert all(torch.equal(got, whole[order]) for order, got in seen)
    assert torch.equal(whole[0], whole[2])  # the same stream
