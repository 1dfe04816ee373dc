"""Packed frames: a table made by hand, odd sizes, the same bytes in every implementation."""

import pytest
import torch

from runtime.kernels import frame_pack, native

BUILT = native.find()[0] is not None
IMPLS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not BUILT, reason="not built"))]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

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


def planar(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb.float() / 255).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("colour", COLOURS)
def test_colours_match_the_table(colour, impl):
    rgb, (y, cb, cr) = flat(colour, 4, 6), COLOURS[colour][3:]
    expected = torch.tensor([y] * 24 + [cb] * 6 + [cr] * 6, dtype=torch.uint8)[None]
    assert torch.equal(frame_pack.rgb24(planar(rgb), impl=impl), rgb)
    assert torch.equal(frame_pack.yuv420(planar(rgb), impl=impl), expected)
    assert torch.equal(frame_pack.rgb24_to_yuv420(rgb, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_planes_lie_in_order_and_chroma_is_the_mean_of_its_block(impl):
    rgb = torch.cat(
        [flat("red", 2, 2), flat("grey", 2, 2)], 2
    )  # [1, 2, 4, 3]: two blocks side by side
    rgb[0, 0, 0] = torch.tensor(
        [0, 0, 255], dtype=torch.uint8
    )  # one blue pixel among three red ones
    got = frame_pack.rgb24_to_yuv420(rgb, impl=impl)[0].tolist()
    assert got[:8] == [32, 63, 126, 126, 63, 63, 126, 126]
    # r = 3/4, b = 1/4, so L = 0.1775, Cb = 128 + 224 * 0.0725 / 1.8556 and so on.
    assert got[8:] == [137, 128, 209, 128]


@pytest.mark.parametrize("impl", IMPLS)
def test_every_byte_survives_the_way_through_floats(impl):
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3).contiguous()
    assert torch.equal(frame_pack.rgb24(planar(ramp), impl=impl), ramp)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_is_half_up_and_bad_values_are_clamped(dtype, impl):
    inf, nan, tiny = float("inf"), float("nan"), 6e-8
    values = torch.tensor(
        [0.0, 0.5, 1.0, -0.25, 2.0, inf, -inf, nan, tiny, -tiny, -nan], dtype=dtype
    )
    frames = values.expand(1, 3, 1, -1).contiguous()
    got = frame_pack.rgb24(frames, impl=impl)[0, 0, :, 1].tolist()
    assert got == [0, 128, 255, 0, 255, 255, 0, 0, 0, 0, 0]


@pytest.mark.skipif(not BUILT, reason="not built")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 1, 1), (2, 3, 5), (3, 17, 1), (1, 63, 131)]
)
def test_native_rgb_equals_torch(frames, height, width, dtype):
    pixels = (torch.rand(frames, 3, height, width) * 1.2 - 0.1).to(dtype)
    assert torch.equal(frame_pack.rgb24(pixels, impl="native"), frame_pack.rgb24_reference(pixels))


@pytest.mark.skipif(not BUILT, reason="not built")
@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 2, 2), (2, 6, 10), (3, 34, 2), (1, 62, 130)]
)
def test_native_yuv_equals_torch(frames, height, width):
    pixels = torch.rand(frames, 3, height, width) * 1.2 - 0.1
    for dtype in DTYPES:
        cast = pixels.to(dtype)
        assert torch.equal(
            frame_pack.yuv420(cast, impl="native"), frame_pack.yuv420_reference(cast)
        )
    rgb = frame_pack.rgb24_reference(pixels)
    got = frame_pack.rgb24_to_yuv420(rgb, impl="native")
    assert torch.equal(got, frame_pack.rgb24_to_yuv420_reference(rgb))


@pytest.mark.skipif(not BUILT, reason="not built")
def test_native_agrees_on_every_half_precision_number():
    bits = torch.arange(2**16).to(torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        pixels = bits.view(dtype).view(1, 1, 256, 256).expand(1, 3, 256, 256).contiguous()
        assert torch.equal(
            frame_pack.rgb24(pixels, impl="native"), frame_pack.rgb24_reference(pixels)
        )


@pytest.mark.skipif(not BUILT, reason="not built")
def test_native_writes_nothing_outside_its_frames():
    frames = torch.rand(2, 3, 6, 10)
    for op, size in (("rgb24", 360), ("yuv420", 180)):
        guarded = torch.full((size + 2,), 77, dtype=torch.uint8)
        getattr(native.extension(), op)(
            guarded[1:].data_ptr(), frames.data_ptr(), "float32", (2, 6, 10), 3
        )
        assert guarded[0] == 77 and guarded[-1] == 77
        assert torch.equal(guarded[1:-1], getattr(frame_pack, f"{op}_reference")(frames).flatten())


@pytest.mark.parametrize("impl", IMPLS)
def test_no_frames_pack_to_nothing(impl):
    assert frame_pack.rgb24(torch.rand(0, 3, 2, 2), impl=impl).shape == (0, 2, 2, 3)
    assert frame_pack.yuv420(torch.rand(0, 3, 2, 2), impl=impl).shape == (0, 6)


@pytest.mark.parametrize("impl", IMPLS)
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
            "frames: want dtype float32, bfloat16, float16, got torch.float64",
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


def test_a_name_is_never_replaced_in_silence(monkeypatch):
    monkeypatch.setattr(native, "find", lambda: (None, "is not built"))
    assert frame_pack.implementation("auto") == "torch"
    with pytest.raises(RuntimeError, match="runtime._C is not built"):
        frame_pack.rgb24(torch.zeros(1, 3, 2, 2), impl="native")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gpu_packs_the_same_bytes(dtype):
    frames = (torch.rand(2, 3, 62, 130) * 1.2 - 0.1).to(dtype)
    for op in (frame_pack.rgb24, frame_pack.yuv420):
        assert torch.equal(op(frames.cuda()).cpu(), op(frames, impl="torch"))
