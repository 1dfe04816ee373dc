"""Packed frames: a table made by hand, odd sizes, the same bytes in every implementation."""

import pytest
import torch

from runtime.kernels import frame_pack, native, triton_lang

BUILT = native.find()[0] is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_CUDA = BUILT and native.extension().CUDA and DEVICE == "cuda"
IMPLS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="not built")),
    pytest.param(
        "triton", marks=pytest.mark.skipif(not triton_lang.AVAILABLE, reason="not installed")
    ),
    *(["cuda"] if HAS_CUDA else []),
]
FAST = IMPLS[1:]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(op: str, pixels: torch.Tensor, impl: str, **options) -> torch.Tensor:
    """``op`` where ``impl`` runs, the result on the CPU."""
    if impl == "triton" and triton_lang.INTERPRETED and pixels.dtype == torch.bfloat16:
        pytest.skip("the interpreter cannot read bfloat16")
    if impl in ("triton", "cuda"):
        pixels = pixels.to(DEVICE)
    return getattr(frame_pack, op)(pixels, impl=impl, **options).cpu()


COLOURS = {  # name: r, g, b, then Y, Cb, Cr of BT.709 in limited range, by hand
    "black": (0, 0, 0, 16, 128, 128),
    "white": (255, 255, 255, 235, 128, 128),
    "red": (255, 0, 0, 63, 102, 240),
    "green": (0, 255, 0, 173, 42, 26),
    "blue": (0, 0, 255, 32, 240, 118),
    "grey": (128, 128, 128, 126, 128, 128),
}


def flat(colour: str, height: int, width: int) -> torch.Tensor:
    """One frame of one colour, uint8 [1, H, W, 3]."""
    return (
        torch.tensor(COLOURS[colour][:3], dtype=torch.uint8)
        .expand(1, height, width, 3)
        .contiguous()
    )


