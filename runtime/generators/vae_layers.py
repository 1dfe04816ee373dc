"""Layers of the causal video autoencoder: every one sees only the past, whole or piece by piece.

Features are ``[B, C, T, H, W]``: B rows, C channels, T frames, H by W positions. Parameter names
are those of the published Wan 2.1 checkpoint. A layer with memory in time takes a ``Past``; handing
the whole sequence to a fresh ``Past`` and handing it over in pieces are the same computation.

Two rules concern the very first frame. A level that halves time passes it on untouched and counts
it as the past of the frames after it. A level that doubles time passes it on untouched too, but the
frames after it then see zeros, not that frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.generators.vae_past import Past, layout, room

Step = tuple[bool, bool]  # does this level resample (space, time)


class CausalConv3d(nn.Conv3d):
    """A convolution padded in space on both sides and in time on the left only."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, padding=padding)

    def forward(  # type: ignore[override]
        self, x: Tensor, past: Past, activation: "NormSiLU | None" = None
    ) -> Tensor:
        """[B, in, T, H, W] -> [B, out, T, H, W]; T = 0 only moves the past along."""
        extended = past.extend(x, self.kernel_size[0] - 1, activation)
        if x.shape[2] == 0:
            return x.new_zeros(x.shape[0], self.out_channels, *x.shape[2:])
        if past.plain:
            return super().forward(extended)
        if self.kernel_size[1:] != (1, 1):
            return conv3d(self, extended)
        # Without reach in space it is a convolution of a [T, H * W] picture, which libraries do faster.
        rows = F.conv2d(extended.flatten(3), self.weight[..., 0], self.bias)
        return rows.unflatten(3, x.shape[3:])


def conv3d(layer: nn.Conv3d, x: Tensor) -> Tensor:
    """``layer(x)`` of stride 1. A single row is given to oneDNN by name: left alone, torch hands it to a path that takes
    twice as long and forgets the layout."""
    onednn = x.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not onednn or len(x) > 1 or x.dtype is not torch.float32:
        return nn.Conv3d.forward(layer, x)
    given = x, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
    return torch.ops.aten.mkldnn_convolution(*given)


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


class NormSiLU:
    """A norm and SiLU in as few passes as plain torch allows, straight to where a convolution reads."""

    def __init__(self, norm: nn.Module) -> None:
        assert isinstance(norm, RMSNorm)  # a Sequential forgets what it holds
        self.norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))

    def into(self, x: Tensor, out: Tensor) -> None:
        gamma = self.norm.gamma.to(x.dtype)
        if x.is_cuda and layout(x) is torch.channels_last_3d:
            # One kernel; eps only has to keep a zero vector from becoming NaN, far below any other mean square.
            scaled = F.rms_norm(x.movedim(1, -1), gamma.shape[:1], gamma.flatten(), 1e-24)
            scaled = scaled.movedim(-1, 1)
        else:
            wide = torch.promote_types(x.dtype, torch.float32)
            norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide)
            inverse = norm.clamp_min_(1e-12).reciprocal_().mul_(self.norm.scale)
            scaled = (x * inverse).to(x.dtype).mul_(gamma)
        torch.ops.aten.silu.out(scaled, out=out)


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
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        inner = conv1(x, past, NormSiLU(norm1))
        inner = conv2(inner, past, NormSiLU(norm2))
        if past.plain:
            return self.shortcut(x) + inner
        if isinstance(self.shortcut, nn.Conv3d):
            x = conv3d(self.shortcut, x)
        return inner.add_(x)


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
        self.register_buffer("folded", None, persistent=False)

    @property
    def enlarges(self) -> bool:
        return isinstance(self.resample, nn.Sequential)

    @torch.no_grad()
    def fold_(self) -> None:
        """Make one transposed convolution of the enlarging and the convolution after it: 16 products for 36."""
        if isinstance(self.resample, nn.Sequential):
            self.folded = folded_upsample(_conv_of(self.resample).weight)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Time: 1 + k frames -> 1 + 2k from a fresh past, else k -> 2k."""
        if self.time_conv is not None:
            x = _double(self.time_conv, x, past)
        if not isinstance(self.resample, nn.Sequential):
            return x
        if self.folded is None or past.plain:
            return _unfold(self.resample(_fold(x)), x.shape[0])
        bias = _conv_of(self.resample).bias
        frames = F.conv_transpose2d(_fold(x), self.folded, bias, stride=2, padding=1)
        return _unfold(frames, x.shape[0])


def _conv_of(resample: nn.Sequential) -> nn.Conv2d:
    conv = resample[1]
    assert isinstance(conv, nn.Conv2d)
    return conv


def _double(conv: CausalConv3d, x: Tensor, past: Past) -> Tensor:
    """Two frames of each; the first of a video stays one."""
    batch, channels, time, *size = x.shape
    alone = 1 if past.fresh else 0
    pairs = conv(x[:, :, alone:], past).unflatten(1, (2, channels))  # [B, 2, C, T, H, W]
    if past.plain:
        doubled = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # [B, C, 2 * T, H, W]
        return torch.cat([x[:, :, :alone], doubled], dim=2)
    out = room((batch, channels, 2 * time - alone, *size), x)
    out[:, :, :alone].copy_(x[:, :, :alone])
    for turn in (0, 1):
        out[:, :, alone + turn :: 2].copy_(pairs[:, turn])
    return out


def folded_upsample(weight: Tensor) -> Tensor:
    """The weight of a transposed convolution (stride 2, padding 1) that doubles to the nearest and then convolves.

    weight [O, C, 3, 3] of a convolution with padding 1 -> [C, O, 4, 4]: every position of the small picture is four equal
    ones of the large, so the products that share an input are summed beforehand, in double precision.
    """
    turned = weight.double().transpose(0, 1).flip(2, 3)  # [C, O, 3, 3]
    shifts = [F.pad(turned, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)]
    return torch.stack(shifts).sum(0).to(weight.dtype)


def _fold(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold(x: Tensor, batch: int) -> Tensor:
    """[B * T, C, H, W] -> [B, C, T, H, W]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
