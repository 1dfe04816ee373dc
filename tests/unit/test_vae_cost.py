"""What decoding is said to cost is what torch counts and allocates."""

from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from runtime.generators.vae import WAN21, VAEConfig, WanVAE
from runtime.generators.vae_cost import decoder_bytes, decoder_flops, rows_at_once

SMALL = VAEConfig(latent_channels=4, base_dim=16)
CONFIGS = {
    "as-published": SMALL,
    "shallow": replace(SMALL, res_blocks=1, dim_mult=(1, 2, 4, 2), mid_attention=False),
    "embedded-like": VAEConfig(
        latent_channels=12,
        base_dim=16,
        decoder_base_dim=32,
        dim_mult=(1, 2, 3),
        res_blocks=1,
        space_downsample=(True, False),
        time_downsample=(True, True),
        mid_attention=False,
        patch=6,
    ),
}


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return made


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and somebody still holds, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            StorageWeakRef(value.untyped_storage())
            for value in tree_iter((args, kwargs))
            if isinstance(value, torch.Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference not in given:
                    self.held[reference] = storage.nbytes()
        self.held = {ref: size for ref, size in self.held.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.held.values()))
        return made


def on_meta(config: VAEConfig) -> WanVAE:
    with torch.device("meta"):
        vae = WanVAE(config).eval()
    vae.latent_mean, vae.latent_std = vae.latent_mean.to("meta"), vae.latent_std.to("meta")
    return vae


def counted_flops(config: VAEConfig, shape: tuple[int, ...], fold: bool) -> int:
    vae = on_meta(config)
    vae.prepare_(fold=fold)
    latents = torch.empty(shape, device="meta")
    _, *caches = vae.step(latents, None)
    with FlopCounterMode(display=False) as counter:
        vae.step(latents, tuple(caches))
    return counter.get_total_flops()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("fold", [False, True], ids=["unfolded", "folded"])
def test_the_formula_counts_what_torch_counts(config, fold):
    channels = config.latent_channels
    got = decoder_flops(config, 2, 5, 7, latents=4, fold=fold)
    assert got == counted_flops(config, (2, 4, channels, 5, 7), fold)


def test_the_published_decoder_at_full_size():
    counted = counted_flops(WAN21, (1, 3, 16, 60, 104), fold=False)
    assert decoder_flops(WAN21, 1, 60, 104) == counted
    assert decoder_flops(WAN21, 4, 60, 104) == 4 * counted


def measured_bytes(vae: WanVAE, shape: tuple[int, ...], tile: int) -> tuple[int, int]:
    latents = torch.zeros(shape, dtype=vae.conv2.weight.dtype)
    _, *caches = vae.step(latents, None)
    with LiveBytes() as live:
        vae.step(latents, tuple(caches), tile)
    return sum(cache.nbytes for cache in caches) // shape[0], live.peak


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("rows", "latents"), [(1, 3), (2, 1)], ids=str)
@pytest.mark.parametrize("tile", [0, 3])
def test_the_bytes_are_those_that_torch_allocates(config, rows, latents, tile):
    vae = WanVAE(config).eval()
    vae.prepare_()
    state, peak = measured_bytes(vae, (rows, latents, config.latent_channels, 5, 7), tile)
    said_state, said_peak = decoder_bytes(config, rows, 5, 7, torch.float32, latents, tile)
    assert said_state == state
    # What is not counted: each norm's one number per position, and the small copies of cut features.
    assert said_peak <= peak <= 1.02 * said_peak


def test_half_the_width_is_half_the_bytes():
    whole = decoder_bytes(WAN21, 4, 60, 104, torch.float32)
    half = decoder_bytes(WAN21, 4, 60, 104, torch.bfloat16)
    assert (2 * half[0], 2 * half[1]) == whole


def test_tiles_and_fewer_frames_at_a_time_take_less():
    whole = decoder_bytes(WAN21, 4, 60, 104, torch.bfloat16)
    by_tile = decoder_bytes(WAN21, 4, 60, 104, torch.bfloat16, tile=32)
    by_frame = decoder_bytes(WAN21, 4, 60, 104, torch.bfloat16, latents=1)
    assert by_tile[0] == by_frame[0] == whole[0]
    assert by_tile[1] < 0.5 * whole[1]
    assert by_frame[1] < 0.6 * whole[1]  # new state and pixels stay, activations shrink to a third


@pytest.mark.parametrize("latents", [1, 3])
def test_rows_at_once_keep_every_tensor_within_32_bit_indices(latents):
    """At full size and three latents, the four candidates of the default search just fit."""
    vae, rows = on_meta(WAN21), rows_at_once(WAN21, 60, 104, latents)
    assert rows == {1: 9, 3: 4}[latents]
    vae.prepare_()
    for count in (rows, rows + 1):
        chunk = torch.empty(count, latents, 16, 60, 104, device="meta")
        _, *caches = vae.step(chunk, None)
        with Largest() as largest:
            vae.step(chunk, tuple(caches))
        assert (largest.elements < 2**31) == (count == rows)
