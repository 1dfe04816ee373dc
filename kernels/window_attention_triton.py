"""The two Triton kernels of ``window_attention``: one that loads through pointers, one that loads through descriptors.

Both walk the same list of blocks, the context's in the order of the table and then the row's own chunk, with the running
maximum and the running sum of a softmax in base 2. One program makes BLOCK_M rows of one head of one row of the batch.

Legend: S tokens of a block, E = heads * HEAD_DIM elements of a token, C columns of the table.
"""

from collections.abc import Iterator

import torch

from runtime.kernels import tuning
from runtime.kernels.build import ARCHS, Build, pointer
from runtime.kernels.triton_lang import jit, tl
from runtime.kernels.tuning import Config

OP = "window_attention"
GPUS = {
    "A100": (80,),
    "H100": (90,),
    "H200": (90,),
    "B200": (100,),
}  # what a tuned file's name says
# Candidates for the tuner. Warp specialisation is for sm_90: on sm_100 these shapes spill.
SPACE: list[Config] = [
    {
        "DESCRIPTORS": descriptors,
        "SPECIALISE": specialise,
        "BLOCK_M": rows,
        "BLOCK_N": columns,
        "num_warps": warps,
        "num_stages": stages,
    }
    for descriptors, specialise, rows, columns, warps, stages in [
        (1, 0, 128, 128, 8, 2),
        (1, 0, 128, 64, 8, 3),
        (1, 0, 128, 64, 8, 2),
        (1, 0, 64, 128, 4, 2),
        (1, 0, 64, 64, 4, 3),
        (1, 1, 128, 128, 4, 2),
        (1, 1, 128, 64, 4, 2),
        (1, 1, 128, 64, 4, 3),
        (0, 0, 128, 128, 8, 2),
        (0, 0, 128, 64, 8, 3),
        (0, 0, 64, 64, 4, 3),
        (0, 0, 128, 32, 8, 3),
    ]
]


@jit
def _fold(acc, total, high, q, k, v, scale, seen, PRECISION: tl.constexpr):
    """Take one tile of keys [HEAD_DIM, BLOCK_N] and values into the softmax; ``seen`` says which of them count."""
    scores = tl.dot(q, k, input_precision=PRECISION)
    scores = tl.where(seen[None, :], scores, float("-inf"))
    highest = tl.maximum(high, tl.max(scores, 1) * scale)
    # -inf - -inf is NaN: a row that has seen no key yet is compared with 0 instead.
    origin = tl.where(highest == float("-inf"), 0.0, highest)
    p = tl.exp2(scores * scale - origin[:, None])
    fade = tl.exp2(high - origin)
    total = total * fade + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return acc, total, highest


@jit
def _finish(acc, total, high):
    """The rows of the result and their log-sum-exp; a row without any key is zero and -inf."""
    some = tl.where(total == 0.0, 1.0, total)
    return acc / some[:, None], (high + tl.log2(total)) * 0.6931471805599453


