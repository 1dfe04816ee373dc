"""Every name gives the same attention, says what it lacks, and keeps its memory from chunk to chunk."""

import sys
from types import SimpleNamespace

import pytest
import torch

from runtime import attention as room
from runtime.attention import GatheredAttention, VarlenAttention, build_attention, libraries, sdpa
from runtime.buffers import PlanBuffers
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.kernels import triton_lang
from runtime.settings import ATTENTIONS
from runtime.types import ChunkPlan, Route
from tests.tiny import CHANNELS, generator_of, scrambled, tiny_engine

ROWS = ((), (3, 1), (3, 1), (5,), (0, 2, 4))
SHIFTED = tuple(tuple(3 * place - 40 for place in range(len(row))) for row in ROWS)
STILL = tuple((0,) * len(row) for row in ROWS)


def pool_of(head_dim=32, dtype=torch.float32, tokens=5, layers=2):
    shape = (2 * layers, 6, tokens, 2, head_dim)
    return torch.randn(shape, generator=generator_of(0), dtype=torch.float64).to(dtype)


def chunk(kv, rows=0, seed=1):
    shape = (3, rows or len(ROWS), *kv.shape[2:])
    return torch.randn(shape, generator=generator_of(seed), dtype=torch.float64).to(kv.dtype)


def plan_of(blocks=ROWS, shifts=STILL, buffers=None):
    zeros = (0,) * len(blocks)
    plan = ChunkPlan((21,) * len(blocks), blocks, shifts, zeros, zeros)
    return (buffers or PlanBuffers(6, 1, "cpu")).upload(plan)


@pytest.mark.parametrize("shifts", [STILL, SHIFTED], ids=["still", "shifted"])
@pytest.mark.parametrize("name", ["triton", "reference"])
def test_names_agree(name, shifts):
    kv = pool_of()
    before, plan = kv.clone(), plan_of(shifts=shifts)
    want, got = (build_attention(which, kv).context(plan) for which in ("sdpa", name))
    for layer in (0, 1):
        q, k, v = chunk(kv, seed=layer)
        assert (got(layer, q, k, v) - want(layer, q, k, v)).abs().max() < 3e-6
    assert torch.equal(kv, before)


def test_the_reference_takes_any_head_dim_and_float64():
    kv = pool_of(12, torch.float64)
    q, k, v = chunk(kv)
    want, got = (
        build_attention(n, kv).context(plan_of(shifts=SHIFTED)) for n in ("sdpa", "reference")
    )
    assert (got(1, q, k, v) - want(1, q, k, v)).abs().max() < 1e-6  # turned in float32


def test_auto_on_the_cpu_is_sdpa():
    kv = pool_of()
    assert build_attention("auto", kv).name == "sdpa"
    assert [build_attention(n, kv).name for n in ("triton", "reference")] == ["triton", "reference"]


def test_auto_on_a_gpu_takes_triton_where_it_can(monkeypatch):
    def gpu(dtype=torch.bfloat16, head_dim=128):
        return SimpleNamespace(is_cuda=True, dtype=dtype, shape=(4, 9, 5, 2, head_dim))

    monkeypatch.setattr(room.triton_lang, "AVAILABLE", True)
    assert room._best(gpu()) == "triton"
    assert room._best(gpu(head_dim=12)) == room._best(gpu(torch.float64)) == "sdpa"
    monkeypatch.setattr(room.triton_lang, "AVAILABLE", False)
    assert room._best(gpu()) == "sdpa"


@pytest.mark.parametrize("name", ["sdpa", "triton"])
def test_memory_is_kept_and_grows(name):
    kv = pool_of()
    attention = build_attention(name, kv)
    one, whole = plan_of(((1,),), ((4,),)), plan_of(shifts=SHIFTED)

    def addresses():
        return (attention.memory if name == "sdpa" else attention.fresh).data_ptr()

    attention.context(one)
    small = addresses()
    attention.context(whole)
    large = addresses()
    assert small != large
    for plan in (one, whole, one):
        q, k, v = chunk(kv, plan.host.rows)
        got = attention.context(plan)(0, q, k, v)
        assert addresses() == large
        assert torch.equal(got, build_attention(name, kv).context(plan)(0, q, k, v))


def test_a_captured_graph_would_find_the_same_table():
    """The stride of the table and its address depend on the number of rows alone."""
    attention, buffers = build_attention("triton", pool_of()), PlanBuffers(6, 1, "cpu")
    found = []
    for blocks in (((), (1,)), ((0, 1, 2), (3, 4, 5))):
        shifts = tuple((1,) * len(row) for row in blocks)
        table, counts, turn = attention.context(plan_of(blocks, shifts, buffers)).attend.args
        found.append([(t.data_ptr(), t.shape, t.stride()) for t in (table, counts, *turn)])
    assert found[0] == found[1]


