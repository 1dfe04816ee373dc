"""The autoencoder's two halves: levels of residual blocks between which the picture shrinks or grows.

Features are ``[B, C, T, H, W]``; parameter names are those of the published Wan 2.1 checkpoint.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from runtime.generators.vae_layers import (
    AttentionBlock,
    CausalConv3d,
    Downsample,
    NormSiLU,
    ResidualBlock,
    RMSNorm,
    Step,
    Upsample,
)
from runtime.generators.vae_past import Past, TilePast, room, tiles


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

    def forward(self, x: Tensor, past: Past, tile: int = 0) -> Tensor:
        """[B, in, 1 + k, h, w] (k with a past) -> [B, out, 1 + r * k (r * k), H, W].

        ``tile`` > 0 bounds memory: what lies above the first enlarging is done tile by tile of so many latent positions
        a side. Each tile carries as much of its neighbours as its convolutions reach, so the result is the same.
        """
        x = _walk_middle(self.middle, self.conv1(x, past), past)
        layers = list(self.upsamples.children())
        factors = [_growth(layer) for layer in layers]
        # Attention is over by then, and a picture that has not grown yet is small.
        whole = factors.index(2) if tile and 2 in factors else len(layers)
        for layer in layers[:whole]:
            x = layer(x, past)
        if not tile:
            return _finish(self.head, x, past)
        return self._by_tiles(x, past, layers[whole:], tile)

    def _by_tiles(self, x: Tensor, past: Past, layers: list[nn.Module], side: int) -> Tensor:
        """The last ``layers`` and the head for one tile after another, put together."""
        margins = halos(layers)
        caches, keep, kept = past.rest()
        height, width = x.shape[3:]
        picture: Tensor | None = None
        made: list[Tensor] = []
        for tile in tiles(height, width, side):
            part = TilePast(caches, made, keep)
            part.inner, part.held = tile, tile.widened(margins[0])
            y = part.held.cut(x)
            for layer, margin in zip(layers, margins[1:], strict=True):
                y = part.advance(layer(y, part), _growth(layer), margin)
            y = part.inner.cut(_finish(self.head, y, part), part.held)
            if picture is None:
                picture = room((*y.shape[:3], part.inner.rows.size, part.inner.columns.size), y)
            part.inner.cut(picture).copy_(y)
        kept += made
        assert picture is not None  # no picture is empty
        return picture


def halos(layers: Sequence[nn.Module]) -> list[int]:
    """Positions beyond a tile that count, at the input of each of ``layers`` and at the head after them."""
    margins = [1]
    for layer in reversed(layers):
        if isinstance(layer, ResidualBlock):
            margins.append(margins[-1] + 2)
        else:
            margins.append((margins[-1] + 2) // 2 if _growth(layer) == 2 else margins[-1])
    return margins[::-1]


def _growth(layer: nn.Module) -> int:
    """By how much a layer enlarges the picture."""
    return 2 if isinstance(layer, Upsample) and layer.enlarges else 1


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
    norm, _, conv = head
    return conv(x, past, NormSiLU(norm))
