"""The norms of a DiT block: every implementation means what the reference says, for every shape, layout and dtype."""

from functools import partial

import pytest
import torch
from torch import Tensor

from runtime.kernels import adaln as ops
from runtime.kernels import native, tuning
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
SIZES = [(2, 1, 8, 12), (2, 3, 5, 50), (3, 2, 7, 33), (1, 3, 4, 192), (2, 1, 9, 128)]  # B, F, P, E
FORMS = {  # what is called, what it is called with
    "adaln": (ops.adaln, "x scale shift"),
    "gated_residual": (ops.gated_residual, "x y gate"),
    "ungated_residual": (ops.gated_residual, "x y none"),
    "residual_adaln": (ops.residual_adaln, "x y gate scale shift"),
    "ungated_adaln": (ops.residual_adaln, "x y none scale shift"),
    "residual_layer_norm": (ops.residual_layer_norm, "x y gate weight bias"),
    "ungated_layer_norm": (ops.residual_layer_norm, "x y none weight bias"),
}


def arguments(form: str, sizes: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Rows with a mean far from zero; the frames' vectors as the model makes them: slices of one tensor."""
    B, F, P, E = sizes
    torch.manual_seed(0)
    made = {
        "x": 3 * torch.randn(B, F * P, E) + 5,
        "y": torch.randn(B, F * P, E),
        **dict(zip(["weight", "bias"], torch.randn(2, E), strict=True)),
    }
    vectors = torch.randn(B, F, 3, 1, E).to(dtype).to(DEVICE).unbind(2)
    made = {name: t.to(dtype).to(DEVICE) for name, t in made.items()}
    made |= dict(zip(["gate", "scale", "shift"], vectors, strict=True))
    return [made.get(name) for name in FORMS[form][1].split()]


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def call(form: str, impl: str, args: list[Tensor]) -> tuple[Tensor, ...]:
    return outputs(FORMS[form][0](*args, impl=impl))


def check_all(form: str, impl: str, args: list[Tensor]) -> None:
    """The norm is held against the norm of the sum that was stored: what it was given."""
    exact = call(form, "torch", [t if t is None else t.double() for t in args])
    for got, plain, want in zip(
        call(form, impl, args), call(form, "torch", args), exact, strict=True
    ):
        assert got.is_contiguous()
        assert_no_worse_than_torch(got, plain, want)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_every_form_matches_the_reference(impl, form, sizes):
    for dtype in BY_IMPL[impl]:
        check_all(form, impl, arguments(form, sizes, dtype))


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_a_program_of_several_tokens_stops_at_the_end_of_its_frame(impl):
    args = arguments("residual_adaln", (2, 3, 5, 50), torch.float32)
    config = {"TOKENS": 4, "num_warps": 4, "num_stages": 1}
    for got, want in zip(
        ops.residual_adaln(*args, impl=impl, config=config),
        ops.residual_adaln(*args, impl="torch"),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_strides_do_not_change_a_bit(impl):
    """Rows of a wider tensor and vectors shared by the batch, against the same values laid out densely."""
    x, y, gate, scale, shift = arguments("residual_adaln", (2, 3, 5, 48), torch.float32)
    wide = torch.full((2, 15, 100), torch.nan, device=DEVICE)
    wide[..., :48], wide[..., 52:] = x, y
    shared = [t[:1] for t in (gate, scale, shift)]
    dense = [t[:1].expand(2, -1, -1, -1).contiguous() for t in (gate, scale, shift)]
    got = ops.residual_adaln(wide[..., :48], wide[..., 52:], *shared, impl=impl)
    want = ops.residual_adaln(x, y, *dense, impl=impl)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_a_row_does_not_know_its_batch(impl):
    x, y, gate, scale, shift = arguments("residual_adaln", (3, 2, 5, 40), torch.float32)
    whole = ops.residual_adaln(x, y, gate, scale, shift, impl=impl)
    alone = ops.residual_adaln(*(t[1:2] for t in (x, y, gate, scale, shift)), impl=impl)
    assert all(torch.equal(w[1:2], a) for w, a in zip(whole, alone, strict=True))


@pytest.mark.parametrize("impl", ["native"])
@pytest.mark.skipif(native.find()[0] is None, reason="not built")
def test_threads_do_not_change_the_values(impl, monkeypatch):
    args = [
        None if t is None else t.cpu()
        for t in arguments("residual_adaln", (2, 3, 41, 192), torch.float32)
    ]
    once = ops.residual_adaln(*args, impl=impl)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    again = ops.residual_adaln(*args, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_the_norm_is_of_the_sum_that_was_stored(impl):
    """In 16 bits the sum is rounded first: normalising x' again gives the same values."""
    args = arguments("residual_adaln", (1, 2, 3, 64), torch.float16)
    total, normed = ops.residual_adaln(*args, impl=impl)
    assert torch.equal(normed, ops.adaln(total, *args[3:], impl=impl))


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_rows_without_variance_become_the_shift(impl):
    x = torch.full((1, 2, 40), 3.0, device=DEVICE)
    scale, shift = torch.randn(2, 1, 1, 1, 40, device=DEVICE)
    got = ops.adaln(x, scale, shift, impl=impl)
    torch.testing.assert_close(got, shift[0].expand_as(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_small_rows_are_not_blown_up(impl):
    """Below the root of eps, 1e-3, the norm hardly divides: eps decides."""
    x = 1e-4 * torch.randn(1, 2, 64, dtype=torch.float64).to(DEVICE)
    zero = torch.zeros(1, 1, 1, 64, device=DEVICE)
    exact = ops.adaln(x, zero.double(), zero.double(), impl="torch")
    got = ops.adaln(x.float(), zero, zero, impl=impl)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-6)
    assert got.abs().max() < 0.5


@pytest.mark.skipif(native.find()[0] is None, reason="not built")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_native_rounds_every_16_bit_value_as_torch_does(dtype):
    """Ties, numbers too small for a normal, infinities and NaN: x over all bit patterns, times and plus something."""
    x = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(dtype).view(1, 256, 256)
    zero = torch.zeros_like(x)
    one = torch.ones(1, 1, 1, 256, dtype=dtype)
    assert_same_numbers(ops.gated_residual(zero, x, one, impl="native"), x + 0)
    for seed in range(4):
        source = torch.Generator().manual_seed(seed)
        y = (2.0 ** torch.randint(-16, 12, x.shape, generator=source)).to(dtype)
        gate = torch.randn(1, 1, 1, 256, generator=source).to(dtype)
        want = (x.float() + y.float() * gate[0].float()).to(dtype)
        assert_same_numbers(ops.gated_residual(x, y, gate, impl="native"), want)


def assert_same_numbers(got: Tensor, want: Tensor) -> None:
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~got.isnan()], want[~want.isnan()])


@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_no_rows_give_no_rows(impl):
    x = torch.randn(0, 6, 8, device=DEVICE)
    vector = torch.randn(1, 3, 1, 8, device=DEVICE)
    assert ops.adaln(x, vector, vector, impl=impl).shape == (0, 6, 8)


def test_float64_and_gradients_take_the_reference():
    x = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    vector = torch.randn(1, 3, 1, 8, dtype=torch.float64)
    ops.residual_adaln(x, x, None, vector, vector)[1].sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": (2, 15, 51)}, r"y: want shape \[2, 15, 50\], got \[2, 15, 51\]"),
        ({"x": (2, 16, 50), "y": (2, 16, 50)}, r"x: want tokens of 3 equal frames, got 16"),
        ({"gate": (2, 5, 1, 50)}, r"gate: want shape \[2, 3, 1, 50\], got \[2, 5, 1, 50\]"),
        ({"shift": (3, 3, 1, 50)}, r"shift: want shape \[2, 3, 1, 50\], got \[3, 3, 1, 50\]"),
        ({"scale": (2, 3, 50)}, r"scale: want shape \[2, 3, 1, 50\], got \[2, 3, 50\]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_wrong_shapes_are_refused(impl, changed, message):
    args = arguments("residual_adaln", (2, 3, 5, 50), torch.float32)
    names = FORMS["residual_adaln"][1].split()
    for name, shape in changed.items():
        args[names.index(name)] = torch.zeros(shape, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        ops.residual_adaln(*args, impl=impl)


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_wrong_layouts_dtypes_and_gradients_are_refused(impl):
    x, y, gate, scale, shift = arguments("residual_adaln", (2, 3, 5, 50), torch.float32)
    with pytest.raises(ValueError, match="x: want its last 1 axes dense"):
        ops.adaln(x.transpose(1, 2).contiguous().transpose(1, 2), scale, shift, impl=impl)
    with pytest.raises(ValueError, match=r"y: want dtype torch.float32, got torch.float16"):
        ops.gated_residual(x, y.half(), gate, impl=impl)
    with pytest.raises(ValueError, match=r"weight: want shape \[50\], got \[2, 3, 1, 50\]"):
        ops.residual_layer_norm(x, y, gate, scale, shift, impl=impl)
    with pytest.raises(ValueError, match="has no gradient; use impl='torch'"):
        ops.adaln(x.clone().requires_grad_(), scale, shift, impl=impl)
    with pytest.raises(ValueError, match="takes bfloat16, float16, float32, got torch.float64"):
        ops.adaln(x.double(), scale.double(), shift.double(), impl=impl)


@pytest.mark.parametrize("form", ["residual_adaln", "residual_layer_norm", "ungated_layer_norm"])
@pytest.mark.parametrize("impl", ["torch", NATIVE, "triton"])
def test_a_sum_in_the_place_of_x_has_the_same_bits(impl, form):
    args = arguments(form, (2, 3, 5, 50), torch.float32)
    fresh = call(form, impl, args)
    into = torch.empty_like(args[0])
    elsewhere = outputs(FORMS[form][0](*args, impl=impl, into=into))
    in_place = outputs(FORMS[form][0](*args, impl=impl, into=args[0]))
    assert elsewhere[0] is into and in_place[0] is args[0]
    for got in (elsewhere, in_place):
        assert all(torch.equal(g, want) for g, want in zip(got, fresh, strict=True))


@pytest.mark.parametrize("impl", [NATIVE, "triton"])
def test_the_place_of_the_sum_is_checked(impl):
    x, *rest = arguments("residual_adaln", (2, 1, 8, 12), torch.float32)
    wide = torch.empty(2, 8, 24)
    for into, message in [
        (wide[..., :12], "into: want a contiguous tensor"),
        (wide, r"into: want shape \[2, 8, 12\], got \[2, 8, 24\]"),
        (x.half(), "into: want dtype torch.float32, got torch.float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.residual_adaln(x, *rest, impl=impl, into=into.to(DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_full_size_matches_on_hardware(form, dtype):
    args = arguments(form, (2, 3, 1560, 1536), dtype)
    check_all(form, "triton", args)
    want = call(form, "triton", args)
    for config in [*ops.SPACE, *tuning.shipped("adaln")]:
        got = outputs(partial(FORMS[form][0], impl="triton", config=config)(*args))
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g.float(), w.float(), rtol=2e-2, atol=2e-2)
