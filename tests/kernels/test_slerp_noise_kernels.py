"""Blending and re-noising with draws made on the spot: every implementation does what the references do."""

import math
from functools import partial

import pytest
import torch

from runtime.kernels import native, triton_lang
from runtime.kernels.philox import draw_reference, normal_reference, streams
from runtime.kernels.slerp_noise import (
    blend_reference,
    renoise,
    renoise_reference,
    slerp_noise,
    slerp_noise_reference,
    slerp_reference,
)
from tests.kernels.tolerance import assert_no_worse_than_torch

GPU = torch.cuda.is_available()
NARROW = [torch.float32, torch.bfloat16, torch.float16]
BETAS = [-1.0, -0.1, 0.0, 0.6, 1.0]
SMALL = {"BLOCK": 32, "num_warps": 1}  # several programs and a rest, at test sizes
needs_native = pytest.mark.skipif(native.find()[0] is None, reason="runtime._C is not built")
needs_triton = pytest.mark.skipif(
    not (triton_lang.AVAILABLE and (GPU or triton_lang.INTERPRETED)),
    reason="no GPU, no interpreter",
)
IMPLS = [
    "torch",
    pytest.param("native", marks=needs_native),
    pytest.param("triton", marks=needs_triton),
]
FAST = IMPLS[1:]
PARENTS = torch.tensor([1, 0, 1], dtype=torch.int32)
STREAMS = streams([5, 2**64 - 7, 5], [0, 3, 2**32 - 1], 2)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def place(impl: str, dtype: torch.dtype = torch.float32) -> str:
    """Where ``impl`` runs; skips what the interpreter cannot do."""
    if impl == "triton" and not GPU and dtype == torch.bfloat16:
        pytest.skip("the interpreter cannot load bfloat16")
    return "cuda" if impl == "triton" and GPU else "cpu"


def drawn(*shape: int) -> torch.Tensor:
    """The draws of STREAMS as rows."""
    return draw_reference(STREAMS, math.prod(shape)).view(3, *shape)


def run(op, *args, impl: str, **more) -> torch.Tensor:
    """``op`` where ``impl`` runs, its result on the host."""
    dtype = next(a.dtype for a in args if isinstance(a, torch.Tensor))
    to = place(impl, dtype)
    args = [a.to(to) if isinstance(a, torch.Tensor) else a for a in args]
    return op(*args, impl=impl, config=SMALL, **more).cpu()


def assert_near(got: torch.Tensor, exact: torch.Tensor, draw: torch.Tensor, impl: str) -> None:
    """One rounding to the dtype, two more in float32; Triton's draws may be two units in the last place apart."""
    assert not got.isnan().any()
    single, largest = torch.finfo(torch.float32).eps, exact.abs().max()
    drawn_by = 2 * single * draw.abs().max() if impl == "triton" else 0.0
    rounded_by = torch.finfo(got.dtype).eps / 2 * largest
    assert (got.double() - exact).abs().max() <= rounded_by + single * largest + drawn_by


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 43), (3, 4, 5, 2)], ids=str)
@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_any_shape_matches_the_reference(shape, mode, impl):
    previous = normal(2, *shape)
    exact = slerp_noise_reference(previous.double(), PARENTS, STREAMS, -0.1, mode)
    plain = slerp_noise_reference(previous, PARENTS, STREAMS, -0.1, mode)
    got = run(slerp_noise, previous, PARENTS, STREAMS, -0.1, mode, impl=impl)
    assert_near(got, exact, drawn(*shape), impl)
    if impl == "native":
        assert (got - plain).abs().max() <= (0 if mode == "blend" else 2.0**-22)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_every_beta_matches_the_reference(mode, beta, impl):
    previous = normal(2, 43)
    exact = slerp_noise_reference(previous.double(), PARENTS, STREAMS, beta, mode)
    got = run(slerp_noise, previous, PARENTS, STREAMS, beta, mode, impl=impl)
    assert_near(got, exact, drawn(43), impl)


def in_dtype(previous: torch.Tensor, beta: float) -> torch.Tensor:
    """The blend with every step in the tensors' own dtype, as plain torch does it."""
    fresh = drawn(*previous.shape[1:]).to(previous.dtype)
    return blend_reference(previous[PARENTS.long()], fresh, beta)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_every_dtype_is_no_worse_than_torch(mode, dtype, impl):
    previous = normal(2, 129, dtype=dtype)
    exact = slerp_noise_reference(previous.double(), PARENTS, STREAMS, 0.6, mode)
    got = run(slerp_noise, previous, PARENTS, STREAMS, 0.6, mode, impl=impl)
    assert_near(got, exact, drawn(129), impl)
    if mode == "blend":
        assert_no_worse_than_torch(got, in_dtype(previous, 0.6), exact, slack=1.0)


