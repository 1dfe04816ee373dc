"""Layers of the causal video autoencoder: every one sees only the past, whole or piece by piece.

Features are ``[B, C, T, H, W]``: B rows, C channels, T frames, H by W positions. Parameter names
are those of the published Wan 2.1 checkpoint. A layer with memory in time takes a ``Past``; handing
the whole sequence to a fresh ``Past`` and handing it over in pieces are the same computation.

Two rules concern the very first frame. A level that halves time passes it on untouched and counts
it as the past of the frames after it. A level that doubles time passes it on untouched too, but the
frames after it then see zeros, not that frame.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = tuple[bool, bool]  # does this level resample (space, time)


class Past:
    """What causal layers saw before, for one walk through a network, in the order the layers ask.

    ``caches`` None starts a sequence. ``kept`` collects a new past and leaves the given one alone;
    with ``keep`` False it stays empty, which is what training wants.
    """

    def __init__(self, caches: Sequence[Tensor] | None = None, *, keep: bool = False) -> None:
        self.fresh = caches is None
        self.kept: list[Tensor] = []
        self._keep = keep
        self._caches: Iterator[Tensor] = iter(caches or ())

    def extend(self, x: Tensor, frames: int) -> Tensor:
        """Put the last ``frames`` frames (at the start zeros) before x [B, C, T, H, W], T >= 0."""
        batch, channels, _, height, width = x.shape
        if self.fresh:
            before = x.new_zeros(batch, channels, frames, height, width)
        else:
            before = next(self._caches)
        extended = torch.cat([before, x], dim=2)  # [B, C, frames + T, H, W]
        self.store(extended, frames)
        return extended

    def store(self, x: Tensor, frames: int) -> None:
        """Keep a copy of the last ``frames`` frames of x; a view would hold all of x in memory."""
        if self._keep:
            self.kept.append(x[:, :, x.shape[2] - frames :].clone())


class CausalConv3d(nn.Conv3d):
    """A convolution padded in space on both sides and in time on the left only."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, padding=padding)

    def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        """[B, in, T, H, W] -> [B, out, T, H, W]; T = 0 only moves the past along."""
        extended = past.extend(x, self.kernel_size[0] - 1)
        if x.shape[2] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, *x.shape[2:])
        return super().forward(extended)


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels of [B, C, ...]; the norm is at least fp32."""

    def __init__(self, channels: int, *, dims: int) -> None:
        super().__init__()
        self.scale = channels**0.5
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide)
        return (x * (self.scale / norm.clamp_min(1e-12))).to(x.dtype) * self.gamma.to(x.dtype)


class ResidualBlock(nn.Module):
    """Two causal convolutions of 3x3x3, each after a norm and SiLU, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(in_channels, dims=3),
            nn.SiLU(),
            CausalConv3d(in_channels, out_channels, (3, 3, 3)),
            RMSNorm(out_channels, dims=3),
            nn.SiLU(),
            nn.Identity(),  # dropout's place in the published numbering
            CausalConv3d(out_channels, out_channels, (3, 3, 3)),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        norm1, silu1, conv1, norm2, silu2, _, conv2 = self.residual
        inner = conv1(silu1(norm1(x)), past)
        return self.shortcut(x) + conv2(silu2(norm2(inner)), past)


class AttentionBlock(nn.Module):
    """Single-head attention among the positions of each frame; frames do not see one another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, dims=2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = _fold(x)  # [B * T, C, H, W]
        qkv = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2)  # [B * T, H * W, 3 * C]
        q, k, v = (part.unsqueeze(1) for part in qkv.chunk(3, dim=-1))  # each [B * T, 1, H * W, C]
        mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + _unfold(self.proj(mixed.reshape(frames.shape)), x.shape[0])


class Downsample(nn.Module):
    """Halves space by a strided convolution, then time by another; each only if its step says."""

    def __init__(self, channels: int, step: Step) -> None:
        super().__init__()
        space, time = step
        self.resample: nn.Module = nn.Identity()
        if space:
            pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
            self.resample = nn.Sequential(pad, conv)
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), (2, 1, 1)) if time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Time: 1 + 2k frames -> 1 + k from a fresh past, else 2k -> k."""
        if isinstance(self.resample, nn.Sequential):
            x = _unfold(self.resample(_fold(x)), x.shape[0])
        if self.time_conv is None:
            return x
        if not past.fresh:
            return self.time_conv(past.extend(x, 1))
        past.store(x, 1)
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Doubles time, then space (nearest, then a convolution to half the channels), as steps say."""

    def __init__(self, channels: int, step: Step) -> None:
        super().__init__()
        space, time = step
        self.out_channels = channels // 2 if space else channels
        self.resample: nn.Module = nn.Identity()
        if space:
            nearest = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
            conv = nn.Conv2d(channels, self.out_channels, 3, padding=1)
            self.resample = nn.Sequential(nearest, conv)
        self.time_conv = CausalConv3d(channels, channels * 2, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Time: 1 + k frames -> 1 + 2k from a fresh past, else k -> 2k."""
        if self.time_conv is not None and past.fresh:
            x = torch.cat([x[:, :, :1], _double(self.time_conv, x[:, :, 1:], past)], dim=2)
        elif self.time_conv is not None:
            x = _double(self.time_conv, x, past)
        if isinstance(self.resample, nn.Sequential):
            x = _unfold(self.resample(_fold(x)), x.shape[0])
        return x


