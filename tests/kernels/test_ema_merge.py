"""Folding a block into a sink: keys land where the sink lies, nothing else moves, every implementation gives the same bits."""

import math
import mmap

import pytest
import torch

from runtime.kernels import native, triton_lang
from runtime.kernels.ema_merge import (
    STORAGES,
    Ema,
    ema_merge_,
    ema_merge_reference,
    shift_keys,
    temporal_turn,
)
from runtime.kernels.rotary import rope_angles, rotate
from tests.kernels.tolerance import assert_no_worse_than_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(2, 3, 1, 6), (4, 6, 3, 10), (6, 9, 1, 16), (2, 101, 5, 26)]  # P, S, H, D
NARROW = [torch.float32, torch.bfloat16, torch.float16]
FORMS = [(dtype, storage) for dtype in NARROW for storage, ok in STORAGES.items() if dtype in ok]
SMALL = {"BLOCK": 256, "num_warps": 2}  # several programs and a rest, at test sizes
needs_native = pytest.mark.skipif(native.find()[0] is None, reason="runtime._C is not built")
needs_triton = pytest.mark.skipif(not triton_lang.AVAILABLE, reason="triton is not installed")
FAST = [
    pytest.param("native", marks=needs_native),
    pytest.param("triton", marks=needs_triton),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def rotated(plain: torch.Tensor, start_frame: int) -> torch.Tensor:
    """Keys [P, S, H, D] of a chunk of 3 frames born at ``start_frame``; S / 3 tokens a frame, in one row."""
    frames = torch.tensor([[start_frame, start_frame + 1, start_frame + 2]])
    angles = rope_angles(frames, 1, plain.shape[1] // 3, plain.shape[-1])
    return rotate(plain, angles.cos(), angles.sin())


def exact(sink, evicted, alpha, shift):
    """The formula in float64, pair by pair."""
    layers, pairs = sink.shape[0] // 2, sink.shape[-1] // 2
    temporal = pairs - 2 * (pairs // 3)
    moved = evicted.double().clone()
    for j in range(temporal):
        angle = shift * 10000 ** (-j / temporal)
        x, y = evicted[:layers, ..., 2 * j].double(), evicted[:layers, ..., 2 * j + 1].double()
        moved[:layers, ..., 2 * j] = x * math.cos(angle) - y * math.sin(angle)
        moved[:layers, ..., 2 * j + 1] = x * math.sin(angle) + y * math.cos(angle)
    return alpha * sink.double() + (1 - alpha) * moved


def place(impl: str, dtype: torch.dtype, storage: str) -> str:
    """Where to run it; Triton's interpreter cannot store bfloat16 but for the bits of the stochastic rounding."""
    device = "cpu" if impl == "native" else DEVICE
    if impl == "triton" and device == "cpu" and dtype == torch.bfloat16 and storage != "stochastic":
        pytest.skip("Triton's interpreter cannot store bfloat16")
    return device


def merged(impl, dtype, how, shape=(4, 30, 3, 16), *, target=3, shadowed=False, device="cpu"):
    """A pool of five blocks after block ``target`` became the EMA of blocks 1 and 2, and the shadow, on the CPU."""
    pool = normal((shape[0], 5, *shape[1:]), 0, dtype).to(device)
    shadow_in = normal(shape, 1, torch.float32).to(device) if shadowed else None
    keeps = how.storage == "fp32_shadow"
    shadow_out = torch.empty(shape, dtype=torch.float32, device=device) if keeps else None
    ema_merge_(pool[:, target], pool[:, 1], pool[:, 2], how, shadow_in=shadow_in,
               shadow_out=shadow_out, impl=impl, config=SMALL)  # fmt: skip
    return pool.cpu(), shadow_out.cpu() if keeps else None


# The meaning.


@pytest.mark.parametrize("start", [0, 3, 999, 40_000])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_a_shifted_key_is_the_key_born_there(shape, start):
    plain = normal(shape, 0)
    got = shift_keys(rotated(plain, start + 12), -12)
    assert (got - rotated(plain, start)).abs().max() < 1e-10


def test_shifts_add_up_and_zero_is_no_copy():
    keys = normal((2, 6, 1, 12), 0)
    assert (shift_keys(shift_keys(keys, 7), -19) - shift_keys(keys, -12)).abs().max() < 1e-14
    assert shift_keys(keys, 0) is keys


def test_only_temporal_pairs_turn():
    keys = normal((1, 3, 2, 16), 0)
    keys[..., 8:] = torch.inf
    turned = shift_keys(keys, 5)
    assert len(temporal_turn(5, 16)[0]) == 4 and temporal_turn(0, 16) == ((), ())
    assert torch.equal(turned[..., 8:], keys[..., 8:])
    assert (turned[..., :8] != keys[..., :8]).all() and turned[..., :8].isfinite().all()


@pytest.mark.parametrize("shift", [-100_000, 12_345])
def test_the_angles_of_a_day_long_video_are_exact(shift):
    """Against whole turns taken off with as many digits as it needs."""
    from fractions import Fraction

    turn = Fraction(62831853071795864769252867665590057683943, 10**40)
    cos, sin = temporal_turn(shift, 128)
    assert len(cos) == 22
    for j, (c, s) in enumerate(zip(cos, sin, strict=True)):
        angle = float(shift * Fraction(10000.0 ** (-j / 22)) % turn)
        assert abs(c - math.cos(angle)) < 3e-11 and abs(s - math.sin(angle)) < 3e-11


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_merge_is_the_formula(shape, alpha):
    sink, evicted = normal(shape, 0), normal(shape, 1)
    got = ema_merge_reference(sink, evicted, Ema(alpha, -9))
    assert got.dtype == torch.float64
    assert (got - exact(sink, evicted, alpha, -9)).abs().max() < 1e-14


def test_keys_average_as_if_both_were_born_at_the_sink():
    """Without positions: alpha * k_sink + (1 - alpha) * k_evicted, then rotated at the sink's place."""
    a, b = normal((2, 6, 2, 12), 0), normal((2, 6, 2, 12), 1)
    sink, evicted = rotated(a, 3), rotated(b, 27)
    sink[1:], evicted[1:] = a[1:], b[1:]  # values carry no position
    got = ema_merge_reference(sink, evicted, Ema(0.9, 3 - 27))
    assert (got[:1] - rotated(0.9 * a + 0.1 * b, 3)[:1]).abs().max() < 1e-14
    assert (got[1:] - (0.9 * a + 0.1 * b)[1:]).abs().max() < 1e-15


# The implementations.


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("impl", ["torch", *FAST])
def test_one_merge_is_no_worse_than_torch(impl, shape, dtype):
    device = place(impl, dtype, "once")
    if impl == "cuda" and shape[-1] * dtype.itemsize % 16:
        pytest.skip("not whole vectors")
    before = normal((shape[0], 5, *shape[1:]), 0, dtype)
    want = exact(before[:, 1], before[:, 2], 0.9, -9)
    plain = ema_merge_reference(before[:, 1], before[:, 2], Ema(0.9, -9, "released"))
    pool, _ = merged(impl, dtype, Ema(0.9, -9), shape, target=1, device=device)
    assert_no_worse_than_torch(pool[:, 1], plain, want)


@pytest.mark.parametrize(("dtype", "storage"), FORMS, ids=str)
@pytest.mark.parametrize("target", [1, 3])
@pytest.mark.parametrize("shift", [0, -9, 100_000])
@pytest.mark.parametrize("impl", FAST)
def test_every_implementation_gives_the_bits_of_torch(impl, shift, target, dtype, storage):
    device = place(impl, dtype, storage)
    how = Ema(0.7, shift, storage, seed=(1 << 63) + 16, step=5)
    for shadowed in (False, True) if storage == "fp32_shadow" else (False,):
        want, want_shadow = merged("torch", dtype, how, target=target, shadowed=shadowed)
        got, got_shadow = merged(impl, dtype, how, target=target, shadowed=shadowed, device=device)
        assert torch.equal(got, want)  # the four blocks around the target included
        assert storage != "fp32_shadow" or torch.equal(got_shadow, want_shadow)


@pytest.mark.parametrize("impl", [FAST[0], FAST[1]])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_sizes_give_the_bits_of_torch(impl, shape):
    for dtype, storage in ((torch.float16, "released"), (torch.bfloat16, "stochastic")):
        how = Ema(0.7, -9, storage, seed=3)
        want, _ = merged("torch", dtype, how, shape)
        got, _ = merged(impl, dtype, how, shape, device=place(impl, dtype, storage))
        assert torch.equal(got, want)


@needs_native
@pytest.mark.parametrize(("dtype", "storage"), FORMS, ids=str)
def test_threads_do_not_change_the_result(dtype, storage, monkeypatch):
    once, _ = merged("native", dtype, Ema(0.9, -9, storage), (8, 300, 3, 32))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(merged("native", dtype, Ema(0.9, -9, storage), (8, 300, 3, 32))[0], once)


def bit_patterns(count: int) -> torch.Tensor:
    """float32 values of every exponent and sign, infinities and NaN among them."""
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(0))
    return bits.to(torch.int32).view(torch.float32)


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_torch_s_for_every_kind_of_number(dtype):
    """alpha = 1 leaves the shadow as it is, so what is stored is its rounding and nothing else."""
    shadow = bit_patterns(400_000)
    if dtype == torch.float16:
        small = torch.linspace(-(2.0**-13), 2.0**-13, 200_001)[:-1]  # subnormal values, many ties
        shadow[:200_000] = small * torch.linspace(0.0, 1.0, 200_000)
        shadow[-4:] = torch.tensor([65504.0, 65519.9, 65520.0, -65536.0])
    shadow = shadow.view(2, 1000, 10, 20)
    out, zero = torch.empty(shadow.shape, dtype=dtype), torch.zeros(shadow.shape, dtype=dtype)
    ema_merge_(out, out, zero, Ema(1.0, 0, "fp32_shadow"), shadow_in=shadow,
               shadow_out=torch.empty_like(shadow), impl="native")  # fmt: skip
    want = (shadow + 0.0).to(dtype)
    assert torch.equal(out.isnan(), want.isnan())
    assert torch.equal(out.nan_to_num(), want.nan_to_num())


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_narrow_number_survives_being_read(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(2, 64, 32, 16).clone()
    out = torch.empty_like(every)
    ema_merge_(out, every, torch.zeros_like(every), Ema(1.0, 0), impl="native")
    assert torch.equal(out.isnan(), every.isnan())
    assert torch.equal(out.nan_to_num(), every.nan_to_num())


@needs_native
def test_planes_may_lie_more_than_two_billion_elements_apart():
    stride = (1 << 31) + 64
    whole = mmap.mmap(-1, 2 * (stride + 256), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    flat = torch.frombuffer(whole, dtype=torch.bfloat16)
    sink, evicted = (flat.as_strided((2, 1, 1, 64), (stride, 64, 64, 1), at) for at in (0, 64))
    sink.copy_(normal((2, 1, 1, 64), 0)), evicted.copy_(normal((2, 1, 1, 64), 1))
    want = ema_merge_reference(sink, evicted, Ema(0.5, -3)).bfloat16()
    ema_merge_(sink, sink, evicted, Ema(0.5, -3), impl="native")
    assert torch.equal(sink, want)


@pytest.mark.parametrize("impl", ["torch", *FAST])
def test_an_empty_block_is_fine(impl):
    block = torch.zeros(2, 0, 1, 16, device=place(impl, torch.float32, "once"))
    ema_merge_(block, block, torch.zeros_like(block), Ema(0.5, 0), impl=impl)


# What is refused.


BLOCK = torch.zeros(2, 3, 1, 6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"alpha": -0.1}, r"alpha: want a value in \[0, 1\], got -0.1"),
        ({"alpha": math.nan}, r"alpha: want a value in \[0, 1\], got nan"),
        ({"shift_frames": math.inf}, "shift_frames: want a finite number, got inf"),
        ({"storage": "bf16"}, "storage: want one of once, fp32_shadow, stochastic, released"),
        ({"seed": -1}, r"seed: want a whole number in \[0, 2\^64\), got -1"),
        ({"step": 1 << 32}, r"step: want a whole number in \[0, 2\^32\), got 4294967296"),
    ],
    ids=str,
)
def test_an_ema_says_what_it_wants(how, message):
    with pytest.raises(ValueError, match=message):
        Ema(**{"alpha": 0.9, "shift_frames": 0, **how})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sink": BLOCK[:1]}, r"sink: want shape \[2, 3, 1, 6\], got \[1, 3, 1, 6\]"),
        ({"evicted": BLOCK.double()}, "evicted: want dtype torch.float32, got torch.float64"),
        ({"evicted": torch.zeros(2, 3, 1, 12)[..., ::2]}, "evicted: want its last 3 axes dense"),
        ({"evicted": BLOCK.to("meta")}, "evicted: want device cpu, got meta"),
        ({"out": torch.zeros(3, 3, 1, 6)}, r"out: want shape \[2 \* layers, S, H, even D\]"),
        ({"evicted": BLOCK}, "evicted: want another block than out and sink"),
        ({"how": Ema(0.9, 0, "fp32_shadow")}, "is for bfloat16, float16, got torch.float32; use"),
        ({"how": Ema(0.9, 0, "stochastic")}, "is for bfloat16, got torch.float32; use"),
        ({"shadow_in": torch.zeros(2, 3, 1, 6)}, "shadow_out: want one with storage='fp32_shadow'"),
        ({"impl": "cpp"}, "impl: want one of auto, native, triton, cuda, torch, got 'cpp'"),
        ({"impl": "cuda"}, "impl='cuda' runs on a GPU, got device cpu"),
    ],
    ids=str,
)
def test_errors_say_what_is_wanted(change, message):
    arguments = {"out": BLOCK, "sink": BLOCK, "evicted": BLOCK.clone(), "how": Ema(0.9, 0)}
    with pytest.raises(ValueError, match=message):
        ema_merge_(**{**arguments, **change})