@jit
def pointer_kernel(
    q, own_k, own_v, keys, values, table, counts, cos, sin, out, lse,  # fmt: skip
    S, scale, block_step, C,  # fmt: skip
    HEAD_DIM: tl.constexpr,
    TURN: tl.constexpr,
    LSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Any GPU, any dtype. With TURN the queries are turned back by each block's shift before they meet its keys."""
    row, head, heads = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    E = heads * HEAD_DIM
    d = tl.arange(0, HEAD_DIM)
    n = tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = (m < S)[:, None]
    corner = row.to(tl.int64) * S * E + head * HEAD_DIM
    q_at = q + corner + m[:, None] * E
    plain = tl.load(q_at + d[None, :], mask=inside, other=0.0)
    turned = plain
    count = tl.load(counts + row)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    high = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for place in range(0, count + 1):
        mine = place == count
        block = tl.load(table + row * C + place, mask=place < count, other=0).to(tl.int64)
        there = block * block_step + head * HEAD_DIM
        k_at = tl.where(mine, own_k + corner, keys + there)
        v_at = tl.where(mine, own_v + corner, values + there)
        if TURN:
            pair = tl.arange(0, HEAD_DIM // 2)
            at = (row * C + place) * (HEAD_DIM // 2) + pair
            c = tl.load(cos + at, mask=(pair >= 0) & (place < count), other=1.0)[None, :]
            s = tl.load(sin + at, mask=(pair >= 0) & (place < count), other=0.0)[None, :]
            even, odd = plain.to(tl.float32).reshape([BLOCK_M, HEAD_DIM // 2, 2]).split()
            turned = tl.join(even * c + odd * s, odd * c - even * s)
            turned = turned.reshape([BLOCK_M, HEAD_DIM]).to(plain.dtype)
        for start in range(0, S, BLOCK_N):
            seen = start + n < S
            step = (start + n) * E
            k = tl.load(k_at + step[None, :] + d[:, None], mask=seen[None, :], other=0.0)
            v = tl.load(v_at + step[:, None] + d[None, :], mask=seen[:, None], other=0.0)
            acc, total, high = _fold(acc, total, high, turned, k, v, scale, seen, PRECISION)
    acc, logs = _finish(acc, total, high)
    tl.store(out + corner + m[:, None] * E + d[None, :], acc.to(out.dtype.element_ty), mask=inside)
    if LSE:
        tl.store(lse + (row * heads + head).to(tl.int64) * S + m, logs, mask=m < S)


@jit
def descriptor_kernel(
    q, own_k, own_v, keys, values, table, counts, out, lse,  # fmt: skip
    S, scale, C, B,  # fmt: skip
    HEAD_DIM: tl.constexpr,
    LSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPECIALISE: tl.constexpr,
):  # fmt: skip
    """Hopper and later, 16 bits: tiles come through the copy engine, with SPECIALISE issued by a warp group of its own.

    Wants S >= BLOCK_M and S >= BLOCK_N. The last tile of a block is moved back to end where the block ends and counts only
    what no tile before it had, so nothing beyond a block is ever read; rows of queries that two programs make come out
    the same bits twice.

    Warp specialisation on sm_90 takes one loop, descriptors of two axes made on the device, and no pointer loads of
    tiles (Triton 3.7). So there is one descriptor for the pool and for the chunk's own keys: it begins at whichever lies
    lower in memory, its rows are E apart and 2 E wide, and any address of the same alignment is a row and a column of it.
    """
    row, head = tl.program_id(0), tl.program_id(2)
    E = tl.num_programs(2) * HEAD_DIM
    n = tl.arange(0, BLOCK_N)
    column = head * HEAD_DIM
    m0 = tl.minimum(tl.program_id(1) * BLOCK_M, S - BLOCK_M)
    queries = tl.make_tensor_descriptor(q, [B * S, E], [E, 1], [BLOCK_M, HEAD_DIM])
    result = tl.make_tensor_descriptor(out, [B * S, E], [E, 1], [BLOCK_M, HEAD_DIM])
    k_low, own_k_row, own_k_column, pool_k_row, pool_k_column = _common(own_k, keys, E)
    v_low, own_v_row, own_v_column, pool_v_row, pool_v_column = _common(own_v, values, E)
    k_tiles = tl.make_tensor_descriptor(k_low, [0x7FFFFFFF, 2 * E], [E, 1], [BLOCK_N, HEAD_DIM])
    v_tiles = tl.make_tensor_descriptor(v_low, [0x7FFFFFFF, 2 * E], [E, 1], [BLOCK_N, HEAD_DIM])
    turned = queries.load([row * S + m0, column])
    count = tl.load(counts + row)
    tiles = tl.cdiv(S, BLOCK_N)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    high = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for turn in tl.range(0, (count + 1) * tiles, warp_specialize=SPECIALISE):
        place = turn // tiles
        mine = place == count
        block = tl.load(table + row * C + place, mask=place < count, other=0)
        first = (turn % tiles) * BLOCK_N
        start = tl.minimum(first, S - BLOCK_N)
        k_row = tl.where(mine, own_k_row + row * S, pool_k_row + block * S) + start
        v_row = tl.where(mine, own_v_row + row * S, pool_v_row + block * S) + start
        k = k_tiles.load([k_row, column + tl.where(mine, own_k_column, pool_k_column)])
        v = v_tiles.load([v_row, column + tl.where(mine, own_v_column, pool_v_column)])
        seen = start + n >= first
        acc, total, high = _fold(acc, total, high, turned, k.T, v, scale, seen, PRECISION)
    acc, logs = _finish(acc, total, high)
    result.store([row * S + m0, column], acc.to(out.dtype.element_ty))
    if LSE:
        m = m0 + tl.arange(0, BLOCK_M)
        tl.store(lse + (row * tl.num_programs(2) + head).to(tl.int64) * S + m, logs)


@jit
def _common(a, b, E):
    """The lower of two addresses, and row and column of each in steps of E elements from there."""
    a_bytes, b_bytes = a.to(tl.int64), b.to(tl.int64)
    size = a.dtype.element_ty.primitive_bitwidth // 8
    low = tl.minimum(a_bytes, b_bytes)
    a_far, b_far = (a_bytes - low) // size, (b_bytes - low) // size
    base = tl.where(a_bytes < b_bytes, a, b)
    return (
        base,
        (a_far // E).to(tl.int32),
        (a_far % E).to(tl.int32),
        (b_far // E).to(tl.int32),
        (b_far % E).to(tl.int32),
    )


def precision(dtype: torch.dtype) -> str:
    """How float32 products are made on tensor cores; 16 bits do not care."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def builds() -> Iterator[Build]:
    """Every form that a launch could ask for, and the warp-specialised candidates, which no default chooses."""
    for path in sorted(tuning.FOLDER.glob(f"{OP}.*.json")):
        gpu = path.name.split(".")[1]
        archs = next((arch for name, arch in GPUS.items() if name in gpu), ARCHS)
        for row in tuning.rows(OP, gpu):
            half = row["shape"]["width"] == "half"
            for dtype in (torch.bfloat16, torch.float16) if half else (torch.float32,):
                yield _build(row["shape"], row["config"], dtype, archs)
    wide: dict[str, int | str] = {"form": "descriptors", "head_dim": 128}
    for config in SPACE:
        if config["SPECIALISE"]:
            yield _build(wide, config, torch.bfloat16, (90,))


def _build(
    shape: dict[str, int | str], config: Config, dtype: torch.dtype, archs: tuple[int, ...]
) -> Build:
    config, form, head_dim = dict(config), shape["form"], shape["head_dim"]
    launch = {name: config.pop(name) for name in ("num_warps", "num_stages")}
    label = f"{OP} {form} {str(dtype).removeprefix('torch.')} D={head_dim} {config}"
    constants = {"HEAD_DIM": head_dim, "LSE": False, "PRECISION": precision(dtype), **config}
    tiles = dict.fromkeys(["q", "own_k", "own_v", "keys", "values", "out"], pointer(dtype))
    indices = dict.fromkeys(["table", "counts"], pointer(torch.int32))
    signature = {
        **tiles,
        **indices,
        "lse": pointer(torch.int32),  # nobody asks for it: ``counts`` stands in its place
        "S": "i32",
        "scale": "fp32",
        "C": "i32",
    }
    if constants.pop("DESCRIPTORS", 0):
        kernel, signature["B"] = descriptor_kernel, "i32"
        constants["SPECIALISE"] = bool(config["SPECIALISE"])
        archs = tuple(arch for arch in archs if arch in (90, 100))
    else:
        kernel, constants["TURN"] = pointer_kernel, form == "turned"
        constants.pop("SPECIALISE", None)
        turn = pointer(torch.float32 if constants["TURN"] else torch.int32)
        signature |= {
            "cos": turn,
            "sin": turn,
            "block_step": "i32",
        }
    aligned = frozenset(
        name for name, kind in signature.items() if kind[0] == "*" or name == "block_step"
    )
    # Three TF32 products of 128 columns fit the registers with 16 queries; HGMMA begins at 64.
    dots = not (dtype == torch.float32 and head_dim == 128)
    warps, stages = launch["num_warps"], launch["num_stages"]
    return Build(
        label, kernel, signature, constants, warps, stages, aligned=aligned, dots=dots, archs=archs
    )
