"""Attention over blocks is attention over the tokens in them, wherever they lie and in whatever order."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels import triton_lang
from runtime.kernels.ema_merge import shift_keys
from runtime.kernels.window_attention import (
    SPACE,
    BlockContext,
    builds,
    implementation,
    turn_of,
    window_attention,
    window_attention_reference,
)
from tests.kernels.tolerance import assert_no_worse_than_torch

# Rows of a tile beyond the last query are zeros, and 0 * inf is NaN there, which nobody stores.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POINTERS = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}
DESCRIPTORS = {"DESCRIPTORS": 1, "SPECIALISE": 0, **POINTERS}
if DEVICE == "cuda":  # what the tensor cores of every generation take
    POINTERS = {**POINTERS, "BLOCK_M": 64, "BLOCK_N": 32}
    DESCRIPTORS = {**DESCRIPTORS, "BLOCK_M": 64, "BLOCK_N": 32}
HOPPER = DEVICE == "cpu" or torch.cuda.get_device_capability()[0] in (9, 10)
TRITON = pytest.mark.skipif(not triton_lang.AVAILABLE, reason="triton is not installed")
FORMS = [
    pytest.param(("torch", None), id="torch"),
    pytest.param(("triton", POINTERS), id="pointers", marks=TRITON),
    pytest.param(
        ("triton", DESCRIPTORS),
        id="descriptors",
        marks=[TRITON, pytest.mark.skipif(not HOPPER, reason="no tensor descriptors")],
    ),
]
TOKENS = 37 if DEVICE == "cpu" else 301  # at least a tile, and no multiple of one


def normal(*shape, seed=0, dtype=torch.float32):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64).to(DEVICE, dtype)


def int32(values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def case(rows, *, blocks=4, tokens=TOKENS, heads=2, head_dim=32, dtype=torch.float32):
    """q, own_k, own_v and a context whose rows see the blocks listed in ``rows``."""
    columns = max(map(len, rows)) + 1
    table = int32([[*row, *[blocks - 1] * (columns - len(row))] for row in rows])
    shape = (tokens, heads, head_dim)
    own = [normal(len(rows), *shape, seed=seed, dtype=dtype) for seed in range(3)]
    pool = normal(4, blocks, *shape, seed=3, dtype=dtype)  # two layers
    return *own, BlockContext(pool[1], pool[3], table, int32([len(row) for row in rows]))


def exact(q, own_k, own_v, context, rows, shifts=None):
    """Row by row in float64, from the tokens themselves."""
    outs, logs = [], []
    for row, blocks in enumerate(rows):
        moves = shifts[row] if shifts else [0] * len(blocks)
        keys = [shift_keys(context.keys[b].double(), m) for b, m in zip(blocks, moves, strict=True)]
        keys = torch.cat([*keys, own_k[row].double()])
        values = torch.cat([*(context.values[b].double() for b in blocks), own_v[row].double()])
        scores = torch.einsum("shd,thd->hst", q[row].double(), keys) / math.sqrt(q.shape[-1])
        outs.append(torch.einsum("hst,thd->shd", scores.softmax(-1), values))
        logs.append(scores.logsumexp(-1))
    return torch.stack(outs), torch.stack(logs)


def run(form, *args, **options):
    """The op in one form. Descriptors on hardware take 16 bits."""
    impl, config = form
    return window_attention(*args, impl=impl, config=config, **options)


def dtypes(form):
    if DEVICE == "cpu":
        return [torch.float32, torch.float16]  # the interpreter reads bfloat16 wrong
    half = [torch.float16, torch.bfloat16]
    return half if form[1] is DESCRIPTORS else [torch.float32, *half]


RAGGED = [[2, 0], [], [1, 2, 0]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_every_row_sees_its_blocks_and_itself(form, head_dim):
    for dtype in dtypes(form) if head_dim == 32 else dtypes(form)[-1:]:
        rows = RAGGED if head_dim == 32 else RAGGED[:2]
        args = case(rows, head_dim=head_dim, dtype=dtype)
        q = args[0]
        guarded = torch.full((len(q) + 2, *q.shape[1:]), 7.0, dtype=dtype, device=DEVICE)
        lse = torch.full((len(q) + 2, 2, TOKENS), 7.0, device=DEVICE)
        got = run(form, *args, out=guarded[1:-1], lse=lse[1:-1])
        assert got.data_ptr() == guarded[1:-1].data_ptr()
        want, logs = exact(*args, rows)
        plain, plain_logs = window_attention_reference(*args)
        assert_no_worse_than_torch(got, plain, want)
        assert_no_worse_than_torch(lse[1:-1], plain_logs, logs)
        for edge in (guarded[0], guarded[-1], lse[0], lse[-1]):
            assert (edge == 7.0).all()


def test_the_reference_is_the_formula_in_float64():
    args = case(RAGGED, dtype=torch.float64, head_dim=6)
    got, logs = window_attention_reference(*args)
    want, want_logs = exact(*args, RAGGED)
    assert (got - want).abs().max() < 1e-13 and (logs - want_logs).abs().max() < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_nothing_outside_a_rows_blocks_reaches_it(form):
    """NaN in every other block: the last tile of a block must not look beyond it, nor a row beyond its count."""
    rows, dtype = [[2], []], dtypes(form)[-1]
    args = case(rows, dtype=dtype)
    want = run(form, *args)
    assert not want.isnan().any()
    for pool in (args[3].keys, args[3].values):
        pool[[0, 1, 3]] = math.nan
    assert torch.equal(run(form, *args), want)


@pytest.mark.parametrize("form", FORMS)
def test_queries_of_other_rows_and_heads_do_not_matter(form):
    rows, dtype = [[2, 0], [1]], dtypes(form)[-1]
    q, own_k, own_v, context = case(rows, dtype=dtype)
    whole = run(form, q, own_k, own_v, context)
    for row in (0, 1):
        one = slice(row, row + 1)
        part = replace(context, table=context.table[one], counts=context.counts[one])
        alone = run(form, q[one], own_k[one], own_v[one], part)
        if form[0] == "triton":
            assert torch.equal(alone, whole[one])
        else:
            assert (alone - whole[one]).abs().max() < 1e-2
    q[:, :, 1] = 5.0
    assert torch.equal(run(form, q, own_k, own_v, context)[:, :, 0], whole[:, :, 0])


@pytest.mark.parametrize("form", FORMS)
def test_a_first_chunk_has_no_table_to_read(form):
    q, own_k, own_v, context = case([[], []], dtype=dtypes(form)[-1])
    empty = replace(context, table=context.table[:, :0].contiguous())
    want, _ = exact(q, own_k, own_v, context, [[], []])
    plain, _ = window_attention_reference(q, own_k, own_v, empty)
    assert_no_worse_than_torch(run(form, q, own_k, own_v, empty), plain, want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", [[0, 3, 1], [1, 0, 3], [3]], ids=str)
def test_keys_of_no_weight_change_nothing(form, ids):
    """A block whose every score is -inf, first, in the middle, alone: the result is that without it."""
    dtype = dtypes(form)[0]
    q, own_k, own_v, context = case([[3, 3, 3]], dtype=dtype)
    q[..., 0] = 1.0
    context.keys[3, ..., 0] = -math.inf
    finite = [block for block in ids if block != 3]

    def over(blocks):
        table = int32([[*blocks, *[0] * (4 - len(blocks))]])
        return replace(context, table=table, counts=int32([len(blocks)]))

    lse = torch.empty(1, 2, TOKENS, device=DEVICE)
    got = run(form, q, own_k, own_v, over(ids), lse=lse)
    without, logs = window_attention_reference(q, own_k, own_v, over(finite))
    want, want_logs = exact(q, own_k, own_v, context, [finite])
    assert_no_worse_than_torch(got, without, want)
    assert_no_worse_than_torch(lse, logs, want_logs)


@pytest.mark.parametrize("form", FORMS)
def test_a_query_that_meets_no_key_gets_zero(form):
    q, own_k, own_v, context = case([[3]], dtype=dtypes(form)[0])
    q[..., 0] = 1.0
    context.keys[3, ..., 0] = own_k[..., 0] = -math.inf
    lse = torch.empty(1, 2, TOKENS, device=DEVICE)
    got = run(form, q, own_k, own_v, context, lse=lse)
    assert (got == 0).all() and (lse == -math.inf).all()


@pytest.mark.parametrize("form", FORMS)
def test_far_scores_of_either_sign_do_not_overflow(form):
    """Softmax only knows differences: all scores far below zero, or far above, weigh as they should."""
    for sign in (-1, 1):
        q, own_k, own_v, context = case([[1]], dtype=dtypes(form)[0])
        q[..., 0], context.keys[..., 0], own_k[..., 0] = 40.0, 40.0 * sign, 40.0 * sign
        want, _ = exact(q, own_k, own_v, context, [[1]])
        plain, _ = window_attention_reference(q, own_k, own_v, context)
        assert_no_worse_than_torch(run(form, q, own_k, own_v, context), plain, want, slack=4.0)


@st.composite
def layouts(draw):
    """How the tokens of a context are dealt to blocks, and where in the pool those blocks lie."""
    blocks = draw(st.integers(1, 3))
    tokens = draw(st.permutations(range(blocks * 17)))
    places = draw(st.permutations(range(4)))[:blocks]
    return blocks, tokens, places


def dealt(layout, dtype):
    blocks, tokens, places = layout
    q, own_k, own_v, context = case([list(range(blocks))], tokens=17, heads=1, dtype=dtype)
    plain = run(("torch", None), q, own_k, own_v, context)
    keys, values = torch.zeros_like(context.keys), torch.zeros_like(context.values)
    for pool, source in ((keys, context.keys), (values, context.values)):
        pool[list(places)] = source[:blocks].flatten(0, 1)[list(tokens)].unflatten(0, (blocks, 17))
    columns = context.table.shape[1]
    table = int32([[*places, *[0] * (columns - blocks)]])
    return (q, own_k, own_v, BlockContext(keys, values, table, context.counts)), plain


@given(layouts())
@settings(max_examples=50)
def test_any_split_of_a_context_into_blocks_gives_the_same(layout):
    args, plain = dealt(layout, torch.float64)
    assert (run(("torch", None), *args) - plain).abs().max() < 1e-12


@TRITON
@given(layouts())
@settings(max_examples=10 if DEVICE == "cpu" else 50)
def test_any_split_gives_the_same_in_triton(layout):
    args, plain = dealt(layout, torch.float32)
    assert (run(("triton", POINTERS), *args) - plain).abs().max() < 1e-5
    if DEVICE == "cpu":
        assert (run(("triton", DESCRIPTORS), *args) - plain).abs().max() < 1e-5


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("head_dim", [32, 128])
def test_turning_the_queries_is_shifting_the_keys(form, head_dim):
    rows, shifts = [[2, 0], [1]], [[-9, 40_000], [5]]
    args = case(rows, head_dim=head_dim)
    moved = torch.zeros(args[3].table.shape, dtype=torch.int32, device=DEVICE)
    for row, values in enumerate(shifts):
        moved[row, : len(values)] = int32(values)
    context = replace(args[3], turn=turn_of(moved, head_dim))
    got = run(form, *args[:3], context)
    want, _ = exact(*args, rows, shifts)
    unmoved, _ = exact(*args, rows)
    plain, _ = window_attention_reference(*args[:3], context)
    assert (want - unmoved).abs().max() > 1e-2
    assert_no_worse_than_torch(plain, plain, want, slack=1.0)
    assert_no_worse_than_torch(got, plain, want)


def test_a_shift_of_zero_turns_nothing():
    cos, sin = turn_of(torch.zeros(2, 3), 64)
    assert (cos == 1).all() and (sin == 0).all() and cos.shape == (2, 3, 32)
    cos, sin = turn_of(torch.full((1, 1), 7.0), 64)
    assert (cos[..., 12:] == 1).all() and (sin[..., 12:] == 0).all() and (sin[..., :12] != 0).all()


@TRITON
def test_the_tuned_configurations_run():
    for head_dim, dtype in itertools.product((32, 128), dtypes(FORMS[1].values[0])):
        args = case([[1]], heads=1, head_dim=head_dim, dtype=dtype)
        want, _ = exact(*args, [[1]])
        plain, _ = window_attention_reference(*args)
        assert_no_worse_than_torch(window_attention(*args, impl="triton"), plain, want)


def test_auto_takes_what_is_there():
    assert implementation("auto", "cpu", torch.float32, {"triton": {torch.float32}}) == "torch"
    args = case([[1]])
    assert torch.equal(
        window_attention(*args, impl="auto" if DEVICE == "cpu" else "torch"),
        window_attention_reference(*args)[0],
    )


def broken(name, value):
    q, own_k, own_v, context = case([[1], [0]])
    parts = {"q": q, "own_k": own_k, "own_v": own_v, "context": context}
    if name in parts:
        parts[name] = value(parts[name])
    else:
        parts["context"] = replace(context, **{name: value(getattr(context, name))})
    return parts


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q", lambda x: x[0], r"q: want shape \[B, S, H, D\], got \[37, 2, 32\]"),
        ("own_k", lambda x: x[:1], r"own_k: want shape \[2, 37, 2, 32\], got \[1, 37, 2, 32\]"),
        ("own_v", lambda x: x.half(), "own_v: want dtype torch.float32, got torch.float16"),
        ("q", lambda x: x.mT.contiguous().mT, "q: want a contiguous tensor"),
        ("keys", lambda x: x[:, 1:], r"keys: want shape \[N, 37, 2, 32\], got \[4, 36, 2, 32\]"),
        ("keys", lambda x: x.mT.contiguous().mT, "keys: want its last 3 axes dense"),
        ("values", lambda x: x[::2], "values: want its blocks 2368 elements apart as those of k"),
        ("table", lambda x: x.long(), "table: want dtype torch.int32, got torch.int64"),
        ("table", lambda x: x[:1], r"table: want shape \[2, C\], got \[1, 2\]"),
        ("table", lambda x: x[:, :1], "table: want a contiguous tensor"),
        ("counts", lambda x: x[:1], r"counts: want shape \[2\], got \[1\]"),
        (
            "turn",
            lambda x: (torch.zeros(2, 2, 16), torch.zeros(2, 2, 8)),
            r"sin: want shape \[2, 2, 16\], got \[2, 2, 8\]",
        ),
    ],
    ids=lambda part: part if isinstance(part, str) else "bad",
)
@pytest.mark.skipif(DEVICE != "cpu", reason="the messages name the sizes used on the CPU")
def test_errors_say_what_is_wanted(name, value, message):
    with pytest.raises(ValueError, match=message):
        window_attention(**broken(name, value))


@TRITON
def test_triton_refuses_what_it_cannot_do():
    args = case([[1]], head_dim=16)
    with pytest.raises(ValueError, match="takes head dims 32, 64 and 128, got 16"):
        window_attention(*args, impl="triton")
    with pytest.raises(ValueError, match="impl='triton' takes bfloat16, float16, float32, got"):
        window_attention(*case([[1]], dtype=torch.float64), impl="triton")
    q, *rest = case([[1]])
    with pytest.raises(ValueError, match="impl='triton' has no gradient"):
        window_attention(q.requires_grad_(), *rest, impl="triton")
    args = case([[1]], tokens=9, dtype=torch.float16)
    with pytest.raises(ValueError, match="at least as many tokens as a tile has"):
        window_attention(*args, impl="triton", config=DESCRIPTORS)


@TRITON
def test_every_build_names_every_argument_of_its_kernel():
    found = list(builds())
    for build in found:
        assert set(build.signature) | set(build.constants) == set(build.kernel.arg_names)
        assert not set(build.signature) & set(build.constants)
        assert build.archs and build.aligned <= set(build.signature)
        assert build.archs == (90,) or not build.constants.get("SPECIALISE")
    forms = {(b.constants["HEAD_DIM"], b.constants.get("TURN"), b.signature["q"]) for b in found}
    dtypes = {"*bf16", "*fp16", "*fp32"}
    assert {(d, t, p) for d in (32, 64, 128) for t in (True, False) for p in dtypes} <= forms
    assert all({"BLOCK_M", "BLOCK_N", "num_warps", "num_stages"} <= set(c) for c in SPACE)
