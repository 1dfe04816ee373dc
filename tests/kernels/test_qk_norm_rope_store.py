"""Queries and keys are normed and turned as the reference says, wherever they come from and wherever they go."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from runtime.kernels import native, tuning
from runtime.kernels.qk_norm_rope_store import (
    SPACE,
    Destination,
    qk_norm_rope_store,
    qk_norm_rope_store_reference,
    rms_norm,
    rms_norm_reference,
)
from runtime.kernels.rotary import TWO_PI, Positions, rope_split, turn_rates
from tests.kernels.tolerance import assert_no_worse_than_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(native.find()[0] is None or DEVICE == "cuda", reason="not built"),
)
BY_IMPL = {
    "native": (torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])),
}
FRAMES = {  # absolute latent frames; a row each, or one for all rows
    "first": [[0, 1, 2]],
    "late": [[3_000, 3_001, 3_002]],
    "far apart": [[0, 5, 1_000_000_007], [9, 8, 7]],
    "before the first": [[-3, -2, -1]],
}
SIZES = [(2, 2, 3, 3, 12), (1, 3, 2, 2, 16), (2, 1, 4, 1, 6), (1, 2, 1, 5, 32)]  # B, R, C, H, D
Streams = tuple[Tensor, Tensor, Tensor]


def inputs(
    sizes: tuple[int, ...], dtype: torch.dtype, frames: str = "late"
) -> tuple[Streams, tuple[Tensor, Tensor], Positions]:
    """q, k, v as slices of one projection, two weights, and positions."""
    B, rows, columns, H, D = sizes
    torch.manual_seed(0)
    at = torch.tensor(FRAMES[frames])[:B].to(DEVICE)
    wide = torch.randn(B, at.shape[1] * rows * columns, 3 * H * D).to(dtype).to(DEVICE)
    norms = torch.randn(2, H * D).to(dtype).to(DEVICE)
    positions = Positions(at, rows, columns, D, torch.promote_types(dtype, torch.float32))
    return wide.split(H * D, -1), (norms[0], norms[1]), positions


def exactly(streams: Streams, norms: tuple[Tensor, Tensor], at: Positions) -> Streams:
    """The reference in float64."""
    wide = Positions(at.frames, at.rows, at.columns, at.head_dim, torch.float64)
    q, k, v = (x.double() for x in streams)
    return qk_norm_rope_store_reference(q, k, v, (norms[0].double(), norms[1].double()), wide)


def assert_matches(got: Streams, streams: Streams, norms, at: Positions) -> None:
    plain = qk_norm_rope_store_reference(*streams, norms, at)
    for g, p, e in zip(got, plain, exactly(streams, norms, at), strict=True):
        assert_no_worse_than_torch(g, p, e)
    assert torch.equal(got[2], plain[2])  # v is only copied


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_every_shape_and_place_matches_the_reference(impl, sizes, frames):
    for dtype in BY_IMPL[impl]:
        streams, norms, at = inputs(sizes, dtype, frames)
        assert_matches(qk_norm_rope_store(*streams, norms, at, impl=impl), streams, norms, at)


@pytest.mark.parametrize("head_dim", [6, 12, 16, 128])
def test_turns_are_exact_at_any_frame(head_dim):
    """The top 32 bits of frame * rate against the angle in 60 digits."""
    rates = [rate % 2**64 for rate in turn_rates(head_dim, torch.device("cpu")).tolist()]
    pairs_of_axes = [(j, pairs) for pairs in rope_split(head_dim) for j in range(pairs)]
    with localcontext() as context:
        context.prec = 60
        for frame in (1, 117, 10**6 + 3, 10**9 + 7, -12):
            for rate, (j, pairs) in zip(rates, pairs_of_axes, strict=True):
                exact = frame * Decimal(10000) ** (Decimal(-j) / pairs)
                turned = Decimal(frame * rate % 2**64 >> 32) / 2**32 * TWO_PI
                off = float((exact - turned) % TWO_PI)
                assert min(off, 2 * math.pi - off) < 3e-9


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_a_far_frame_turns_as_the_frame_it_equals(impl):
    """Whole turns vanish: pair 0 turns by one radian a frame, and 710 frames are 113 turns and 6e-5 radians."""
    streams, norms, at = inputs((1, 1, 1, 2, 12), torch.float32, "first")
    near = qk_norm_rope_store(*streams, norms, at, impl=impl)[0]
    far = Positions(at.frames + 710, 1, 1, 12)
    moved = qk_norm_rope_store(*streams, norms, far, impl=impl)[0]
    torch.testing.assert_close(moved[..., :2], near[..., :2], rtol=0, atol=5e-4)
    assert not torch.allclose(moved[..., 2:4], near[..., 2:4], atol=1e-2)


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_strides_do_not_change_a_bit(impl):
    streams, norms, at = inputs((2, 2, 3, 3, 12), torch.float32, "far apart")
    dense = [x.contiguous() for x in streams]
    for got, want in zip(
        qk_norm_rope_store(*streams, norms, at, impl=impl),
        qk_norm_rope_store(*dense, norms, at, impl=impl),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_a_row_does_not_know_its_batch(impl):
    (q, k, v), norms, at = inputs((2, 2, 3, 2, 12), torch.float32, "far apart")
    whole = qk_norm_rope_store(q, k, v, norms, at, impl=impl)
    second = Positions(at.frames[1:], at.rows, at.columns, at.head_dim)
    alone = qk_norm_rope_store(q[1:], k[1:], v[1:], norms, second, impl=impl)
    assert all(torch.equal(w[1:], a) for w, a in zip(whole, alone, strict=True))


@pytest.mark.skipif(native.find()[0] is None or DEVICE == "cuda", reason="not built")
def test_threads_do_not_change_the_values(monkeypatch):
    streams, norms, at = inputs((2, 9, 7, 6, 32), torch.float32)
    once = qk_norm_rope_store(*streams, norms, at, impl="native")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    again = qk_norm_rope_store(*streams, norms, at, impl="native")
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_a_layer_writes_its_own_part_of_a_context_and_nothing_else(impl):
    streams, norms, at = inputs((2, 2, 3, 3, 12), torch.float32)
    want = qk_norm_rope_store(*streams, norms, at, impl=impl)
    S = want[0].shape[1]
    context = torch.randn(2, 2, 3 * S + 1, 3, 12, device=DEVICE)  # keys and values [B, S + T, H, D]
    before = context.clone()
    q = torch.empty_like(want[0])
    into = Destination(q, context[0, :, S : 2 * S], context[1, :, S : 2 * S])
    got = qk_norm_rope_store(*streams, norms, at, into, impl)
    assert got[1] is into.k and got[2] is into.v
    for g, w in zip((q, into.k, into.v), want, strict=True):
        assert torch.equal(g, w)
    assert torch.equal(context[:, :, :S], before[:, :, :S])
    assert torch.equal(context[:, :, 2 * S :], before[:, :, 2 * S :])


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_rows_go_to_the_blocks_of_a_pool_that_are_named(impl):
    streams, norms, at = inputs((2, 2, 3, 3, 12), torch.float32, "far apart")
    want = qk_norm_rope_store(*streams, norms, at, impl=impl)
    pool = torch.randn(2, 5, *want[0].shape[1:], device=DEVICE)  # keys and values [N, S, H, D]
    before = pool.clone()
    blocks = torch.tensor([3, 1], dtype=torch.int32, device=DEVICE)
    into = Destination(torch.empty_like(want[0]), pool[0], pool[1], blocks)
    qk_norm_rope_store(*streams, norms, at, into, impl)
    assert torch.equal(into.q, want[0])
    for plane, w in zip(pool, want[1:], strict=True):
        assert torch.equal(plane[[3, 1]], w)
    assert torch.equal(pool[:, [0, 2, 4]], before[:, [0, 2, 4]])


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_queries_may_be_written_over_their_input(impl):
    (q, k, v), norms, at = inputs((1, 3, 2, 2, 16), torch.float32)
    want = qk_norm_rope_store(q, k, v, norms, at, impl=impl)
    q = q.clone()
    into = Destination(q.unflatten(-1, (2, 16)), *(torch.empty_like(want[0]) for _ in "kv"))
    qk_norm_rope_store(q, k, v, norms, at, into, impl)
    assert torch.equal(q.view_as(want[0]), want[0])


@pytest.mark.parametrize("shape", [(2, 5, 36), (1, 1, 50), (3, 7, 192)], ids=str)
@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_the_norm_alone_matches_its_reference(impl, shape):
    for dtype in BY_IMPL[impl]:
        torch.manual_seed(0)
        x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1:]).to(dtype)
        x, weight = x.to(DEVICE), weight.to(DEVICE)
        exact = rms_norm_reference(x.double(), weight.double())
        got = rms_norm(x, weight, impl)
        assert_no_worse_than_torch(got, rms_norm_reference(x, weight), exact)


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_small_rows_are_not_blown_up(impl):
    """Below the root of eps, 1e-3, the norm hardly divides: eps decides."""
    x = 1e-4 * torch.randn(1, 2, 48, dtype=torch.float64).to(DEVICE)
    one = torch.ones(48, device=DEVICE)
    exact = rms_norm_reference(x, one.double())
    assert exact.abs().max() < 0.5
    got = rms_norm(x.float(), one, impl)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)
    assert (rms_norm(torch.zeros_like(got), one, impl) == 0).all()


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_no_rows_give_no_rows(impl):
    (q, k, v), norms, at = inputs((1, 2, 3, 3, 12), torch.float32)
    got = qk_norm_rope_store(q[:0], k[:0], v[:0], norms, at, impl=impl)
    assert all(x.shape == (0, 18, 3, 12) for x in got)


def test_float64_and_gradients_take_the_reference():
    streams, norms, at = inputs((1, 2, 3, 3, 12), torch.float64)
    q = streams[0].clone().requires_grad_()
    got = qk_norm_rope_store(q, *streams[1:], norms, at)
    sum(x.sum() for x in got).backward()
    assert q.grad is not None and got[0].dtype == torch.float64


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_inputs_that_do_not_fit_are_refused(impl):
    (q, k, v), norms, at = inputs((2, 2, 3, 3, 12), torch.float32, "far apart")

    def refused(message: str, *args: object, **kwargs: object) -> None:
        with pytest.raises(ValueError, match=message):
            qk_norm_rope_store(*args, impl=impl, **kwargs)

    refused(r"k: want shape \[2, 18, 36\], got \[2, 18, 35\]", q, k[..., :35], v, norms, at)
    refused(r"v: want dtype torch.float32, got torch.float16", q, k, v.half(), norms, at)
    refused("q: want its last 1 axes dense", q[..., ::2], k, v, norms, at)
    refused(r"norm_k: want shape \[36\], got \[35\]", q, k, v, (norms[0], norms[1][:35]), at)
    short = Positions(at.frames[:, :2], 2, 3, 12)
    refused("want 18 tokens as q has, got 2 frames of 2 x 3", q, k, v, norms, short)
    floats = Positions(at.frames.float(), 2, 3, 12)
    refused("positions.frames: want dtype torch.int64", q, k, v, norms, floats)
    three = Positions(at.frames[[0, 1, 0]], 2, 3, 12)
    refused(r"positions.frames: want shape \[2, F\], got \[3, 3\]", q, k, v, norms, three)
    heads = Positions(at.frames, 2, 3, 10)
    refused("head_dim: want an even divisor of 36, at least 6, got 10", q, k, v, norms, heads)
    refused("has no gradient; use impl='torch'", q.clone().requires_grad_(), k, v, norms, at)


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_destinations_that_do_not_fit_are_refused(impl):
    (q, k, v), norms, at = inputs((2, 2, 3, 3, 12), torch.float32)
    room = torch.zeros(5, 18, 3, 12, device=DEVICE)
    ids = torch.zeros(2, dtype=torch.int32, device=DEVICE)

    def refused(message: str, *into: Tensor) -> None:
        with pytest.raises(ValueError, match=message):
            qk_norm_rope_store(q, k, v, norms, at, Destination(*into), impl)

    refused(r"into.k: want shape \[2, 18, 3, 12\], got \[5, 18, 3, 12\]", room[:2], room, room)
    refused("into.q: want its last 2 axes dense", room[:2].mT.contiguous().mT, room[:2], room[:2])
    refused("into.v: want dtype torch.float32", room[:2], room[:2], room[:2].half())
    refused("into.blocks: want dtype torch.int32", room[:2], room, room, ids.long())
    refused(r"into.blocks: want shape \[2\], got \[1\]", room[:2], room, room, ids[:1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_full_size_matches_on_hardware(dtype):
    streams, norms, at = inputs((2, 30, 52, 12, 128), dtype)
    for config in [*SPACE, *tuning.shipped("qk_norm_rope_store")]:
        got = qk_norm_rope_store(*streams, norms, at, impl="triton", config=config)
        assert_matches(got, streams, norms, at)


@pytest.mark.gpu
def test_a_captured_launch_reads_the_frames_it_is_given_later():
    streams, norms, at = inputs((2, 6, 6, 6, 32), torch.bfloat16, "first")
    later = Positions(at.frames + 300, at.rows, at.columns, at.head_dim)
    want = qk_norm_rope_store(*streams, norms, later)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=side):
        got = qk_norm_rope_store(*streams, norms, at)
    at.frames.copy_(later.frames)
    graph.replay()
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