def some(
    frames: int,
    height: int,
    width: int,
    lowest: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Noise in [``lowest``, 1] and a little outside."""
    torch.manual_seed(height * width)
    return (torch.rand(frames, 3, height, width) * (1.2 - 1.2 * lowest) + lowest * 1.1 - 0.1).to(
        dtype
    )


def planar(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb.float() / 255).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("colour", COLOURS)
def test_colours_match_the_table(colour, impl):
    rgb, (y, cb, cr) = flat(colour, 4, 6), COLOURS[colour][3:]
    expected = torch.tensor([y] * 24 + [cb] * 6 + [cr] * 6, dtype=torch.uint8)[None]
    signed = planar(rgb) * 2 - 1
    assert torch.equal(run("rgb24", planar(rgb), impl), rgb)
    assert torch.equal(run("yuv420", planar(rgb), impl), expected)
    assert torch.equal(run("rgb24", signed, impl, lowest=-1.0), rgb)
    assert torch.equal(run("yuv420", signed, impl, lowest=-1.0), expected)


@pytest.mark.parametrize("impl", IMPLS[:2])
@pytest.mark.parametrize("colour", COLOURS)
def test_bytes_match_the_table(colour, impl):
    rgb, (y, cb, cr) = flat(colour, 4, 6), COLOURS[colour][3:]
    expected = torch.tensor([y] * 24 + [cb] * 6 + [cr] * 6, dtype=torch.uint8)[None]
    assert torch.equal(frame_pack.rgb24_to_yuv420(rgb, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_planes_lie_in_order_and_chroma_is_the_mean_of_its_block(impl):
    rgb = torch.cat(
        [flat("red", 2, 2), flat("grey", 2, 2)], 2
    )  # [1, 2, 4, 3]: two blocks side by side
    rgb[0, 0, 0] = torch.tensor(
        [0, 0, 255], dtype=torch.uint8
    )  # one blue pixel among three red ones
    got = run("yuv420", planar(rgb), impl)[0].tolist()
    assert got[:8] == [32, 63, 126, 126, 63, 63, 126, 126]
    # r = 3/4, b = 1/4, so L = 0.1775, Cb = 128 + 224 * 0.0725 / 1.8556 and so on.
    assert got[8:] == [137, 128, 209, 128]


@pytest.mark.parametrize("impl", IMPLS)
def test_every_byte_survives_the_way_through_floats(impl):
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3).contiguous()
    assert torch.equal(run("rgb24", planar(ramp), impl), ramp)
    assert torch.equal(run("rgb24", planar(ramp) * 2 - 1, impl, lowest=-1.0), ramp)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_is_half_up_and_bad_values_are_clamped(dtype, impl):
    inf, nan, tiny = float("inf"), float("nan"), 6e-8
    values = torch.tensor(
        [0.0, 0.5, 1.0, -0.25, 2.0, inf, -inf, nan, tiny, -tiny, -nan], dtype=dtype
    )
    frames = values.expand(1, 3, 1, -1).contiguous()
    got = run("rgb24", frames, impl)[0, 0, :, 1].tolist()
    assert got == [0, 128, 255, 0, 255, 255, 0, 0, 0, 0, 0]
    signed = run("rgb24", frames, impl, lowest=-1.0)[0, 0, :, 1].tolist()
    assert signed == [128, 191, 255, 96, 255, 255, 0, 0, 128, 127, 0]


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("lowest", [0.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 1, 1), (2, 3, 5), (3, 17, 1), (1, 63, 131), (2, 48, 80)]
)
def test_rgb_equals_torch(frames, height, width, dtype, lowest, impl):
    pixels = some(frames, height, width, lowest, dtype)
    got = run("rgb24", pixels, impl, lowest=lowest)
    assert torch.equal(got, frame_pack.rgb24_reference(pixels, lowest))


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("lowest", [0.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 2, 2), (2, 6, 10), (3, 34, 2), (1, 62, 130), (2, 40, 96)]
)
def test_yuv_equals_torch(frames, height, width, dtype, lowest, impl):
    pixels = some(frames, height, width, lowest, dtype)
    got = run("yuv420", pixels, impl, lowest=lowest)
    assert torch.equal(got, frame_pack.yuv420_reference(pixels, lowest))


@pytest.mark.skipif(not BUILT, reason="not built")
def test_native_bytes_to_yuv_equal_torch():
    rgb = frame_pack.rgb24_reference(some(2, 62, 130))
    got = frame_pack.rgb24_to_yuv420(rgb, impl="native")
    assert torch.equal(got, frame_pack.rgb24_to_yuv420_reference(rgb))


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of a half precision dtype, in every colour."""
    bits = torch.arange(2**16).to(torch.int32).to(torch.int16)
    return bits.view(dtype).view(1, 1, 256, 256).expand(1, 3, 256, 256).contiguous()


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's, at a signalling NaN
@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("lowest", [0.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_half_precision_number_gives_the_same_byte(dtype, lowest, impl):
    pixels = every_number(dtype)
    got = run("rgb24", pixels, impl, lowest=lowest)
    assert torch.equal(got, frame_pack.rgb24_reference(pixels, lowest))


@pytest.mark.skipif(not BUILT, reason="not built")
@pytest.mark.parametrize("width", [10, 16])
def test_native_writes_nothing_outside_its_frames(width):
    frames = some(2, 6, width)
    for op, size in (("rgb24", 36 * width), ("yuv420", 18 * width)):
        expected = getattr(frame_pack, f"{op}_reference")(frames).flatten()
        for name, threads in ((op, (3,)), (f"{op}_emulated", ())):
            guarded = torch.full((size + 32,), 77, dtype=torch.uint8)
            getattr(native.extension(), name)(
                guarded[16:].data_ptr(), frames.data_ptr(), "float32", (2, 6, width), 0.0, *threads
            )
            assert (guarded[:16] == 77).all() and (guarded[-16:] == 77).all()
            assert torch.equal(guarded[16:-16], expected)


@pytest.mark.skipif(not BUILT, reason="not built")
def test_threads_do_not_change_the_bytes(monkeypatch):
    frames = some(3, 254, 322)
    for op in ("rgb24", "yuv420"):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        once = run(op, frames, "native")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert torch.equal(run(op, frames, "native"), once)


@pytest.mark.parametrize("impl", IMPLS)
def test_no_frames_pack_to_nothing(impl):
    assert run("rgb24", torch.rand(0, 3, 2, 2), impl).shape == (0, 2, 2, 3)
    assert run("yuv420", torch.rand(0, 3, 2, 2), impl).shape == (0, 6)


@pytest.mark.parametrize("impl", IMPLS[:2])
@pytest.mark.parametrize(
    ("op", "pixels", "message"),
    [
        ("rgb24", torch.zeros(3, 4, 4), r"frames: want shape \[T, 3, H, W\], got \[3, 4, 4\]"),
        (
            "rgb24",
            torch.zeros(1, 4, 4, 3),
            r"frames: want shape \[T, 3, H, W\], got \[1, 4, 4, 3\]",
        ),
        (
            "yuv420",
            torch.zeros(1, 3, 4, 4).double(),
            "frames: want dtype torch.bfloat16, torch.float16, torch.float32, got torch.float64",
        ),
        (
            "rgb24",
            torch.zeros(1, 4, 4, 3).permute(0, 3, 1, 2),
            "frames: want a contiguous tensor, got strides",
        ),
        (
            "yuv420",
            torch.zeros(1, 3, 5, 4),
            "yuv420: want even height and width, got 5x4; pad by one",
        ),
        ("yuv420", torch.zeros(1, 3, 4, 7), "yuv420: want even height and width, got 4x7"),
        (
            "rgb24_to_yuv420",
            torch.zeros(1, 4, 4, 3),
            "rgb: want dtype torch.uint8, got torch.float32",
        ),
        (
            "rgb24_to_yuv420",
            torch.zeros(1, 3, 4, 4),
            r"rgb: want shape \[T, H, W, 3\], got \[1, 3, 4, 4\]",
        ),
        ("rgb24_to_yuv420", torch.zeros(1, 3, 4, 3, dtype=torch.uint8), "got 3x4"),
    ],
    ids=str,
)
def test_errors_say_what_is_wanted(op, pixels, message, impl):
    with pytest.raises(ValueError, match=message):
        getattr(frame_pack, op)(pixels, impl=impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_range_is_one_of_two(impl):
    with pytest.raises(ValueError, match=r"lowest: want 0.0 .* or -1.0 .*, got -0.5"):
        run("rgb24", torch.zeros(1, 3, 2, 2), impl, lowest=-0.5)


def test_a_name_is_never_replaced_in_silence(monkeypatch):
    monkeypatch.setattr(native, "find", lambda: (None, "is not built"))
    assert frame_pack.implementation("auto") == "torch"
    with pytest.raises(ValueError, match="impl='cuda' runs on a GPU, got device cpu"):
        frame_pack.rgb24(torch.zeros(1, 3, 2, 2), impl="cuda")
    with pytest.raises(RuntimeError, match="runtime._C is not built"):
        frame_pack.rgb24(torch.zeros(1, 3, 2, 2), impl="native")


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chunk_at_full_size_is_packed_without_waiting(dtype, impl):
    frames = some(12, 480, 832, -1.0, dtype).cuda()
    for op in ("rgb24", "yuv420"):
        call = getattr(frame_pack, op)
        call(frames, impl=impl, lowest=-1.0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = call(frames, impl=impl, lowest=-1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(got, getattr(frame_pack, f"{op}_reference")(frames, -1.0))
