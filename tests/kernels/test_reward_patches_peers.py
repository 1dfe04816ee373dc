"""Against what the published models are fed with: Pillow's pixels and the Qwen2-VL processor's patches."""

import importlib
import random

import pytest
import torch

from runtime.kernels import bicubic
from runtime.kernels.reward_patches import PatchFormat, fit_size, reward_patches_reference

image = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")


def pixels(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """[H, W, 3] uint8; every third picture is black and white only, where clipping matters."""
    torch.manual_seed(seed)
    noise = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    return noise if seed % 3 else (noise > 127) * noise.new_tensor(255)


def pillow(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Rows first, then columns: since version 13 Pillow itself turns the order where height shrinks most."""
    resized = image.fromarray(picture.numpy())
    for size in ((width, resized.height), (width, height)):
        resized = resized.resize(size, image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


@pytest.mark.parametrize("seed", range(40))
def test_random_sizes_are_resized_to_the_byte(seed):
    draw = random.Random(seed)
    height, width, *resized = (draw.randint(1, 200) for _ in range(4))
    picture = pixels(height, width, seed)
    got = bicubic.resize_reference(picture.permute(2, 0, 1), *resized)
    assert torch.equal(got, pillow(picture, *resized))


def test_the_real_size_is_resized_to_the_byte_in_one_call():
    picture = pixels(480, 832)
    whole = image.fromarray(picture.numpy()).resize((588, 336), image.Resampling.BICUBIC)
    got = bicubic.resize_reference(picture.permute(2, 0, 1), 336, 588)
    assert np.array_equal(got.permute(1, 2, 0).numpy(), np.array(whole))


def processor_module():
    """The processor without torchvision, under its name before and since transformers 5.2x."""
    for name in ("image_processing_pil_qwen2_vl", "image_processing_qwen2_vl"):
        try:
            return importlib.import_module(f"transformers.models.qwen2_vl.{name}")
        except ImportError:
            continue
    return pytest.skip(
        "transformers has no Qwen2-VL image processor that works without torchvision"
    )


def test_sizes_are_the_processors():
    rule = processor_module().smart_resize
    draw = random.Random(0)
    for _ in range(2000):
        height, width = draw.randint(14, 1200), draw.randint(14, 1200)
        low = draw.randint(1, 400) * 784
        high = low + draw.randint(0, 400) * 784
        if max(height, width) <= 200 * min(height, width):
            expected = rule(height, width, 28, low, high)
            assert fit_size(height, width, low, high) == tuple(expected)


@pytest.mark.parametrize(("height", "width"), [(480, 832), (75, 150), (112, 84), (50, 300)])
def test_an_image_becomes_the_processors_patches(height, width):
    module = processor_module()
    kind = getattr(module, "Qwen2VLImageProcessorPil", None) or module.Qwen2VLImageProcessor
    low, high = 28 * 28 * 4, 200_704
    theirs = kind(min_pixels=low, max_pixels=high)
    picture = pixels(height, width, 1)
    expected = theirs(images=[image.fromarray(picture.numpy())], return_tensors="pt")
    size = fit_size(height, width, low, high)
    frames = picture.permute(2, 0, 1)[None].contiguous()
    got = reward_patches_reference(frames, PatchFormat(*size, dtype=torch.float32))
    assert expected["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]]
    # The same pixels, since one byte more or less is a step of 0.014; only the last operations round otherwise.
    allowed = 2 * torch.finfo(torch.float32).eps * got.abs().max()
    assert (got - expected["pixel_values"]).abs().max() <= allowed