@needs_native
def test_a_head_too_large_for_the_fast_paths_is_refused():
    block = torch.zeros(2, 1, 1, 258)
    with pytest.raises(ValueError, match="want heads of at most 256 .* use impl='torch'"):
        ema_merge_(block, block, block.clone(), Ema(0.9, 0), impl="native")


def test_a_gradient_is_refused_by_the_fast_paths():
    block = torch.zeros(2, 3, 1, 6, requires_grad=True)
    if native.find()[0] is not None:
        with pytest.raises(ValueError, match="impl='native' has no gradient"):
            ema_merge_(block, block, torch.zeros_like(block), Ema(0.9, 0), impl="native")


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "cuda"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_full_size_block_gives_the_bits_of_torch_without_waiting(impl, storage):
    pool = torch.randn(60, 2, 4680, 12, 128, device="cuda", dtype=torch.bfloat16)
    before, how = pool[:, 0].clone(), Ema(0.999, -12, storage, seed=7, step=2)
    keeps = storage == "fp32_shadow"
    shadow = torch.empty(before.shape, device="cuda") if keeps else None
    ema_merge_(pool[:, 0], pool[:, 0], pool[:, 1], how, shadow_out=shadow, impl=impl)
    pool[:, 0].copy_(before)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ema_merge_(pool[:, 0], pool[:, 0], pool[:, 1], how, shadow_out=shadow, impl=impl)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for planes in ([0, 59], [29, 30]):
        old, new = before[planes].cpu(), pool[planes, 1].cpu()
        want, want_shadow = torch.empty_like(old), torch.empty(old.shape) if keeps else None
        if (
            storage != "stochastic"
        ):  # its bits depend on the plane's number: the small tests have them
            ema_merge_(want, old, new, how, shadow_out=want_shadow, impl="torch")
            assert torch.equal(pool[planes, 0].cpu(), want)
