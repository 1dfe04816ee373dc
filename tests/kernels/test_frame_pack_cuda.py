"""The CUDA kernels of frame_pack without a GPU: their threads run one by one on the CPU, their code is inspected."""

import pytest
import torch

from runtime.kernels import frame_pack, native

BUILT = native.find()[0] is not None
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.skipif(not BUILT, reason="not built")


def emulated(op: str, frames: torch.Tensor, lowest: float, shift: int = 0) -> torch.Tensor:
    """What the kernel's threads write; ``shift`` moves the output off a multiple of 16 bytes."""
    T, _, H, W = frames.shape
    size = T * H * W * 3 // (1 if op == "rgb24" else 2)
    out = torch.full((size + 16 + shift,), 77, dtype=torch.uint8)
    name = str(frames.dtype).removeprefix("torch.")
    getattr(native.extension(), f"{op}_emulated")(
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
