"""The CUDA kernels of frame_pack without a GPU: their threads run one by one on the CPU, their code is inspected.

The threads of reward_patches run in test_reward_patches.py, where they are one implementation among others.
"""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from runtime.kernels import bicubic, frame_pack, native, reward_patches, triton_lang

MODULE = native.find()[0]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.skipif(MODULE is None, reason="not built")
with_nvcc = pytest.mark.skipif(not getattr(MODULE, "CUDA", False), reason="built without nvcc")
KERNELS = {  # name -> its forms
    "rgb24_kernel": 3 * 2,  # dtypes x whole accesses or not
    "yuv420_kernel": 3 * 2,
    "patches_kernel": 4 * 2 * 3,  # x dtypes of the patches
}


def emulated(op: str, frames: torch.Tensor, lowest: float, shift: int = 0) -> torch.Tensor:
    """What the kernel's threads write; ``shift`` moves the output off a multiple of 16 bytes."""
    T, _, H, W = frames.shape
    size = T * H * W * 3 // (1 if op == "rgb24" else 2)
    out = torch.full((size + 16 + shift,), 77, dtype=torch.uint8)
    name = str(frames.dtype).removeprefix("torch.")
    getattr(MODULE, f"{op}_emulated")(
        out.data_ptr() + shift, frames.data_ptr(), name, (T, H, W), lowest
    )
    assert (out[:shift] == 77).all() and (out[size + shift :] == 77).all()
    return out[shift : size + shift]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lowest", [0.0, -1.0])
@pytest.mark.parametrize(
    ("frames", "height", "width", "shift"),
    [(1, 1, 1, 0), (3, 3, 5, 0), (2, 63, 131, 0), (2, 48, 80, 0), (2, 66, 64, 0), (2, 48, 80, 4)],
)
def test_rgb_threads_write_what_torch_does(frames, height, width, shift, lowest, dtype):
    torch.manual_seed(0)
    pixels = (torch.rand(frames, 3, height, width) * 2.4 - 1.2).to(dtype)
    got = emulated("rgb24", pixels, lowest, shift)
    assert torch.equal(got, frame_pack.rgb24_reference(pixels, lowest).flatten())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lowest", [0.0, -1.0])
@pytest.mark.parametrize(
    ("frames", "height", "width", "shift"),
    [(1, 2, 2, 0), (3, 6, 10, 0), (2, 34, 12, 0), (2, 62, 130, 0), (2, 48, 80, 0), (2, 48, 80, 4)],
)
def test_yuv_threads_write_what_torch_does(frames, height, width, shift, lowest, dtype):
    torch.manual_seed(0)
    pixels = (torch.rand(frames, 3, height, width) * 2.4 - 1.2).to(dtype)
    got = emulated("yuv420", pixels, lowest, shift)
    assert torch.equal(got, frame_pack.yuv420_reference(pixels, lowest).flatten())


def cuobjdump() -> str | None:
    """NVIDIA's tool: on PATH with the toolkit, or in triton's wheel."""
    found = shutil.which("cuobjdump")
    if found is None and triton_lang.AVAILABLE:
        wheel = Path(triton_lang.triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        found = str(wheel) if wheel.is_file() else None
    return found


@functools.cache
def functions(option: str, pattern: str) -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """(arch, kernel) -> what ``pattern`` finds in each of its forms, with cuobjdump's ``option``."""
    command = [cuobjdump(), option, MODULE.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for part in re.split(r"^arch = ", text, flags=re.M)[1:]:
        arch = part.split()[0]
        for body in re.split(r"Function :? ?", part)[1:]:
            for kernel in KERNELS:
                if kernel in body.split()[0]:
                    found.setdefault((arch, kernel), []).append(tuple(re.findall(pattern, body)))
    return found


@with_nvcc
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_every_form_is_there_and_none_spills(arch, kernel):
    forms = functions("-res-usage", r"STACK:(\d+)|LOCAL:(\d+)")[arch, kernel]
    assert forms == [(("0", ""), ("", "0"))] * KERNELS[kernel]


@with_nvcc
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump")
@pytest.mark.parametrize("kernel", KERNELS)
def test_whole_accesses_are_16_bytes_and_nothing_is_fused(kernel):
    forms = functions("-sass", r"\b(LDG\.E\.128|STG\.E\.128|FFMA)\b")["sm_90a", kernel]
    wide_reads = sum("LDG.E.128" in form for form in forms)
    assert wide_reads >= KERNELS[kernel] // 2
    if kernel != "yuv420_kernel":  # whose planes are written as far as two rows of pixels reach
        assert sum("STG.E.128" in form for form in forms) >= KERNELS[kernel] // 2
    assert not any("FFMA" in form for form in forms)


@with_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_launch_says_so():
    frames, out = torch.zeros(1, 3, 28, 28), torch.empty(1, 28, 28, 3, dtype=torch.uint8)
    for op in ("rgb24", "yuv420"):
        with pytest.raises(RuntimeError, match=rf"{op}: the launch failed: .*(driver|device)"):
            getattr(MODULE, f"{op}_cuda")(
                out.data_ptr(), frames.data_ptr(), "float32", (1, 28, 28), 0.0, 0
            )
    form, axis = reward_patches.PatchFormat(28, 28), bicubic.taps(28, 28, torch.device("cpu"))
    patches = torch.empty(4, 1176, dtype=torch.bfloat16)
    job = reward_patches.native_job(patches, frames, (axis, axis), form, 0.0)
    with pytest.raises(RuntimeError, match="reward_patches: the launch failed: .*(driver|device)"):
        MODULE.reward_patches_cuda(*job, 0)
