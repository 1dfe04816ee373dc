"""A video decoded piece by piece is the video decoded whole, and a state is a value."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from runtime.generators.vae import WAN21, DecoderState, VAEConfig, WanVAE

TINY = VAEConfig(
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
    "plain": TINY,
    "time-only-level": replace(TINY, space_downsample=(True, False), mid_attention=False, patch=3),
    "space-only-level": replace(TINY, time_downsample=(False, True)),
    "level-kept-as-is": replace(
        TINY, space_downsample=(False, True), time_downsample=(False, True)
    ),
    "one-level": replace(TINY, dim_mult=(1,), space_downsample=(), time_downsample=()),
}
SPLITS = [[7], [1, 6], [6, 1], [3, 3, 1], [2, 1, 4], [1] * 7]


@pytest.fixture(params=CONFIGS)
def vae(request: pytest.FixtureRequest) -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(CONFIGS[request.param]).double()


@pytest.fixture
def plain() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(TINY)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def stream(vae: WanVAE, latents: torch.Tensor, split: list[int]) -> list[torch.Tensor]:
    """The frames of each piece, decoded in order."""
    pieces, state = [], None
    for part in latents.split(split, dim=1):
        frames, state = vae.decode_next(part, state)
        pieces.append(frames)
    return pieces


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_any_split_decodes_to_the_same_video(vae, split):
    latents = noise(2, 7, 4, 2, 3, dtype=torch.float64)
    whole = vae.decode_fresh(latents)
    got = torch.cat(stream(vae, latents, split), dim=1)
    assert got.shape == whole.shape
    assert (got - whole).abs().max() < 1e-12


def test_any_piece_encodes_to_the_same_latents(vae):
    stride = vae.config.space_stride
    frames = noise(2, 1 + 4 * vae.config.time_stride, 3, stride, 2 * stride).double()
    mean, _ = vae.moments(frames)
    whole = (mean - vae.latent_mean) / vae.latent_std
    assert whole.shape == (2, 5, 4, 1, 2)
    for piece in (1, 2, 3, 5, 9):
        assert (vae.encode(frames, piece=piece) - whole).abs().max() < 1e-12


def test_training_sees_the_shown_video(vae):
    latents = noise(2, 4, 4, 2, 2, dtype=torch.float64)
    trained = vae.decode_train(latents)
    assert trained.requires_grad
    assert ((trained.clamp(-1, 1) + 1) / 2 - vae.decode_fresh(latents)).abs().max() < 1e-12


def test_gradients_reach_every_weight(vae):
    stride = vae.config.space_stride
    frames = noise(1, 1 + 2 * vae.config.time_stride, 3, 2 * stride, 2 * stride).double()
    mean, logvar = vae.moments(frames)
    (vae.decode_train(mean).square().mean() + logvar.square().mean()).backward()
    silent = [name for name, weight in vae.named_parameters() if weight.grad is None]
    assert not silent


def test_frame_counts_and_sizes(vae):
    r, s = vae.config.time_stride, vae.config.space_stride
    latents = noise(1, 4, 4, 2, 1, dtype=torch.float64)
    counts = [frames.shape[1] for frames in stream(vae, latents, [1, 2, 1])]
    assert counts == [1, 2 * r, r]
    fresh = vae.decode_fresh(latents)
    assert fresh.shape == (1, 1 + 3 * r, 3, 2 * s, s)
    assert fresh.is_contiguous() and fresh.min() >= 0 and fresh.max() <= 1
    assert vae.encode(fresh).shape == latents.shape


def test_same_pieces_give_the_same_bits(plain):
    latents = noise(2, 8, 4, 2, 2)
    assert torch.equal(
        torch.cat(stream(plain, latents, [3, 3, 2]), dim=1), plain.decode_fresh(latents)
    )


def test_a_chunk_alone_is_not_the_chunk_of_the_video(plain):
    """Decoded from an empty state, a later chunk of 3 latents gives 9 other frames, not its 12."""
    latents = noise(1, 6, 4, 2, 2)
    _, streamed = stream(plain, latents, [3, 3])
    alone = plain.decode_fresh(latents[:, 3:])
    assert (streamed.shape[1], alone.shape[1]) == (12, 9)
    assert (streamed[:, -9:] - alone).abs().max() > 1e-3


def test_siblings_decode_from_one_untouched_state(plain):
    latents = noise(1, 9, 4, 2, 2)
    _, state = plain.decode_next(latents[:, :3], None)
    before = [cache.clone() for cache in state.caches]
    left, _ = plain.decode_next(latents[:, 3:6], state)
    right, _ = plain.decode_next(latents[:, 6:], state)
    again, _ = plain.decode_next(latents[:, 3:6], state)
    assert torch.equal(left, again) and not torch.equal(left, right)
    assert all(torch.equal(cache, old) for cache, old in zip(state.caches, before, strict=True))
    with pytest.raises(FrozenInstanceError):
        state.caches = ()


def test_rows_of_a_state_are_the_videos_they_came_from(plain):
    plain.double()
    first, later = noise(3, 2, 4, 2, 2).double(), noise(4, 3, 4, 2, 2).double()
    _, state = plain.decode_next(first, None)
    got, _ = plain.decode_next(later, state.rows([2, 0, 0, -1]))
    for row, parent in enumerate([2, 0, 0, 2]):
        _, alone = plain.decode_next(first[parent : parent + 1], None)
        want, _ = plain.decode_next(later[row : row + 1], alone)
        assert (got[row] - want[0]).abs().max() < 1e-12


def test_stack_undoes_rows_even_at_different_ages(plain):
    latents = noise(1, 5, 4, 2, 2)
    _, young = plain.decode_next(latents[:, :1], None)
    _, old = plain.decode_next(latents, None)
    both = DecoderState.stack([young, old])
    assert both.batch == 2 and both.nbytes == young.nbytes + old.nbytes
    for row, state in enumerate([young, old]):
        pairs = zip(both.rows([row]).caches, state.caches, strict=True)
        assert all(torch.equal(got, want) for got, want in pairs)
    assert both.rows([0, 1]) is both
    assert DecoderState.stack([young]) is young


def test_a_state_holds_only_its_own_bytes(plain):
    _, state = plain.decode_next(noise(1, 5, 4, 2, 2), None)
    stored = sum(cache.untyped_storage().nbytes() for cache in state.rows([0, 0]).caches)
    assert stored == 2 * state.nbytes
    assert sum(cache.untyped_storage().nbytes() for cache in state.caches) == state.nbytes


def test_half_precision_stays_half(plain):
    frames, state = plain.bfloat16().decode_next(noise(1, 2, 4, 2, 2), None)
    assert frames.dtype == torch.bfloat16
    assert {cache.dtype for cache in state.caches} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"base_dim": -8}, r"vae.base_dim: want at least 1, got -8"),
        ({"patch": 0}, r"vae.patch: want at least 1, got 0"),
        ({"dim_mult": ()}, r"vae.dim_mult: want one number >= 1 per level, got \(\)"),
        ({"dim_mult": (1, -2, 2)}, r"vae.dim_mult: want one number >= 1 per level"),
        ({"time_downsample": (True,)}, r"vae.time_downsample: want 2 entries, .* got 1"),
        ({"latent_mean": (0.0,)}, r"vae.latent_mean: want none or 4 values, .* got 1"),
        ({"latent_std": (1.0, 0.0, 1.0, 1.0)}, r"vae.latent_std: want positive values"),
        (
            {"decoder_base_dim": 5, "dim_mult": (1, 1, 2)},
            r"want even decoder widths to halve, got 5",
        ),
    ],
    ids=str,
)
def test_config_says_what_it_wants(change, text):
    with pytest.raises(ValueError, match=text):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 6, 3, 8, 8), r"frames: want 1 \+ 4 \* k frames, got 6"),
        ((1, 0, 3, 8, 8), r"frames: want 1 \+ 4 \* k frames, got 0"),
        (
            (1, 5, 4, 8, 8),
            r"frames: want \[B, frames, 3, H, W\] of a float dtype .* \[1, 5, 4, 8, 8\]",
        ),
        ((5, 3, 8, 8), r"frames: want \[B, frames, 3, H, W\]"),
        ((1, 5, 3, 8, 10), r"frames: want H and W multiples of 4, got 8 x 10"),
        ((1, 5, 3, 0, 8), r"frames: want H and W multiples of 4, got 0 x 8"),
    ],
    ids=str,
)
def test_encode_says_what_it_wants(plain, shape, text):
    for encode in (plain.encode, plain.moments):
        with pytest.raises(ValueError, match=text):
            encode(torch.zeros(shape))


def test_decode_says_what_it_wants(plain):
    with pytest.raises(
        ValueError, match=r"latents: want \[B, T, 4, h, w\] .* got \[1, 2, 5, 2, 2\]"
    ):
        plain.decode_fresh(torch.zeros(1, 2, 5, 2, 2))
    with pytest.raises(ValueError, match=r"latents: want .* float dtype, got .* torch.int64"):
        plain.decode_train(torch.zeros(1, 2, 4, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"latents: want at least one of each size, got \[1, 0, 4"):
        plain.decode_next(torch.zeros(1, 0, 4, 2, 2), None)
    with pytest.raises(ValueError, match=r"piece: want at least 1 latent frame at a time, got 0"):
        plain.decode_fresh(torch.zeros(1, 2, 4, 2, 2), piece=0)
    _, state = plain.decode_next(torch.zeros(2, 1, 4, 2, 2), None)
    with pytest.raises(ValueError, match=r"state: want 3 rows as the latents, got 2"):
        plain.decode_next(torch.zeros(3, 1, 4, 2, 2), state)
    with pytest.raises(
        ValueError, match=r"state: .* latents \[3, 2\] in size, got one of \[2, 2\]"
    ):
        plain.decode_next(torch.zeros(2, 1, 4, 3, 2), state)


def test_states_that_cannot_be_stacked_say_so(plain):
    _, small = plain.decode_next(torch.zeros(1, 1, 4, 2, 2), None)
    _, large = plain.decode_next(torch.zeros(1, 1, 4, 3, 2), None)
    with pytest.raises(
        ValueError, match=r"states\[1\]: want caches shaped as those of states\[0\]"
    ):
        DecoderState.stack([small, large])
    with pytest.raises(ValueError, match=r"states: want at least one decoder state, got none"):
        DecoderState.stack([])
    with pytest.raises(ValueError, match=r"index: want at least one row, got none"):
        small.rows([])
    with pytest.raises(IndexError):
        small.rows([1])


def test_strides_of_the_published_sizes():
    assert (WAN21.time_stride, WAN21.space_stride) == (4, 8)
    assert (TINY.time_stride, TINY.space_stride) == (4, 4)
    assert CONFIGS["time-only-level"].space_stride == 6
