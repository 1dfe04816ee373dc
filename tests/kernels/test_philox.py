"""Noise depends on seed, chunk, draw and element only; torch and C++ give the same bits, Triton the same words."""

import math

import pytest
import torch

from runtime.kernels import native, philox, triton_lang

BUILT = native.find()[0] is not None
GPU = torch.cuda.is_available()
TRITON = triton_lang.AVAILABLE and (GPU or triton_lang.INTERPRETED)
EXACT = ["torch", pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="not built"))]
IMPLS = [
    *EXACT,
    pytest.param("triton", marks=pytest.mark.skipif(not TRITON, reason="no GPU, no interpreter")),
]

KNOWN_ANSWERS = {  # from Random123's kat_vectors: counter, key, words
    "zeros": (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    "ones": (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "pi": (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


def draw(seeds, chunks, number, shape, impl, dtype=torch.float32):
    """``philox.normal`` where ``impl`` runs, its result on the host."""
    device = "cuda" if GPU and impl == "triton" else "cpu"
    return philox.normal(seeds, chunks, number, shape, device, dtype, impl=impl).cpu()


def units_apart(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many float32 values lie between the two, at most; +0 and -0 are one."""
    ordered = [torch.where(x < 0, -(x & 0x7FFF_FFFF), x) for x in map(_bits, (a, b))]
    return (ordered[0] - ordered[1]).abs().max().item()


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32).long()


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_words_match_the_published_answers(name):
    counter, key, expected = map(words, KNOWN_ANSWERS[name])
    got = philox.philox_words_reference(torch.tensor(counter), torch.tensor(key))
    assert got.tolist() == expected
    if BUILT:
        assert native.extension().philox4x32_10(counter, key) == expected


def test_a_value_is_the_documented_formula():
    seed, chunk, draw, element = (5 << 32) + 7, 11, 3, 1000 * 4 + 3
    counter = torch.tensor([element // 4, draw, chunk, philox.STREAM])
    _, _, a, b = philox.philox_words_reference(counter, torch.tensor([7, 5])).tolist()
    exact = math.sqrt(-2 * math.log((a + 0.5) / 2**32)) * math.sin(2 * math.pi * (b + 0.5) / 2**32)
    got = philox.normal_reference([seed], [chunk], draw, (element + 1,))[0, element].item()
    assert got == pytest.approx(exact, rel=2**-23)


@pytest.mark.skipif(not BUILT, reason="not built")
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (5,), (1001,), (3, 4, 5, 7), (300_001,)], ids=str
)
def test_native_gives_the_same_bits_as_torch(shape):
    args = [0, 42, 2**63, 2**64 - 1], [0, 1, 7, 2**32 - 1], 2, shape
    native_values = philox.normal(*args, impl="native")
    torch_values = philox.normal(*args, impl="torch")
    assert native_values.shape == (4, *shape)
    assert torch.equal(native_values.view(torch.int32), torch_values.view(torch.int32))


@pytest.mark.skipif(not BUILT, reason="not built")
def test_native_writes_nothing_outside_its_rows():
    guarded, table = torch.full((2004,), 7.0), philox.streams([1, 2], [0, 0], 0)
    to = guarded[1:].data_ptr(), "float32", table.data_ptr()
    native.extension().philox_normal(*to, (2, 1001), 1)
    assert guarded[0] == 7.0 and guarded[-1] == 7.0
    assert torch.equal(guarded[1:-1].view(2, 1001), draw([1, 2], [0, 0], 0, (1001,), "torch"))


@pytest.mark.skipif(not TRITON, reason="no GPU, no interpreter")
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (1001,), (3, 4, 5, 11)], ids=str)
def test_triton_stays_within_two_units_of_torch(shape):
    args = [0, 42, 2**63, 2**64 - 1], [0, 1, 7, 2**32 - 1], 2, shape
    got = draw(*args, "triton")
    assert got.shape == (4, *shape)
    assert units_apart(got, draw(*args, "torch")) <= 2


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_does_not_know_its_batch(impl):
    whole = draw([5, 6, 7], [1, 2, 3], 0, (3, 11), impl)
    turned = draw([7, 5, 6], [3, 1, 2], 0, (3, 11), impl)
    alone = draw([6], [2], 0, (3, 11), impl)
    assert torch.equal(turned, whole[[2, 0, 1]])
    assert torch.equal(alone[0], whole[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", [1, 3, 5, 255, 257, 1001])
def test_an_element_does_not_know_the_shape(impl, size):
    longest = draw([9], [4], 1, (1001,), impl)
    assert torch.equal(draw([9], [4], 1, (size,), impl), longest[:, :size])
    assert torch.equal(draw([9], [4], 1, (size, 1), impl), longest[:, :size, None])


@pytest.mark.skipif(not BUILT, reason="not built")
def test_threads_do_not_change_the_values(monkeypatch):
    once = philox.normal([3], [0], 0, (200_003,), impl="native")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(philox.normal([3], [0], 0, (200_003,), impl="native"), once)


@pytest.mark.parametrize("impl", EXACT)
def test_values_are_standard_normal(impl):
    n = 1_000_000
    values = philox.normal([42], [0], 0, (n,), impl=impl)[0].double()
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / n)
    ordered = values.sort().values
    cumulative = torch.special.ndtr(ordered)
    step = torch.arange(1, n + 1) / n
    distance = torch.maximum((cumulative - step).abs(), (cumulative - step + 1 / n).abs()).max()
    assert distance < 1.95 / math.sqrt(n), "Kolmogorov-Smirnov distance, 0.1 % level"


def test_streams_are_uncorrelated():
    n = 100_000
    seeds, chunks = [0, 1, 2**32, 0, 1], [0, 0, 0, 1, 1]
    rows = torch.cat([philox.normal(seeds, chunks, draw, (n,)) for draw in (0, 1)])
    correlation = torch.corrcoef(rows.double())
    assert (correlation - torch.eye(len(rows))).abs().max() < 5 / math.sqrt(n)
    neighbours = rows[:, :-1] * rows[:, 1:]
    assert neighbours.mean(1).abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_casts(dtype, impl):
    if impl == "triton" and dtype == torch.bfloat16 and not GPU:
        pytest.skip("the interpreter cannot store bfloat16")
    single = draw([1, 5], [2, 2], 3, (101,), impl)
    assert torch.equal(draw([1, 5], [2, 2], 3, (101,), impl, dtype), single.to(dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batches_and_shapes_work(impl):
    assert draw([], [], 0, (3, 2), impl).shape == (0, 3, 2)
    assert draw([1], [1], 0, (3, 0), impl).shape == (1, 3, 0)


def test_streams_hold_seed_chunk_and_draw_of_each_row():
    table = philox.streams([0, 42, 2**63, 2**64 - 1], [0, 1, 7, 2**32 - 1], 3)
    assert table.dtype == torch.int64
    assert table.tolist() == [[0, 0, 3], [42, 1, 3], [-(2**63), 7, 3], [-1, 2**32 - 1, 3]]
    assert philox.streams([], [], 0).shape == (0, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([-1], [0], 0, (2,)), r"seed: want a whole number in \[0, 2\^64\), got -1"),
        (
            ([2**64], [0], 0, (2,)),
            r"seed: want a whole number in \[0, 2\^64\), got 18446744073709551616",
        ),
        (([0], [2**32], 0, (2,)), r"chunk: want a whole number in \[0, 2\^32\), got 4294967296"),
        (([0], [0], -3, (2,)), r"draw: want a whole number in \[0, 2\^32\), got -3"),
        (([0, 1], [0], 0, (2,)), r"chunks: want one for each of the 2 seeds, got 1"),
        (
            ([0], [0], 0, (-2,)),
            r"shape: want sizes of at least 0 and at most 2\^34 elements, got \[-2\]",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("impl", IMPLS)
def test_errors_say_what_is_wanted(args, message, impl):
    with pytest.raises(ValueError, match=message):
        draw(*args, impl)


def test_auto_takes_what_is_built(monkeypatch):
    assert philox.implementation("auto") == ("native" if BUILT else "torch")
    assert philox.implementation("auto", "cuda") == ("triton" if triton_lang.AVAILABLE else "torch")
    monkeypatch.setattr(native, "find", lambda: (None, "is not built"))
    assert philox.implementation("auto") == "torch"


def test_a_name_is_never_replaced_in_silence(monkeypatch):
    with pytest.raises(
        ValueError, match="impl: want one of auto, native, triton, cuda, torch, got 'cpp'"
    ):
        philox.normal([0], [0], 0, (2,), impl="cpp")
    with pytest.raises(ValueError, match="impl='native' runs on the CPU, got device cuda"):
        philox.normal([0], [0], 0, (2,), device="cuda", impl="native")
    monkeypatch.setattr(native, "find", lambda: (None, "is not built"))
    with pytest.raises(
        RuntimeError, match="runtime._C is not built; build it with `pip install -e .`"
    ):
        philox.normal([0], [0], 0, (2,), impl="native")


@pytest.mark.gpu
@pytest.mark.parametrize(("impl", "units"), [("torch", 0), ("triton", 2)])
def test_the_gpu_draws_the_same_values_without_waiting(impl, units):
    args = [0, 42, 2**64 - 1], [0, 1, 2**32 - 1], 2, (300_001,)
    philox.normal(*args, device="cuda", impl=impl)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = philox.normal(*args, device="cuda", impl=impl)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert units_apart(got.cpu(), philox.normal(*args, impl="torch")) <= units
