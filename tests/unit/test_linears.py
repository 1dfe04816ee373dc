"""The DiT in 8 bits: the arithmetic that is promised, the products that are meant and no others, and how far off it is."""

import pytest
import torch
import torch.nn.functional as F

from runtime.generators.linears import (
    BY_ROWS,
    Fp8Linear,
    quantise_,
    scaled_product_runs,
    weight_bytes,
)
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.generators.wan_layers import dense_attention
from runtime.kernels.fp8_quantize import E4M3, LARGEST, fp8_quantize, fp8_quantize_reference
from tests.tiny import generator_of, scrambled

CONFIG = DiTConfig(
    dim=96, heads=2, layers=2, ffn_dim=160, freq_dim=32, text_dim=10, text_len=6, channels=4
)
HOW = list(BY_ROWS)
PRODUCTS = ("self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2")


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator_of(seed)).to(dtype)


def dit_of(how: str = "dense", dtype=torch.bfloat16) -> WanDiT:
    torch.manual_seed(0)
    dit = scrambled(WanDiT(CONFIG), 0.02).to(dtype)
    quantise_(dit, how)
    return dit


@torch.no_grad()
def flow(dit: WanDiT) -> torch.Tensor:
    dtype = dit.patch_embedding.weight.dtype
    text = dit.text_context(normal(1, 5, CONFIG.text_dim, seed=1, dtype=dtype))
    x = normal(2, 3, CONFIG.channels, 4, 6, seed=2, dtype=dtype)
    rope = dit.rope(torch.arange(3)[None], 4, 6)
    times = torch.full((1, 1), 625.0, dtype=torch.float64)
    return dit(x, times, text, rope, lambda layer, q, k, v: dense_attention(q, k, v))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scaled", [False, True], ids=["reference", "scaled_mm"])
