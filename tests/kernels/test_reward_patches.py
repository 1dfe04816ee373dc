"""Reward input: Pillow's pixels, Qwen2-VL's patches, the same bits from every implementation."""

import dataclasses

import pytest
import torch

from runtime.kernels import bicubic, frame_pack, native, reward_patches, triton_lang
from runtime.kernels.reward_patches import PatchFormat, fit_size, reward_patches_reference
from tests.kernels.tolerance import assert_no_worse_than_torch

BUILT = native.find()[0] is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_CUDA = BUILT and native.extension().CUDA and DEVICE == "cuda"
FAST = [
    pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="not built")),
    pytest.param("emulated", marks=pytest.mark.skipif(not BUILT, reason="not built")),
    pytest.param(
        "triton", marks=pytest.mark.skipif(not triton_lang.AVAILABLE, reason="not installed")
    ),
    *(["cuda"] if HAS_CUDA else []),
]
IMPLS = ["torch", *FAST]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.uint8]
SMALL = {"ROWS": 64, "COLUMNS": 128, "num_warps": 4}  # few programs for the interpreter
SIZES = {  # height, width, resized height and width
    "as it is": (28, 56, 28, 56),
    "shrunk": (61, 83, 56, 28),
    "shrunk a lot": (90, 150, 28, 28),
    "grown": (17, 23, 28, 56),
    "grown from almost nothing": (1, 3, 28, 28),
    "one of each": (60, 20, 28, 84),
    "rows of 16 bytes": (48, 80, 28, 56),
    "wider than a tile": (30, 160, 28, 140),
}


def noise(*shape: int, dtype: torch.dtype = torch.float32, lowest: float = 0.0) -> torch.Tensor:
    """Frames in [``lowest``, 1] and a little outside, or bytes, half of them black or white."""
    torch.manual_seed(sum(shape))
    unit = (torch.rand(shape) * 2 - 0.5).clamp(-0.01, 1.01)
    if dtype == torch.uint8:
        return (unit.clamp(0, 1) * 255).to(torch.uint8)
    return (unit * (1 - lowest) + lowest).to(dtype)