@pytest.mark.parametrize("impl", FAST)
def test_one_rounding_on_the_way_out(impl):
    """float16 all along rounds three times: fewer values are the nearest ones."""
    dtype = torch.float16
    previous = normal(2, 201, dtype=dtype)
    exact = slerp_noise_reference(previous.double(), PARENTS, STREAMS, 0.6).to(dtype)
    got = run(slerp_noise, previous, PARENTS, STREAMS, 0.6, impl=impl)
    assert (got == exact).float().mean() > 0.99
    assert (in_dtype(previous, 0.6) == exact).float().mean() < 0.9


@pytest.mark.parametrize("impl", IMPLS)
def test_each_row_reads_its_own_parent(impl):
    previous = torch.stack([torch.full((9,), value) for value in (1.0, 2.0, 4.0)])
    index = torch.tensor([2, 0, 0, 1], dtype=torch.int32)
    table = streams([1, 2, 3, 4], [0] * 4, 0)
    got = run(slerp_noise, previous, index, table, 1.0, impl=impl)
    assert torch.equal(got, previous[index.long()])
    assert torch.equal(run(slerp_noise, previous, None, table[:3], 1.0, impl=impl), previous)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_a_row_does_not_know_its_batch(mode, impl):
    previous, beta = normal(2, 43), -0.1
    whole = run(slerp_noise, previous, PARENTS, STREAMS, beta, mode, impl=impl)
    for order in ([2, 0], [1]):
        part = run(slerp_noise, previous, PARENTS[order], STREAMS[order], beta, mode, impl=impl)
        assert torch.equal(part, whole[order])
    x0, sigma = normal(3, 43), torch.tensor([0.2, 0.5, 0.9])
    whole = run(renoise, x0, STREAMS, sigma, impl=impl)
    part = run(renoise, x0[1:], STREAMS[1:], sigma[1:], impl=impl)
    assert torch.equal(part, whole[1:])


@needs_triton
@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_values_do_not_know_the_block_size(mode):
    to = place("triton")
    args = normal(2, 301).to(to), PARENTS.to(to), STREAMS.to(to), -0.1, mode
    got = [
        slerp_noise(*args, impl="triton", config={"BLOCK": b, "num_warps": 4}) for b in (16, 128)
    ]
    if mode == "blend":
        assert torch.equal(got[0], got[1])
    else:  # sums in another order; the weights are rounded to float32
        assert (got[0] - got[1]).abs().max() <= 2.0**-21


@needs_native
@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_native_does_not_know_how_many_threads_there_are(mode, monkeypatch):
    previous = normal(2, 30_011)
    once = run(slerp_noise, previous, PARENTS, STREAMS, -0.1, mode, impl="native")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(
        run(slerp_noise, previous, PARENTS, STREAMS, -0.1, mode, impl="native"), once
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("beta", BETAS)
def test_degenerate_rows_do_as_the_reference(beta, impl):
    """Parents that are parallel to the draw, anti-parallel, or nothing at all."""
    fresh = drawn(43)[0]
    previous = torch.stack([factor * fresh for factor in (1.0, 2.5, -1.0, -2.5, 0.0)])
    table = STREAMS[:1].expand(5, 3).contiguous()
    got = run(slerp_noise, previous, None, table, beta, "slerp", impl=impl)
    want = slerp_reference(previous.double(), fresh.double().expand(5, 43), beta)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_blend_that_vanishes_keeps_the_parents_direction(impl):
    got = run(slerp_noise, -drawn(43), None, STREAMS, math.sqrt(0.5), "slerp", impl=impl)
    torch.testing.assert_close(got, -drawn(43), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("share", [-0.999, -0.3, 0.9])
def test_slerp_keeps_the_length_of_correlated_noise(share, impl):
    fresh = drawn(43)
    previous = share * fresh + math.sqrt(1 - share**2) * normal(3, 43)
    got = run(slerp_noise, previous, None, STREAMS, -0.4, "slerp", impl=impl)
    want = 0.16 * previous.norm(dim=1) + 0.84 * fresh.norm(dim=1)
    torch.testing.assert_close(got.norm(dim=1), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 4, 5, 2)], ids=str)
def test_renoise_matches_the_reference_at_each_rows_sigma(shape, dtype, impl):
    x0, sigma = normal(3, *shape, dtype=dtype), torch.tensor([0.0, 0.625, 1.0])
    fresh, level = drawn(*shape), sigma.view(-1, *[1] * len(shape))
    exact = renoise_reference(x0.double(), fresh.double(), level.double())
    got = run(renoise, x0, STREAMS, sigma, impl=impl)
    assert_near(got, exact, fresh, impl)
    assert torch.equal(got[0], x0[0])  # no noise at all
    if impl == "native":
        assert torch.equal(got, renoise(x0, STREAMS, sigma, impl="torch"))
        assert torch.equal(got[2], fresh[2].to(dtype))


