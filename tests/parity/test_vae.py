"""The autoencoder against diffusers' independent implementation, with one set of random weights."""

import pytest
import torch

from runtime.generators.vae import WAN21, VAEConfig, WanVAE
from runtime.generators.vae_keys import from_diffusers_keys, to_diffusers_keys

diffusers = pytest.importorskip("diffusers")

TINY = {"latent_channels": 4, "base_dim": 8, "dim_mult": (1, 2, 2, 4)}
SHORT = {"space_downsample": (True, True), "time_downsample": (True, True), "dim_mult": (1, 2, 4)}
CONFIGS = {
    "as-wan": VAEConfig(**TINY),
    "wider-decoder": VAEConfig(**TINY | SHORT, decoder_base_dim=12, res_blocks=1),
    "patched": VAEConfig(**TINY, patch=2),
}


def theirs_like(config: VAEConfig) -> torch.nn.Module:
    """diffusers' class at the sizes of ``config``."""
    return diffusers.AutoencoderKLWan(
        base_dim=config.base_dim,
        decoder_base_dim=config.decoder_base_dim,
        z_dim=config.latent_channels,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.res_blocks,
        temperal_downsample=list(config.time_downsample),
        in_channels=3 * config.patch**2,
        out_channels=3 * config.patch**2,
        patch_size=config.patch if config.patch > 1 else None,
    ).eval()


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """Moves every weight off its ones and zeros, so that a swapped norm or bias shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return module.eval()


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return (got - want).abs().max().item()


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> VAEConfig:
    torch.manual_seed(0)
    return CONFIGS[request.param]


@pytest.fixture
def ours(config: VAEConfig) -> WanVAE:
    return scrambled(WanVAE(config))


@pytest.fixture
def theirs(config: VAEConfig, ours: WanVAE) -> torch.nn.Module:
    model = theirs_like(config)
    model.load_state_dict(to_diffusers_keys(ours.state_dict(), config.res_blocks))
    return model


@pytest.mark.parametrize("latent_frames", [1, 2, 3, 5])
@torch.no_grad()
def test_encode_matches_diffusers(config, ours, theirs, latent_frames):
    size = 2 * config.space_stride
    frames = torch.rand(2, 1 + 4 * (latent_frames - 1), 3, size, size + config.space_stride)
    posterior = theirs.encode(frames.transpose(1, 2) * 2 - 1).latent_dist
    mean, logvar = ours.moments(frames)
    assert difference(mean, posterior.mean.transpose(1, 2)) < 1e-5
    assert difference(logvar, posterior.logvar.transpose(1, 2)) < 1e-5
    assert difference(ours.encode(frames), posterior.mean.transpose(1, 2)) < 1e-5


@pytest.mark.parametrize("latent_frames", [1, 2, 3, 7])
@torch.no_grad()
def test_decode_matches_diffusers(ours, theirs, latent_frames):
    latents = torch.randn(2, latent_frames, 4, 3, 2)
    want = theirs.decode(latents.transpose(1, 2)).sample.transpose(1, 2)
    assert want.abs().lt(1).double().mean() > 0.5, "the clamp hides what is compared"
    assert difference(ours.decode_fresh(latents) * 2 - 1, want) < 1e-5
    assert difference(ours.decode_train(latents).clamp(-1, 1), want) < 1e-5


@torch.no_grad()
def test_weights_named_by_diffusers_load_into_ours(config):
    theirs = scrambled(theirs_like(config))
    ours = WanVAE(config)
    ours.load_state_dict(from_diffusers_keys(theirs.state_dict(), config.res_blocks))
    latents = torch.randn(1, 2, 4, 2, 2)
    want = theirs.decode(latents.transpose(1, 2)).sample.transpose(1, 2)
    assert difference(ours.decode_fresh(latents) * 2 - 1, want) < 1e-5


def test_published_sizes_and_names():
    with torch.device("meta"):
        ours, theirs = WanVAE(WAN21), theirs_like(WAN21)
    state = ours.state_dict()
    assert sum(weight.numel() for weight in state.values()) == 126_892_531
    shapes = {key: weight.shape for key, weight in to_diffusers_keys(state).items()}
    assert shapes == {key: weight.shape for key, weight in theirs.state_dict().items()}
    assert list(from_diffusers_keys(to_diffusers_keys(state))) == list(state)
    known = {
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.bias": (16,),
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.0.residual.0.gamma": (96, 1, 1, 1),
        "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
        "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "encoder.middle.1.norm.gamma": (384, 1, 1),
        "encoder.head.2.weight": (32, 384, 3, 3, 3),
        "decoder.conv1.weight": (384, 16, 3, 3, 3),
        "decoder.middle.2.residual.6.bias": (384,),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.14.residual.2.weight": (96, 96, 3, 3, 3),
        "decoder.head.0.gamma": (96, 1, 1, 1),
    }
    assert {key: tuple(state[key].shape) for key in known} == known


def test_published_statistics_survive_the_meta_device():
    with torch.device("meta"):
        ours, theirs = WanVAE(WAN21), theirs_like(WAN21)
    assert ours.latent_mean.flatten().tolist() == pytest.approx(theirs.config.latents_mean)
    assert ours.latent_std.flatten().tolist() == pytest.approx(theirs.config.latents_std)