class Encoder(nn.Module):
    """Pixels (or patches) to latent moments, level by level.

    ``widths`` holds the stem's channels and then each level's; ``steps`` what follows each level
    but the last. A step that resamples nothing adds no layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        steps: Sequence[Step],
        res_blocks: int,
        attention: bool,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, widths[0], (3, 3, 3))
        layers: list[nn.Module] = []
        for level, width in enumerate(widths[1:]):
            for block in range(res_blocks):
                layers.append(ResidualBlock(width if block else widths[level], width))
            if level < len(steps) and any(steps[level]):
                layers.append(Downsample(width, steps[level]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = _middle(widths[-1], attention)
        self.head = _head(widths[-1], out_channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, in, 1 + r * k, H, W] (r * k with a past) -> [B, out, 1 + k (k), h, w]."""
        x = self.conv1(x, past)
        for layer in self.downsamples:
            x = layer(x, past)
        return _finish(self.head, _walk_middle(self.middle, x, past), past)


class Decoder(nn.Module):
    """Latents to pixels (or patches); arguments as ``Encoder``, levels from the latent's end.

    A step that doubles space halves the channels that the next level receives.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        steps: Sequence[Step],
        res_blocks: int,
        attention: bool,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, widths[0], (3, 3, 3))
        self.middle = _middle(widths[0], attention)
        layers: list[nn.Module] = []
        channels = widths[0]
        for level, width in enumerate(widths[1:]):
            for _ in range(res_blocks + 1):
                layers.append(ResidualBlock(channels, width))
                channels = width
            if level < len(steps) and any(steps[level]):
                upsample = Upsample(width, steps[level])
                layers.append(upsample)
                channels = upsample.out_channels
        self.upsamples = nn.Sequential(*layers)
        self.head = _head(widths[-1], out_channels)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """[B, in, 1 + k, h, w] (k with a past) -> [B, out, 1 + r * k (r * k), H, W]."""
        x = _walk_middle(self.middle, self.conv1(x, past), past)
        for layer in self.upsamples:
            x = layer(x, past)
        return _finish(self.head, x, past)


def _middle(channels: int, attention: bool) -> nn.Sequential:
    before, after = ResidualBlock(channels, channels), ResidualBlock(channels, channels)
    return nn.Sequential(before, AttentionBlock(channels) if attention else nn.Identity(), after)


def _walk_middle(middle: nn.Sequential, x: Tensor, past: Past) -> Tensor:
    before, mixer, after = middle
    return after(mixer(before(x, past)), past)


def _head(channels: int, out_channels: int) -> nn.Sequential:
    conv = CausalConv3d(channels, out_channels, (3, 3, 3))
    return nn.Sequential(RMSNorm(channels, dims=3), nn.SiLU(), conv)


def _finish(head: nn.Sequential, x: Tensor, past: Past) -> Tensor:
    norm, silu, conv = head
    return conv(silu(norm(x)), past)


def _double(conv: CausalConv3d, x: Tensor, past: Past) -> Tensor:
    pairs = conv(x, past).unflatten(1, (2, x.shape[1]))  # [B, 2, C, T, H, W]
    return pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # [B, C, 2 * T, H, W]


def _fold(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold(x: Tensor, batch: int) -> Tensor:
    """[B * T, C, H, W] -> [B, C, T, H, W]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