@pytest.mark.parametrize("impl", IMPLS)
def test_results_go_where_they_are_asked_to_and_nowhere_else(impl):
    to = place(impl)
    previous, table = normal(2, 43).to(to), STREAMS.to(to)
    guarded = torch.full((5, 43), 7.0, device=to)
    op = partial(slerp_noise, previous, PARENTS.to(to), table, -0.1, impl=impl)
    want, before = op(), previous.clone()
    assert op(out=guarded[1:4]).data_ptr() == guarded[1].data_ptr()
    assert torch.equal(guarded[1:4], want) and torch.equal(previous, before)
    assert (guarded[[0, 4]] == 7.0).all()
    sigma = torch.tensor([0.2, 0.5, 0.9], device=to)
    again = renoise(want, table, sigma, impl=impl)
    renoise(want, table, sigma, impl=impl, out=want)  # in place
    assert torch.equal(want, again)


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batches_and_rows_work(impl):
    to = place(impl)
    none = streams([], [], 0, to)
    index = torch.empty(0, dtype=torch.int32, device=to)
    assert slerp_noise(torch.ones(2, 3, device=to), index, none, 0.5, impl=impl).shape == (0, 3)
    x0 = torch.ones(3, 0, device=to)
    assert renoise(x0, STREAMS.to(to), torch.ones(3, device=to), impl=impl).shape == (3, 0)


def test_wide_numbers_go_to_the_reference():
    previous = normal(2, 9, dtype=torch.float64)
    got = slerp_noise(previous, PARENTS, STREAMS, 0.3)
    fresh = normal_reference([5, 2**64 - 7, 5], [0, 3, 2**32 - 1], 2, (9,), dtype=torch.float64)
    assert torch.equal(got, blend_reference(previous[PARENTS.long()], fresh, 0.3))
    sigma = torch.tensor([0.3, 0.2, 0.1])
    want = renoise_reference(fresh, fresh, sigma.double()[:, None])
    assert torch.equal(renoise(fresh, STREAMS, sigma), want)


P, Z = normal(2, 6), torch.zeros


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((P.t(), PARENTS, STREAMS, 0.0), "previous: want a contiguous tensor"),
        ((P.int(), PARENTS, STREAMS, 0.0), "takes bfloat16, float16, float32, got torch.int32"),
        ((P, PARENTS.long(), STREAMS, 0.0), "parents: want dtype torch.int32, got torch.int64"),
        ((P, PARENTS[None], STREAMS, 0.0), r"parents: want shape \[B\], got \[1, 3\]"),
        ((P, PARENTS, STREAMS[:2], 0.0), r"streams: want shape \[3, 3\], got \[2, 3\]"),
        ((P, PARENTS, STREAMS.int(), 0.0), "streams: want dtype torch.int64, got torch.int32"),
        ((P, PARENTS, STREAMS, 1.5), r"beta: want a value in \[-1, 1\], got 1.5"),
        ((P, PARENTS, STREAMS, math.nan), r"beta: want a value in \[-1, 1\], got nan"),
        ((P, PARENTS, STREAMS, 0.0, "lerp"), "mode: want one of blend, slerp, got 'lerp'"),
        ((P, PARENTS + 1, STREAMS, 0.0), r"parents: want rows in \[0, 2\), got 2"),
        ((P, PARENTS - 1, STREAMS, 0.0), r"parents: want rows in \[0, 2\), got -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@needs_native
def test_native_errors_say_what_is_wanted(args, message):
    with pytest.raises(ValueError, match=message):
        slerp_noise(*args, impl="native")


@needs_native
def test_errors_of_out_and_sigma_say_what_is_wanted():
    with pytest.raises(ValueError, match=r"out: want shape \[3, 6\], got \[2, 6\]"):
        slerp_noise(P, PARENTS, STREAMS, 0.0, impl="native", out=P.clone())
    with pytest.raises(ValueError, match="out: want memory of its own"):
        slerp_noise(P, None, STREAMS[:2], 0.0, impl="native", out=P)
    with pytest.raises(ValueError, match="out: want dtype torch.float32, got torch.float16"):
        slerp_noise(P, None, STREAMS[:2], 0.0, impl="native", out=P.half())
    with pytest.raises(ValueError, match="sigma: want dtype torch.float32, got torch.float64"):
        renoise(P, STREAMS[:2], torch.ones(2).double(), impl="native")
    with pytest.raises(ValueError, match=r"sigma: want shape \[2\], got \[\]"):
        renoise(P, STREAMS[:2], torch.tensor(0.5), impl="native")