def fake_varlen(q, k, v, q_ends, k_ends, longest_q, longest_k, num_splits=None):
    assert num_splits == 1
    assert q_ends.dtype == k_ends.dtype == torch.int32
    q_parts, k_parts, v_parts = (
        x.tensor_split(ends[1:-1].long()) for x, ends in ((q, q_ends), (k, k_ends), (v, k_ends))
    )
    assert max(map(len, q_parts)) == longest_q and max(map(len, k_parts)) == longest_k
    rows = zip(q_parts, k_parts, v_parts, strict=True)
    return torch.cat([sdpa(*(x[None] for x in row))[0] for row in rows])


def test_varlen_packs_rows_without_gaps(monkeypatch):
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", fake_varlen)
    kv = pool_of()
    plan = plan_of(shifts=SHIFTED)
    got, want = (
        a.context(plan) for a in (VarlenAttention("varlen", kv), build_attention("sdpa", kv))
    )
    for layer in (1, 0, 1):
        q, k, v = chunk(kv, seed=layer)
        assert (got(layer, q, k, v) - want(layer, q, k, v)).abs().max() < 3e-6


@pytest.mark.parametrize("name", ["fa2", "fa3", "fa4", "varlen"])
def test_what_needs_a_gpu_says_so(name):
    with pytest.raises(
        ValueError, match=f"{name}.*takes float16 and bfloat16 on a GPU, got torch.f"
    ):
        build_attention(name, pool_of())


@pytest.mark.parametrize("name", ["fa2", "fa3", "fa4"])
def test_a_library_that_is_absent_is_named(name, monkeypatch):
    where, how = libraries.LIBRARIES[name]
    module = where.split(":")[0]
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    with pytest.raises(RuntimeError, match=f"{name}.*cannot import flash_attn_func from {module}"):
        libraries.library(name)
    with pytest.raises(RuntimeError, match=how.split()[-1]):
        libraries.library(name)


@pytest.mark.skipif(not triton_lang.INTERPRETED, reason="needs the interpreter")
def test_the_kernel_and_torchs_packing_pass_the_check_that_libraries_must(monkeypatch):
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", fake_varlen)
    room._check_numbers(room._maker("triton", pool_of()), pool_of())
    room._check_numbers(lambda pool: VarlenAttention("varlen", pool), pool_of())


@pytest.mark.parametrize("pair", [False, True])
def test_a_library_is_checked_before_it_is_trusted(pair, monkeypatch):
    """Whether it returns the result alone or with its log-sum-exp."""
    factor = 1.0

    def call(q, k, v):
        out = sdpa(factor * q, k, v)
        return (out, None) if pair else out

    fake = SimpleNamespace(flash_attn_func=call)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", fake)
    kv, dense = pool_of(), libraries.library("fa3")
    room._check_numbers(lambda pool: GatheredAttention("fa3", pool, dense), kv)
    q, k, v = chunk(kv)
    got = GatheredAttention("fa3", kv, dense).context(plan_of())(0, q, k, v)
    assert torch.equal(got, build_attention("sdpa", kv).context(plan_of())(0, q, k, v))
    factor = 1.01
    with pytest.raises(RuntimeError, match="fa3.*its result is off by .*, allowed .* use 'sdpa'"):
        room._check_numbers(lambda pool: GatheredAttention("fa3", pool, dense), kv)


def test_a_name_is_never_replaced_in_silence():
    with pytest.raises(ValueError, match="want one of auto, sdpa, triton, varlen, fa2, fa3, fa4"):
        build_attention("flash", pool_of())
    with pytest.raises(ValueError, match="triton.*takes head dims 32, 64, 128, got 12; use 'sdpa'"):
        build_attention("triton", pool_of(12))
    assert set(libraries.LIBRARIES) < set(ATTENTIONS)


def small_dit():
    config = DiTConfig(
        dim=64, heads=2, layers=1, ffn_dim=24, freq_dim=8, text_dim=6, text_len=4, channels=CHANNELS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scrambled(WanDiT(config)).float()


@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_a_video_does_not_depend_on_the_attention(rope):
    """Seven chunks: every route is taken, sinks are merged and appended, histories of unlike lengths meet."""
    changes = {
        "memory.rope": rope,
        "memory.quality_threshold": -0.3,
        "memory.transition_threshold": 0.0,
        "memory.max_sink_frames": 6,
    }
    seen = {}
    for name in ("sdpa", "triton"):
        engine = tiny_engine(7, {**changes, "run.attention": name}, dit=small_dit())
        assert engine.implementations["attention"] == name
        records = []
        events = list(engine.stream("a prompt", watch=records.append))
        decisions = [(r.kept, [(c.branch.seed, c.route) for c in r.candidates]) for r in records]
        seen[name] = decisions, torch.cat([event.frames for event in events])
    assert seen["sdpa"][0] == seen["triton"][0]
    assert {route for _, row in seen["sdpa"][0] for _, route in row} == set(Route)
    assert (seen["sdpa"][1] - seen["triton"][1]).abs().max() < 1e-4
