"""The decoder's fast ways are the plain way: laid out and folded, by tiles, and as a pure step that a graph can replay."""

from dataclasses import replace

import pytest
import torch

from runtime.generators.vae import WAN21, DecoderState, VAEConfig, WanVAE
from runtime.generators.vae_coders import halos
from runtime.generators.vae_layers import Upsample, folded_upsample

CONFIG = VAEConfig(
    latent_channels=4,
    base_dim=8,
    dim_mult=(1, 2, 2),
    res_blocks=1,
    space_downsample=(True, True),
    time_downsample=(True, True),
    latent_mean=(0.5, -0.25, 0.0, 1.0),
    latent_std=(2.0, 0.5, 1.0, 1.5),
)
CONFIGS = {
    "two-enlargings": CONFIG,
    "one-enlarging": replace(CONFIG, space_downsample=(True, False), mid_attention=False, patch=3),
    "late-enlarging": replace(CONFIG, space_downsample=(True, False)),
    "none": replace(CONFIG, space_downsample=(False, False)),
}


def build(config: VAEConfig, dtype: torch.dtype = torch.float32, prepared: bool = True) -> WanVAE:
    torch.manual_seed(0)
    vae = WanVAE(config).to(dtype).eval()
    with torch.no_grad():
        for (
            parameter
        ) in vae.parameters():  # off the ones and zeros, so that a lost gamma or bias shows
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    if prepared:
        vae.prepare_()
    return vae


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def largest_difference(left: DecoderState, right: DecoderState) -> float:
    pairs = zip(left.caches, right.caches, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("prepared", [False, True], ids=["as-built", "prepared"])
def test_the_fast_way_is_the_plain_way(config, prepared):
    plain, fast = (
        build(config, torch.float64, prepared=False),
        build(config, torch.float64, prepared),
    )
    latents = noise(2, 7, 4, 3, 2, dtype=torch.float64)
    want, state = None, None
    got, other = None, None
    for part in latents.split([1, 3, 3], dim=1):
        want, state = plain.decode_plain(part, state)
        got, other = fast.decode_next(part, other)
        assert want.min() < want.max() and got.is_contiguous()
        assert (got - want).abs().max() < 1e-12
        assert largest_difference(state, other) < 1e-11


def test_preparing_changes_no_name_and_no_value_and_lays_features_out_channels_last():
    plain, fast = build(CONFIG, prepared=False), build(CONFIG)
    before, after = plain.state_dict(), fast.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    _, state = fast.decode_next(noise(2, 3, 4, 4, 4), None)
    inner = state.caches[1:]
    assert all(c.is_contiguous(memory_format=torch.channels_last_3d) for c in inner)
    assert not any(c.is_contiguous() for c in inner)


def test_a_single_row_keeps_the_layout_and_is_the_row_of_a_batch():
    vae, latents = build(CONFIG), noise(2, 5, 4, 6, 6)
    frames, state = vae.decode_next(latents, None)
    alone, mine = vae.decode_next(latents[:1], None)
    assert all(cache.stride(1) == 1 for cache in mine.caches if cache.shape[1] > 4)
    torch.testing.assert_close(alone, frames[:1], rtol=0, atol=1e-6)
    for cache, batch in zip(mine.caches, state.caches, strict=True):
        torch.testing.assert_close(cache, batch[:1], rtol=0, atol=2e-5)


def test_a_prepared_decoder_still_trains():
    vae = build(CONFIG)
    vae.decode_train(noise(1, 3, 4, 2, 2)).square().mean().backward()
    silent = [name for name, weight in vae.decoder.named_parameters() if weight.grad is None]
    assert not silent


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 2, 1, 1)], ids=str)
def test_a_folded_enlarging_is_the_enlarging_and_its_convolution(shape):
    channels = shape[1]
    layer = Upsample(channels, (True, False)).double()
    conv = layer.resample[1]
    x = noise(*shape, dtype=torch.float64)
    folded = folded_upsample(conv.weight)
    assert folded.shape == (channels, channels // 2, 4, 4)
    got = torch.nn.functional.conv_transpose2d(x, folded, conv.bias, stride=2, padding=1)
    assert (got - layer.resample(x)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_preparing_costs_no_precision(dtype):
    """Against float64, a prepared decoder may err by at most twice what the plain one does in the same dtype."""
    exact, plain = (
        build(CONFIG, torch.float64, prepared=False),
        build(CONFIG, dtype, prepared=False),
    )
    fast = build(CONFIG, dtype, prepared=False)
    for vae in (exact, fast):
        vae.load_state_dict(plain.state_dict())
    fast.prepare_()
    latents = noise(2, 3, 4, 4, 4)
    want = exact.decode_next(latents.double(), None)[0]
    slow, quick = (v.decode_plain(latents, None)[0].double() for v in (plain, fast))
    quick = fast.decode_next(latents, None)[0].double()
    budget = 2 * (slow - want).abs().max()
    assert (quick - want).abs().max() <= max(budget, torch.finfo(dtype).eps)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tile", [2, 5, 100])
def test_tiles_put_together_are_the_picture(config, tile):
    vae = build(config, torch.float64)
    state, other = None, None
    for part in noise(1, 5, 4, 7, 12, dtype=torch.float64).split([1, 3, 1], dim=1):
        want, state = vae.decode_next(part, state)
        got, other = vae.decode_next(part, other, tile=tile)
        assert (got - want).abs().max() < 1e-12
        assert largest_difference(state, other) < 1e-11


def test_a_tile_carries_as_much_of_its_neighbours_as_its_convolutions_reach():
    """By hand, at the published depth: 1 for the head, 2 a block, 1 for an enlarging's convolution, then half."""
    config = replace(
        CONFIG,
        dim_mult=(1, 2, 2, 2),
        space_downsample=(True,) * 3,
        time_downsample=(False, True, True),
        res_blocks=2,
    )
    config = replace(config, mid_attention=False)
    layers = list(WanVAE(config).decoder.upsamples)
    first = next(i for i, layer in enumerate(layers) if isinstance(layer, Upsample))
    assert halos(layers[first:]) == [7, 12, 10, 8, 6, 10, 8, 6, 4, 7, 5, 3, 1]


def test_the_step_is_pure_and_static():
    vae = build(CONFIG)
    latents = noise(3, 3, 4, 4, 6)
    _, state = vae.decode_next(latents, None)
    inputs = (latents, *state.caches)
    before = [tensor.clone() for tensor in inputs]
    first = vae.step(latents, state.caches)
    second = vae.step(latents, tuple(first[1:]))
    again = vae.step(latents, state.caches)
    assert all(torch.equal(now, old) for now, old in zip(inputs, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], second[0])
    places = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    assert not places & {tensor.untyped_storage().data_ptr() for tensor in first}
    for old, new in zip(state.caches, first[1:], strict=True):
        assert old.shape == new.shape and old.stride() == new.stride()


def test_the_step_decides_nothing_by_values():
    """On the meta device a read of a value is an error, and a shape that depends on one has no answer."""
    vae = build(CONFIG).to("meta")
    latents = torch.empty(2, 3, 4, 4, 4, device="meta")
    vae.latent_mean, vae.latent_std = vae.latent_mean.to("meta"), vae.latent_std.to("meta")
    _, *caches = vae.step(latents, None)
    frames, *newer = vae.step(latents, tuple(caches))
    assert frames.shape == (2, 12, 3, 16, 16)
    assert [c.shape for c in caches] == [c.shape for c in newer]


def test_a_negative_tile_is_refused():
    with pytest.raises(ValueError, match=r"tile: want latent positions a side, .* got -1"):
        build(CONFIG).decode_next(noise(1, 1, 4, 2, 2), None, tile=-1)


@pytest.mark.gpu
@torch.no_grad()
def test_the_step_never_waits_for_the_gpu():
    vae = build(CONFIG).cuda()
    latents = noise(2, 3, 4, 8, 8).cuda()
    _, state = vae.decode_next(latents, None)
    held = [tensor.clone() for tensor in (latents, *state.caches)]
    for _ in range(2):
        vae.step(held[0], tuple(held[1:]))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        vae.step(held[0], tuple(held[1:]))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    replay = torch.cuda.make_graphed_callables
    assert callable(replay)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prepared_on_a_gpu_is_plain_on_the_cpu(dtype):
    plain, fast = build(CONFIG, torch.float64, prepared=False), build(CONFIG, dtype, prepared=False)
    fast.load_state_dict(plain.state_dict())
    slow = build(CONFIG, dtype, prepared=False).cuda()
    slow.load_state_dict(plain.state_dict())
    fast.cuda().prepare_()
    latents = noise(2, 3, 4, 8, 8)
    want, state = plain.decode_plain(latents.double(), None)
    got, _ = fast.decode_next(latents.cuda(), None)
    usual, _ = slow.decode_plain(latents.cuda(), None)
    budget = 2 * (usual.double().cpu() - want).abs().max()
    assert (got.double().cpu() - want).abs().max() <= max(budget, torch.finfo(dtype).eps)


def test_published_sizes_have_the_expected_state():
    with torch.device("meta"):
        vae = WanVAE(WAN21)
    vae.latent_mean, vae.latent_std = vae.latent_mean.to("meta"), vae.latent_std.to("meta")
    frames, *caches = vae.step(torch.empty(1, 3, 16, 60, 104, device="meta"), None)
    assert frames.shape == (1, 9, 3, 480, 832)
    assert len(caches) == 32