def run(frames: torch.Tensor, form: PatchFormat, impl: str, lowest: float = 0.0) -> torch.Tensor:
    """The op where ``impl`` runs, the result on the CPU. "emulated" is the CUDA kernel, thread by thread."""
    if impl == "emulated":
        out = torch.empty(form.patches(len(frames)), 1176, dtype=form.dtype)
        height, width = frames.shape[2:]
        cpu = torch.device("cpu")
        axes = bicubic.taps(height, form.height, cpu), bicubic.taps(width, form.width, cpu)
        job = reward_patches.native_job(out, frames, axes, form, lowest)
        native.extension().reward_patches_emulated(*job)
        return out
    if (
        impl == "triton"
        and triton_lang.INTERPRETED
        and torch.bfloat16 in (frames.dtype, form.dtype)
    ):
        pytest.skip("the interpreter cannot read bfloat16")
    if impl in ("triton", "cuda"):
        frames = frames.to(DEVICE)
    config = SMALL if impl == "triton" else None
    return reward_patches.reward_patches(frames, form, lowest, impl, config=config).cpu()


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_gives_the_bits_of_torch(size, video, impl):
    height, width, *resized = SIZES[size]
    form = PatchFormat(*resized, video=video, dtype=torch.float32)
    frames = noise(3, 3, height, width)
    assert torch.equal(run(frames, form, impl), reward_patches_reference(frames, form))


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("out", DTYPES[:3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_gives_the_bits_of_torch(dtype, out, impl):
    form = PatchFormat(28, 56, video=True, dtype=out)
    frames = noise(2, 3, 40, 64, dtype=dtype, lowest=-1.0)
    expected = reward_patches_reference(frames, form, -1.0)
    assert expected.dtype == out
    assert torch.equal(run(frames, form, impl, -1.0), expected)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_other_means_and_every_byte_give_the_bits_of_torch(dtype, impl):
    bytes_ = (
        torch.arange(28 * 28).remainder(256).to(torch.uint8).view(1, 1, 28, 28).repeat(1, 3, 1, 1)
    )
    form = PatchFormat(28, 28, dtype=dtype, mean=(0.0, 0.5, 128 / 255), std=(1.0, 0.5, 0.01))
    assert torch.equal(run(bytes_, form, impl), reward_patches_reference(bytes_, form))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_values_are_as_near_to_the_formula_as_plain_torch(dtype, impl):
    form = PatchFormat(28, 56, dtype=dtype)
    frames = noise(1, 3, 45, 71, dtype=torch.uint8)
    exact = reward_patches_reference(frames, dataclasses.replace(form, dtype=torch.float64))
    whole = dataclasses.replace(form, mean=(0.0,) * 3, std=(1 / 255,) * 3, dtype=torch.float64)
    pixels = reward_patches_reference(frames, whole).view(-1, 3, 392)
    mean, std = (torch.tensor(v).view(1, 3, 1) for v in (form.mean, form.std))
    plain = ((pixels.to(dtype) / 255 - mean.to(dtype)) / std.to(dtype)).view(-1, 1176)
    assert_no_worse_than_torch(run(frames, form, impl), plain, exact)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_patch_is_where_the_formula_says(impl):
    """Colour c of frame t at (y, x) is a byte that names them; nothing is resized."""
    t, c, y, x = torch.meshgrid(*map(torch.arange, (4, 3, 56, 84)), indexing="ij")
    frames = ((t * 31 + c * 57 + y * 5 + x * 3) % 256).to(torch.uint8).contiguous()
    form = PatchFormat(56, 84, video=True, dtype=torch.float32, mean=(0.0,) * 3, std=(1.0,) * 3)
    got = (run(frames, form, impl) * 255).round().to(torch.uint8).view(2, 24, 3, 2, 14, 14)
    for group, place, row, column in [(0, 0, 0, 0), (0, 1, 0, 1), (1, 2, 1, 0), (1, 4, 0, 2), (0, 23, 3, 5)]:  # fmt: skip
        for slot in (0, 1):
            part = frames[2 * group + slot, :, row * 14 : row * 14 + 14, column * 14 :][..., :14]
            assert torch.equal(got[group, place, :, slot], part)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_image_is_its_own_second_frame_and_a_video_repeats_its_last(impl):
    frames = noise(3, 3, 40, 40)
    images = run(frames, PatchFormat(28, 28, dtype=torch.float32), impl).view(3, 4, 3, 2, 196)
    assert torch.equal(images[:, :, :, 0], images[:, :, :, 1])
    video = run(frames, PatchFormat(28, 28, video=True, dtype=torch.float32), impl)
    video = video.view(2, 4, 3, 2, 196)
    for slot, frame in enumerate((0, 1, 2, 2)):
        assert torch.equal(video[slot // 2, :, :, slot % 2], images[frame, :, :, 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_frames_may_be_picked_with_a_stride(impl):
    form = PatchFormat(28, 28, dtype=torch.float32)
    frames = noise(5, 3, 33, 47)
    assert torch.equal(run(frames[::2], form, impl), run(frames[::2].clone(), form, impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_bad_values_are_black_or_clamped(impl):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 2.0, -2.0, 1.0, 0.0])
    frames = values.repeat(28 * 28 // 7).view(1, 1, 28, 28).expand(1, 3, 28, 28).contiguous()
    clean = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]).repeat(112).view(1, 1, 28, 28)
    form = PatchFormat(28, 28, dtype=torch.float32)
    assert torch.equal(
        run(frames, form, impl), run(clean.expand(1, 3, 28, 28).contiguous(), form, impl)
    )


@pytest.mark.skipif(not BUILT, reason="not built")
def test_threads_do_not_change_the_patches(monkeypatch):
    frames, form = noise(4, 3, 97, 131), PatchFormat(140, 168, video=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    once = run(frames, form, "native")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(run(frames, form, "native"), once)


@pytest.mark.skipif(not BUILT, reason="not built")
@pytest.mark.parametrize("emulated", [False, True])
def test_nothing_is_written_outside_the_patches(emulated):
    frames, form = noise(3, 3, 37, 90), PatchFormat(56, 84, video=True, dtype=torch.float16)
    guarded = torch.full((form.patches(3) + 2, 1176), 7.0, dtype=torch.float16)
    axes = tuple(bicubic.taps(n, m, torch.device("cpu")) for n, m in ((37, 56), (90, 84)))
    job = reward_patches.native_job(guarded[1:-1], frames, axes, form, 0.0)
    if emulated:
        native.extension().reward_patches_emulated(*job)
    else:
        native.extension().reward_patches(*job, 2)
    assert (guarded[[0, -1]] == 7.0).all()
    assert torch.equal(guarded[1:-1], reward_patches_reference(frames, form))


@pytest.mark.parametrize(
    ("frames", "form", "options", "message"),
    [
        (torch.zeros(3, 4, 4), {}, {}, r"frames: want shape \[T, 3, H, W\], got \[3, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4).double(), {}, {}, "frames: want dtype .*, got torch.float64"),
        (torch.zeros(1, 3, 4, 8)[..., ::2], {}, {}, "frames: want its last 3 axes dense"),
        (torch.zeros(0, 3, 4, 4), {}, {}, r"frames: want at least one pixel, got \[0, 3, 4, 4\]"),
        (torch.zeros(1, 3, 4, 4), {}, {"lowest": 0.5}, "lowest: want 0.0"),
        (torch.zeros(1, 3, 4, 4), {"height": 30}, {}, "multiples of 28, got 30x28; fit_size"),
        (torch.zeros(1, 3, 4, 4), {"width": 0}, {}, "multiples of 28, got 28x0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("impl", ["torch", "auto"])
def test_errors_say_what_is_wanted(frames, form, options, message, impl):
    with pytest.raises(ValueError, match=message):
        want = PatchFormat(**({"height": 28, "width": 28} | form))
        reward_patches.reward_patches(frames, want, impl=impl, **options)


@pytest.mark.skipif(not BUILT, reason="not built")
def test_only_the_reference_makes_float64():
    frames, form = noise(1, 3, 28, 28), PatchFormat(28, 28, dtype=torch.float64)
    assert reward_patches.reward_patches(frames, form, impl="torch").dtype == torch.float64
    with pytest.raises(ValueError, match="want dtype float32, bfloat16 or float16 from impl='native'"):  # fmt: skip
        reward_patches.reward_patches(frames, form, impl="native")


@pytest.mark.skipif(not BUILT, reason="not built")
def test_a_tile_that_no_gpu_could_hold_is_refused():
    with pytest.raises(ValueError, match="cannot hold a tile of frames that shrink so much"):
        run(noise(1, 3, 500, 500), PatchFormat(28, 28), "emulated")


def test_sizes_follow_the_rule():
    assert fit_size(480, 832, 200_704, 200_704) == (336, 588)
    assert fit_size(28, 56, 1, 10**6) == (28, 56)
    with pytest.raises(ValueError, match="want sides of at least 1 and at most 1:200, got 1x201"):
        fit_size(1, 201, 1, 10**6)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chunk_at_full_size_is_made_without_waiting(dtype, impl):
    frames = noise(12, 3, 480, 832, dtype=dtype, lowest=-1.0).cuda()
    for video in (False, True):
        form = PatchFormat(336, 588, video=video)
        reward_patches.reward_patches(frames, form, -1.0, impl)
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = reward_patches.reward_patches(frames, form, -1.0, impl)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(got, reward_patches_reference(frames, form, -1.0))


def test_frames_are_quantised_as_the_encoder_quantises_them():
    frames = noise(1, 3, 28, 28, lowest=-1.0)
    form = PatchFormat(28, 28, dtype=torch.float32, mean=(0.0,) * 3, std=(1.0,) * 3)
    packed = frame_pack.rgb24_reference(frames, -1.0).permute(0, 3, 1, 2).contiguous()
    assert torch.equal(
        reward_patches_reference(frames, form, -1.0), reward_patches_reference(packed, form)
    )
