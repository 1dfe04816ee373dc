"""The CUDA kernel without a GPU: its body runs on the CPU bit for bit, and its machine code is in the module, without spills."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from runtime.kernels import native, triton_lang
from runtime.kernels.ema_merge import STORAGES, Ema, ema_merge_, temporal_turn

MODULE = native.find()[0]
pytestmark = pytest.mark.skipif(MODULE is None, reason="runtime._C is not built")
FORMS = [
    (dtype, storage)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for storage, known in STORAGES.items()
    if dtype in known
]


def merge_of(tensors, how: Ema, **changes):
    """What the launcher hands to the extension."""
    out = tensors[0]
    arguments = {
        "addresses": [0 if t is None else t.data_ptr() for t in tensors],
        "strides": [0 if t is None else t.stride(0) for t in tensors],
        "sizes": (len(out), out[0].numel(), out.shape[-1]),
        "dtype": str(out.dtype).removeprefix("torch."),
        "storage": how.storage,
        "alpha": how.alpha,
        "bits": (how.seed % 2**32, how.seed // 2**32, how.step),
    }
    arguments |= dict(
        zip(("cos", "sin"), temporal_turn(how.shift_frames, out.shape[-1]), strict=True)
    )
    return MODULE.EmaMerge(**{**arguments, **changes})


@pytest.mark.parametrize(("dtype", "storage"), FORMS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 1, 8), (4, 30, 3, 16), (2, 11, 12, 128)], ids=str)
@pytest.mark.parametrize("shift", [0, -9])
def test_the_body_of_a_cuda_thread_gives_the_bits_of_the_cpu(shift, shape, dtype, storage):
    source = torch.Generator().manual_seed(0)
    pool = torch.randn(shape[0], 5, *shape[1:], generator=source).to(dtype)
    keeps = storage == "fp32_shadow"
    how = Ema(0.7, shift, storage, seed=(1 << 40) + 1, step=3)
    starts = (None, torch.randn(shape, generator=source)) if keeps else (None,)
    for target in (1, 3):
        for shadow_in in starts:
            results = []
            for emulated in (True, False):
                mine = pool.clone()
                shadow = torch.empty(shape) if keeps else None
                out, sink, evicted = mine[:, target], mine[:, 1], mine[:, 2]
                if emulated:
                    MODULE.ema_merge_emulated(
                        merge_of((out, sink, evicted, shadow_in, shadow), how)
                    )
                else:
                    ema_merge_(
                        out,
                        sink,
                        evicted,
                        how,
                        shadow_in=shadow_in,
                        shadow_out=shadow,
                        impl="native",
                    )
                results.append((mine, shadow))
            (got, got_shadow), (want, want_shadow) = results
            assert torch.equal(got, want)
            assert not keeps or torch.equal(got_shadow, want_shadow)


BLOCKS = [torch.zeros(2, 3, 1, 16, dtype=torch.bfloat16) for _ in range(2)]


@pytest.mark.parametrize(
    "tensors",
    [
        [torch.zeros(2, 3, 1, 12, dtype=torch.bfloat16) for _ in range(2)],  # a vector and a half
        [torch.zeros(2 * 64 + 8, dtype=torch.bfloat16)[4:100].view(2, 3, 1, 16), BLOCKS[1]],
        [torch.zeros(2, 52, dtype=torch.bfloat16)[:, :48].unflatten(1, (3, 1, 16)), BLOCKS[1]],
    ],
    ids=["head", "address", "stride"],
)
def test_what_is_not_whole_vectors_is_refused(tensors):
    block, evicted = tensors
    with pytest.raises(ValueError, match="in whole 16 bytes; use impl='triton'"):
        MODULE.ema_merge_emulated(merge_of((block, block, evicted, None, None), Ema(0.9, 0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"addresses": [0] * 5}, "addresses: want out, sink and evicted"),
        ({"sizes": (2, 49, 16)}, "sizes: want planes of whole heads and an even head_dim"),
        ({"sizes": (2, 2580, 258)}, "sizes: want a head_dim of at most 256"),
        ({"sizes": (1 << 16, 48, 16)}, "fewer planes or elements"),
        ({"cos": [1.0] * 9, "sin": [0.0] * 9}, "cos, sin: want one of each for every pair"),
        ({"cos": [1.0]}, "cos, sin: want one of each for every pair"),
        ({"dtype": "float64"}, "dtype: want float32, bfloat16 or float16, got float64"),
        ({"storage": "twice"}, "storage: there is no twice of this dtype"),
        ({"dtype": "float16", "storage": "stochastic"}, "there is no stochastic of this dtype"),
        ({"storage": "fp32_shadow"}, "shadow_out: want it with fp32_shadow and only there"),
    ],
    ids=str,
)
def test_the_extension_checks_what_it_is_handed(changes, message):
    block, evicted = BLOCKS
    with pytest.raises(ValueError, match=message):
        merge_of((block, block, evicted, None, None), Ema(0.9, 0), **changes)


def cuobjdump() -> str | None:
    """NVIDIA's tool: on PATH with the toolkit, or in triton's wheel."""
    found = shutil.which("cuobjdump")
    if found is None and triton_lang.AVAILABLE:
        wheel = Path(triton_lang.triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        found = str(wheel) if wheel.is_file() else None
    return found


@pytest.mark.skipif(not getattr(MODULE, "CUDA", False), reason="built without nvcc")
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump")
def test_the_module_holds_code_for_every_gpu_and_no_kernel_spills():
    tool = cuobjdump()
    text = subprocess.run(
        [tool, "-res-usage", MODULE.__file__], capture_output=True, text=True
    ).stdout
    kernels: dict[str, int] = {}
    for part in re.split(r"^arch = ", text, flags=re.M)[1:]:
        arch = part.split()[0]
        usage = re.findall(
            r"Function (\S*ema_merge_kernel\S*):\s+REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", part
        )
        for name, registers, stack, local in usage:
            assert (stack, local) == ("0", "0"), f"{name} spills on {arch}"
            assert int(registers) <= 32, (
                f"{name} cannot fill an SM of {arch}: {registers} registers"
            )
        kernels[arch] = kernels.get(arch, 0) + len(usage)
    assert {arch: kernels.get(arch) for arch in ("sm_80", "sm_90a", "sm_100a")} == {
        "sm_80": len(FORMS) - 1,  # float32 has one form: its released roundings are its own
        "sm_90a": len(FORMS) - 1,
        "sm_100a": len(FORMS) - 1,
    }


@pytest.mark.skipif(not getattr(MODULE, "CUDA", False), reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_launch_says_so():
    block, evicted = BLOCKS
    with pytest.raises(RuntimeError, match=r"ema_merge: .*(driver|device)"):
        MODULE.ema_merge_cuda(merge_of((block, block, evicted, None, None), Ema(0.9, 0)), 0)
