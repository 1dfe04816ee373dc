"""The causal video autoencoder: frames to latents, and latents back to frames piece by piece.

Public tensors are frame-major. Legend: B rows, T latent frames, C latent channels, h x w latent
size, H x W pixels, r = ``time_stride``: frames per latent frame, but for the first, which stands
for a single frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from runtime.generators.decoder_state import DecoderState
from runtime.generators.vae_coders import Decoder, Encoder
from runtime.generators.vae_layers import Upsample
from runtime.generators.vae_past import Past


@dataclass(frozen=True, slots=True, kw_only=True)
class VAEConfig:
    """Sizes of one autoencoder. ``WAN21`` is the published one; smaller ones share all code."""

    latent_channels: int = 16
    base_dim: int = 96  # channels of the encoder's stem
    decoder_base_dim: int | None = None  # None: as the encoder
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2  # per level of the encoder; the decoder has one more
    space_downsample: tuple[bool, ...] = (True, True, True)  # after each level but the last
    time_downsample: tuple[bool, ...] = (False, True, True)
    mid_attention: bool = True
    patch: int = 1  # pixels folded into channels before the first convolution, per side
    latent_mean: tuple[float, ...] = ()  # empty: zeros
    latent_std: tuple[float, ...] = ()  # empty: ones

    def __post_init__(self) -> None:
        for name in ("latent_channels", "base_dim", "decoder_base_dim", "res_blocks", "patch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"vae.{name}: want at least 1, got {value}")
        if not self.dim_mult or min(self.dim_mult) < 1:
            raise ValueError(f"vae.dim_mult: want one number >= 1 per level, got {self.dim_mult}")
        steps = len(self.dim_mult) - 1
        for name in ("space_downsample", "time_downsample"):
            given = len(getattr(self, name))
            if given != steps:
                raise ValueError(
                    f"vae.{name}: want {steps} entries, one per level but the last, got {given}"
                )
        for name in ("latent_mean", "latent_std"):
            given = len(getattr(self, name))
            if given not in (0, self.latent_channels):
                raise ValueError(
                    f"vae.{name}: want none or {self.latent_channels} values, one per latent "
                    f"channel, got {given}"
                )
        if any(std <= 0 for std in self.latent_std):
            raise ValueError(f"vae.latent_std: want positive values, got {self.latent_std}")
        for width, space in zip(self.decoder_widths[1:], self.space_downsample[::-1], strict=False):
            if space and width % 2:
                raise ValueError(f"vae.dim_mult: want even decoder widths to halve, got {width}")

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the encoder's stem and of each level."""
        return (self.base_dim, *(self.base_dim * mult for mult in self.dim_mult))

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's stem and of each level, latent end first."""
        widths = [(self.decoder_base_dim or self.base_dim) * mult for mult in self.dim_mult[::-1]]
        return (widths[0], *widths)

    @property
    def time_stride(self) -> int:
        """Frames per latent frame after the first."""
        return 2 ** sum(self.time_downsample)

    @property
    def space_stride(self) -> int:
        """Pixels per latent position and side."""
        return self.patch * 2 ** sum(self.space_downsample)


# Statistics published with the Wan 2.1 autoencoder.
WAN21 = VAEConfig(
    latent_mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    latent_std=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)