def test_a_product_is_that_of_the_rounded_factors(how, dtype, scaled):
    """Exactly the float64 product of what was rounded, but for the output's rounding and the sum's order."""
    by_rows = BY_ROWS[how]
    if scaled and not scaled_product_runs(torch.device("cpu"), dtype, by_rows):
        pytest.skip("torch has no scaled product for this here")
    x, weight, bias = normal(3, 7, 64, dtype=dtype), normal(48, 64, seed=1), normal(48, seed=2)
    linear = Fp8Linear(weight.to(dtype), bias.to(dtype), by_rows, scaled)
    got = linear(x)
    assert got.shape == (3, 7, 48) and got.dtype == dtype
    values, scale = fp8_quantize_reference(x.flatten(0, 1), by_rows)
    own = linear.scale.t() if by_rows else linear.scale
    factors, scales = (values.double(), linear.weight.double()), scale.double() * own.double()
    offset = bias.to(dtype).double()
    exact = (F.linear(*factors) * scales + offset).view(3, 7, 48)
    summed = (F.linear(*(f.abs() for f in factors)) * scales + offset.abs()).view(3, 7, 48)
    rounded = exact.abs() + offset.abs() * scaled  # torch's may round before it adds the bias
    allowed = torch.finfo(dtype).eps * rounded + 64 * torch.finfo(torch.float32).eps * summed
    assert ((got.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("how", HOW)
def test_rounding_is_as_fine_as_three_bits_of_mantissa_allow(how):
    """A row a million times louder than its neighbours costs them nothing with a scale of their own."""
    x = normal(8, 64)
    x[3] *= 1e6
    values, scale = fp8_quantize_reference(x, BY_ROWS[how])
    assert values.dtype == E4M3 and scale.dtype == torch.float32
    back = values.double() * scale.double()
    error = (back - x).abs().amax(1) / x.abs().amax(1)
    assert (error[3] <= 2**-4) and ((error <= 2**-4).all() == BY_ROWS[how])
    assert values.float().abs().amax() == LARGEST


def test_all_zeros_stay_zeros():
    for by_rows in (True, False):
        values, scale = fp8_quantize(torch.zeros(3, 16), by_rows)
        assert not values.float().any() and (scale > 0).all() and torch.isfinite(scale).all()


@pytest.mark.parametrize("how", HOW)
def test_only_the_products_of_the_blocks_are_rounded(how):
    dense, dit = dit_of(), dit_of(how)
    assert dense.linears == "dense" and dit.linears.startswith(f"{how} (")
    rounded = {name for name, module in dit.named_modules() if isinstance(module, Fp8Linear)}
    assert rounded == {
        f"blocks.{layer}.{name}"
        for layer in range(CONFIG.layers)
        for name in (*PRODUCTS, "product")
    }
    kept = dict(dit.named_parameters())
    want = dict(dense.named_parameters())
    own = ("self_attn.q", "self_attn.k", "self_attn.v")
    gone = {n for n in want if n.rpartition(".")[0].split(".", 2)[-1] in (*PRODUCTS, *own)}
    assert kept.keys() == want.keys() - gone
    assert all(torch.equal(kept[name], want[name]) for name in kept)
    held = sum(t.nbytes for t in (*dit.parameters(), *dit.buffers()))
    biases = sum(b.nbytes for n, b in dit.named_buffers() if n.endswith("bias"))
    assert held == weight_bytes(dense, torch.bfloat16, how) and biases > 0


@pytest.mark.parametrize("how", HOW)
def test_the_flow_is_near_the_dense_one_and_not_the_dense_one(how):
    """The error of 8-bit factors, 2^-4 of each, averages out over a product; bfloat16's own is a tenth of it."""
    exact, got = flow(dit_of(dtype=torch.float32)), flow(dit_of(how, torch.float32))
    error = (got - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.06, error
    assert torch.equal(got, flow(dit_of(how, torch.float32)))


@pytest.mark.parametrize("how", HOW)
def test_joining_afterwards_changes_nothing(how):
    dit = dit_of(how)
    want = flow(dit)
    dit.join_()
    assert torch.equal(flow(dit), want)


@pytest.mark.parametrize("how", HOW)
def test_joined_weights_are_rounded_to_the_same(how):
    torch.manual_seed(0)
    dit = scrambled(WanDiT(CONFIG), 0.02).bfloat16()
    dit.join_()
    quantise_(dit, how)
    assert torch.equal(flow(dit), flow(dit_of(how)))


def test_a_row_s_result_does_not_depend_on_its_neighbours_by_rows():
    """What tensor scales cannot promise: candidates of one batch do not touch one another."""
    linear = {how: Fp8Linear(normal(32, 64), normal(32), BY_ROWS[how], False) for how in HOW}
    x = normal(4, 64)
    louder = torch.cat([x[:1], 50 * x[1:]])
    same = {how: torch.equal(linear[how](x)[0], linear[how](louder)[0]) for how in HOW}
    assert same == {"fp8-row": True, "fp8-tensor": False}


def test_where_torch_has_no_scaled_product_the_slow_one_is_announced(monkeypatch, caplog):
    def missing(*args, **kwargs):
        raise RuntimeError("not on this device")

    dit_of("fp8-row", torch.bfloat16)
    heard = len(caplog.records)
    monkeypatch.setattr(torch, "_scaled_mm", missing)
    dit = dit_of("fp8-row")
    assert dit.linears == "fp8-row (reference)" and flow(dit).isfinite().all()
    assert len(caplog.records) == heard + 1 and "slow reference runs" in caplog.records[-1].message


def test_a_lack_of_memory_is_not_taken_for_a_missing_product(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "_scaled_mm", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        scaled_product_runs(torch.device("cpu"), torch.bfloat16, True)


def test_what_cannot_be_asked_for_is_refused():
    with pytest.raises(
        ValueError, match=r"run.linears: want dense, fp8-row, fp8-tensor, got 'fp4'"
    ):
        quantise_(dit_of(), "fp4")
    with pytest.raises(ValueError, match=r"these weights are fp8-row \(.*\) already"):
        quantise_(dit_of("fp8-row"), "fp8-tensor")


@pytest.mark.gpu
@pytest.mark.parametrize("how", HOW)
def test_a_gpu_from_sm_89_on_uses_the_scaled_product(how):
    device = torch.device("cuda")
    runs = torch.cuda.get_device_capability() >= (8, 9)
    assert scaled_product_runs(device, torch.bfloat16, BY_ROWS[how]) == runs
    x, weight, bias = (
        t.to(device, torch.bfloat16) for t in (normal(37, 128), normal(96, 128), normal(96))
    )
    want = Fp8Linear(weight, bias, BY_ROWS[how], False)(x)
    if runs:
        got = Fp8Linear(weight, bias, BY_ROWS[how], True)(x)
        assert (got.float() - want.float()).abs().max() <= 2**-6 * want.float().abs().max()
