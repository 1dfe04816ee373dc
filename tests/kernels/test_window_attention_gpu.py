"""On hardware: full size, every shipped and candidate configuration, and one captured graph for every length."""

import math

import pytest
import torch

from runtime.kernels import tuning
from runtime.kernels.window_attention import (
    SPACE,
    BlockContext,
    turn_of,
    window_attention,
    window_attention_reference,
)
from tests.kernels.tolerance import assert_no_worse_than_torch

pytestmark = pytest.mark.gpu
ROWS = [[2, 0, 1], [2, 0]]
SAMPLE = slice(4_400, 4_680)  # queries that are compared, the last and partial tile among them


def case(tokens=4_680, heads=12, head_dim=128, dtype=torch.bfloat16, rows=ROWS):
    torch.manual_seed(0)
    shape = (tokens, heads, head_dim)
    q, k, v = (torch.randn(len(rows), *shape, device="cuda").to(dtype) for _ in range(3))
    keys, values = (torch.randn(4, *shape, device="cuda").to(dtype) for _ in range(2))
    table = torch.tensor([[*row, *[3] * (4 - len(row))] for row in rows], dtype=torch.int32)
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    return q, k, v, BlockContext(keys, values, table.cuda(), counts.cuda())


def sampled(args, rows, dtype):
    """Attention of the sampled queries, computed in ``dtype`` row by row."""
    q, own_k, own_v, context = args
    outs = []
    for row, blocks in enumerate(rows):
        keys = torch.cat([*(context.keys[b] for b in blocks), own_k[row]]).to(dtype)
        values = torch.cat([*(context.values[b] for b in blocks), own_v[row]]).to(dtype)
        queries = q[row, SAMPLE].to(dtype)
        scores = torch.einsum("shd,thd->hst", queries, keys) / math.sqrt(q.shape[-1])
        outs.append(torch.einsum("hst,thd->shd", scores.softmax(-1), values))
    return torch.stack(outs)


def fits(config):
    return not config["DESCRIPTORS"] or torch.cuda.get_device_capability()[0] in (9, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_full_size_is_no_worse_than_torch(dtype):
    args = case(dtype=dtype)
    got = window_attention(*args, impl="triton")[:, SAMPLE]
    assert_no_worse_than_torch(got, sampled(args, ROWS, dtype), sampled(args, ROWS, torch.float64))


@pytest.mark.parametrize("config", SPACE, ids=lambda config: "-".join(map(str, config.values())))
def test_every_candidate_of_the_tuner_is_right(config):
    if not fits(config):
        pytest.skip("no tensor descriptors")
    if config["SPECIALISE"] and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("warp specialisation is for sm_90")
    args = case()
    want = sampled(args, ROWS, torch.float64)
    for _ in range(3):  # a race would not show every time
        got = window_attention(*args, impl="triton", config=config)[:, SAMPLE]
        assert_no_worse_than_torch(got, sampled(args, ROWS, torch.bfloat16), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("tokens", [108, 300])
def test_tuned_configurations_at_small_sizes(tokens, head_dim, dtype):
    args = case(tokens, 2, head_dim, dtype)
    exact = window_attention_reference(*(x.double() for x in args[:3]), wide(args[3]))
    plain = window_attention_reference(*args)
    lse = torch.empty(len(ROWS), 2, tokens, device="cuda")
    got = window_attention(*args, lse=lse, impl="triton")
    assert_no_worse_than_torch(got, plain[0], exact[0])
    assert_no_worse_than_torch(lse, plain[1], exact[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_turned_queries_at_small_sizes(dtype):
    q, k, v, context = case(300, 2, 64, dtype)
    shifts = torch.tensor([[-9, 40_000, 3, 0], [5, 0, 0, 0]], device="cuda")
    context = BlockContext(
        context.keys, context.values, context.table, context.counts, turn_of(shifts, 64)
    )
    exact, _ = window_attention_reference(q.double(), k.double(), v.double(), wide(context))
    plain, _ = window_attention_reference(q, k, v, context)
    assert_no_worse_than_torch(window_attention(q, k, v, context, impl="triton"), plain, exact)


def wide(context):
    keys, values = context.keys.double(), context.values.double()
    return BlockContext(keys, values, context.table, context.counts, context.turn)


@pytest.mark.parametrize("tokens", [108, 4_680])
def test_one_captured_graph_serves_every_length(tokens):
    q, k, v, context = case(tokens, 2, 64)
    out = torch.empty_like(q)
    window_attention(q, k, v, context, out=out, impl="triton")
    graph_of = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph_of):
        window_attention(q, k, v, context, out=out, impl="triton")
    for rows in ([[0], [3, 1, 2]], [[], []], [[1, 2, 3, 0], [2]]):
        for row, blocks in enumerate(rows):
            context.table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32).cuda()
        context.counts.copy_(torch.tensor([len(blocks) for blocks in rows], dtype=torch.int32))
        graph_of.replay()
        assert torch.equal(out, window_attention(q, k, v, context, impl="triton"))


def test_a_launch_never_waits():
    args = case(300, 2, 64)
    window_attention(*args, impl="triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        window_attention(*args, impl="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_hopper_loads_through_descriptors():
    shape = {"width": "half", "head_dim": 128, "tokens": 4_680, "form": "descriptors"}
    assert tuning.nearest("window_attention", shape, tuning.gpu_name())["DESCRIPTORS"] == 1