class WanVAE(nn.Module):
    """Encoder and decoder under the published parameter names; computes in its own dtype."""

    latent_mean: Tensor  # [C, 1, 1]
    latent_std: Tensor  # [C, 1, 1]

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels, pixels = config.latent_channels, 3 * config.patch**2
        steps = list(zip(config.space_downsample, config.time_downsample, strict=True))
        depth, attention = config.res_blocks, config.mid_attention
        into, out_of = config.encoder_widths, config.decoder_widths
        self.encoder = Encoder(pixels, 2 * channels, into, steps, depth, attention)
        self.conv1 = nn.Conv3d(2 * channels, 2 * channels, 1)
        self.conv2 = nn.Conv3d(channels, channels, 1)
        self.decoder = Decoder(channels, pixels, out_of, steps[::-1], depth, attention)
        mean = config.latent_mean or (0.0,) * channels
        std = config.latent_std or (1.0,) * channels
        # On the CPU by name, so that a module built on "meta" still knows its statistics.
        for name, values in (("latent_mean", mean), ("latent_std", std)):
            stats = torch.tensor(values, dtype=torch.get_default_dtype(), device="cpu")
            self.register_buffer(name, stats[:, None, None], persistent=False)

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance, un-normalised, with gradients, whole sequence at once.

        frames [B, 1 + r * k, 3, H, W] float in [0, 1] -> two of [B, 1 + k, C, h, w].
        ValueError as ``encode``.
        """
        self._check_frames(frames)
        return self._moments(frames, Past(plain=True))

    @torch.no_grad()
    def encode(self, frames: Tensor, piece: int = 3) -> Tensor:
        """Normalised latents (posterior mean), at most ``piece`` latent frames at a time.

        frames [B, 1 + r * k, 3, H, W] float in [0, 1], H and W multiples of ``space_stride``
        -> [B, 1 + k, C, h, w]. ValueError for any other shape or an integer dtype.
        """
        self._check_frames(frames)
        _check_piece(piece)
        stride = self.config.time_stride
        later = frames.shape[1] - 1 - (piece - 1) * stride
        first = 1 + (piece - 1) * stride if later > 0 else frames.shape[1]
        means: list[Tensor] = []
        caches: Sequence[Tensor] | None = None
        for part in (frames[:, :first], *frames[:, first:].split(piece * stride, dim=1)):
            if part.shape[1] == 0:
                continue
            past = Past(caches, keep=True, plain=True)
            means.append(self._moments(part, past)[0])
            caches = past.kept
        return (torch.cat(means, dim=1) - self.latent_mean) / self.latent_std

    @torch.no_grad()
    def decode_next(
        self, latents: Tensor, state: DecoderState | None, tile: int = 0
    ) -> tuple[Tensor, DecoderState]:
        """Frames of the next latents of a video and the state after them; ``state`` stays usable.

        latents [B, T, C, h, w] normalised -> frames [B, n, 3, H, W] in [0, 1], where n is
        1 + r * (T - 1) when ``state`` is None (the video begins), else r * T. ValueError for a
        wrong shape or another row count.

        ``tile`` > 0 decodes what lies above the first enlarging by tiles of so many latent positions a side: less memory,
        more work where tiles overlap, the same frames and state.
        """
        self._check_latents(latents)
        if state is not None:
            self._check_state(state, latents)
        if tile < 0:
            raise ValueError(f"tile: want latent positions a side, or 0 for no tiles, got {tile}")
        frames, *caches = self.step(latents, None if state is None else state.caches, tile)
        return frames, DecoderState(tuple(caches))

    @torch.no_grad()
    def step(
        self, latents: Tensor, caches: tuple[Tensor, ...] | None, tile: int = 0
    ) -> tuple[Tensor, ...]:
        """``decode_next`` as a pure function of tensors, unchecked: (frames, *new caches).

        With caches, shapes and work follow from the shapes alone and no argument is written to, so that a graph can
        replay it; new caches have the shapes and strides of the old.
        """
        past = Past(caches, keep=True)
        # In place, before the pixels are put in order: nobody else holds what the last convolution made.
        raw = self._decoded(latents, past, tile).mul_(0.5).add_(0.5).clamp_(0.0, 1.0)
        return _to_frames(raw, self.config.patch), *past.kept

    @torch.no_grad()
    def decode_fresh(self, latents: Tensor, piece: int = 3) -> Tensor:
        """A whole video from an empty state, ``piece`` latent frames at a time.

        latents [B, T, C, h, w] normalised -> frames [B, 1 + r * (T - 1), 3, H, W] in [0, 1]: bit
        for bit what ``decode_next`` gives for the same pieces. ValueError for a wrong shape.
        """
        self._check_latents(latents)
        _check_piece(piece)
        frames: list[Tensor] = []
        state: DecoderState | None = None
        for part in latents.split(piece, dim=1):
            newest, state = self.decode_next(part, state)
            frames.append(newest)
        return torch.cat(frames, dim=1)

    def decode_train(self, latents: Tensor) -> Tensor:
        """``decode_fresh`` with gradients: whole sequence at once, un-clamped, around [-1, 1].

        latents [B, T, C, h, w] normalised -> [B, 1 + r * (T - 1), 3, H, W]. ValueError for a
        wrong shape.
        """
        self._check_latents(latents)
        return _to_frames(self._decoded(latents, Past(plain=True)), self.config.patch)

    @torch.no_grad()
    def decode_plain(
        self, latents: Tensor, state: DecoderState | None
    ) -> tuple[Tensor, DecoderState]:
        """``decode_next`` step by step, nothing fused, folded or written in place: what it is measured against."""
        self._check_latents(latents)
        past = Past(None if state is None else state.caches, keep=True, plain=True)
        frames = _to_frames(self._decoded(latents, past), self.config.patch)
        return frames.clamp(-1.0, 1.0).add(1.0).mul(0.5), DecoderState(tuple(past.kept))

    def prepare_(
        self, memory_format: torch.memory_format = torch.channels_last_3d, *, fold: bool = True
    ) -> None:
        """Lay out the weights for decoding; call it once they have their values, device and dtype.

        Names and values stay. Channels last makes every norm a sum over neighbours and lets convolutions run without
        copies between layouts; ``fold`` joins every enlarging with the convolution after it. Weights that change
        afterwards need another call.
        """
        flat = memory_format is torch.channels_last_3d
        planes = torch.channels_last if flat else memory_format
        for module in (self.conv2, *self.decoder.modules()):
            if isinstance(module, (nn.Conv3d, nn.Conv2d)):
                form = memory_format if isinstance(module, nn.Conv3d) else planes
                module.weight.data = module.weight.data.contiguous(memory_format=form)
            elif isinstance(module, Upsample) and fold:
                module.fold_()

    def _moments(self, frames: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        x = _to_channels(frames.to(self.conv1.weight.dtype) * 2.0 - 1.0, self.config.patch)
        mean, logvar = self.conv1(self.encoder(x, past)).transpose(1, 2).chunk(2, dim=2)
        return mean, logvar

    def _decoded(self, latents: Tensor, past: Past, tile: int = 0) -> Tensor:
        z = latents.to(self.conv2.weight.dtype) * self.latent_std + self.latent_mean
        z = self.conv2(z.transpose(1, 2))
        return self.decoder(z, past, tile)  # [B, 3 * p * p, n, H / p, W / p]

    def _check_frames(self, frames: Tensor) -> None:
        time, space = self.config.time_stride, self.config.space_stride
        if frames.ndim != 5 or frames.shape[2] != 3 or not frames.is_floating_point():
            raise ValueError(
                f"frames: want [B, frames, 3, H, W] of a float dtype in [0, 1], "
                f"got {list(frames.shape)} {frames.dtype}"
            )
        if frames.shape[1] % time != 1 % time or frames.shape[1] < 1:
            raise ValueError(f"frames: want 1 + {time} * k frames, got {frames.shape[1]}")
        height, width = frames.shape[3:]
        if min(height, width) < 1 or height % space or width % space:
            raise ValueError(f"frames: want H and W multiples of {space}, got {height} x {width}")

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[2] != channels or not latents.is_floating_point():
            raise ValueError(
                f"latents: want [B, T, {channels}, h, w] of a float dtype, "
                f"got {list(latents.shape)} {latents.dtype}"
            )
        if math.prod(latents.shape) == 0:
            raise ValueError(f"latents: want at least one of each size, got {list(latents.shape)}")

    def _check_state(self, state: DecoderState, latents: Tensor) -> None:
        # The first layer's cache has the latents' own size.
        rows, height, width = (state.caches[0].shape[axis] for axis in (0, 3, 4))
        if rows != latents.shape[0]:
            raise ValueError(
                f"state: want {latents.shape[0]} rows as the latents, got {rows}; "
                f"pick them with state.rows"
            )
        if [height, width] != list(latents.shape[3:]):
            raise ValueError(
                f"state: want a state of latents {list(latents.shape[3:])} in size, "
                f"got one of {[height, width]}"
            )


def _check_piece(piece: int) -> None:
    if piece < 1:
        raise ValueError(f"piece: want at least 1 latent frame at a time, got {piece}")


def _to_channels(frames: Tensor, patch: int) -> Tensor:
    """[B, T, 3, H, W] -> [B, 3 * p * p, T, H / p, W / p], in the order (colour, column, row)."""
    split = frames.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # [B, T, 3, H/p, p, W/p, p]
    return split.permute(0, 2, 6, 4, 1, 3, 5).flatten(1, 3)


def _to_frames(x: Tensor, patch: int) -> Tensor:
    """The inverse of ``_to_channels``, contiguous."""
    split = x.unflatten(1, (-1, patch, patch))  # [B, 3, p (column), p (row), T, h, w]
    return split.permute(0, 4, 1, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4).contiguous()
