"""A decoder of a few per cent of the full one's cost, for frames that only rewards or a preview will see.

The architecture and the parameter names are those of TAEHV (github.com/madebyollin/taehv, MIT licence, commit
115aaa7ef7a36a51d90cfeddc71b34874b618cba, class TAEHV), whose ``taew2_1`` weights fit ``TinyConfig()``: 2-D convolutions,
and blocks that also see the frame before. It takes the normalised latents that the full decoder takes and gives as many
frames: every latent frame makes ``time_stride`` of them, and of the first one's all but the last are dropped.

Legend: B rows, T latent frames, C latent channels, h x w latent size, N frames at a layer, r = ``time_stride``.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from runtime.generators.decoder_state import DecoderState
from runtime.weights import compare_keys, fill_random_, quote, read_config

MAX_PTH_BYTES = 256 << 20
DAMAGED = (  # what the unpickler raises over a damaged file, or one with more in it than tensors
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError),
    *(KeyError, IndexError, AttributeError, TypeError),
)
CLAMP = 3.0  # latents are squashed smoothly to this range before the first convolution


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyConfig:
    """Sizes of one tiny decoder; the defaults are those published for Wan 2.1."""

    latent_channels: int = 16
    widths: tuple[int, ...] = (256, 128, 64, 64)  # of each level, then of the frames' convolution
    blocks: int = 3  # a level
    space: tuple[int, ...] = (2, 2, 2)  # by which each level's end enlarges the picture
    time: tuple[int, ...] = (1, 2, 2)  # by which it multiplies the frames
    patch: int = 1  # pixels a side that come out of the last convolution as channels

    def __post_init__(self) -> None:
        for name in ("latent_channels", "blocks", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"tiny.{name}: want at least 1, got {getattr(self, name)}")
        for name, wanted in (("space", len(self.widths) - 1), ("time", len(self.widths) - 1)):
            values = getattr(self, name)
            if len(values) != wanted or not values or min(values) < 1:
                raise ValueError(
                    f"tiny.{name}: want {wanted} numbers >= 1, one per level, got {values}"
                )
        if min(self.widths) < 1:
            raise ValueError(f"tiny.widths: want numbers >= 1, got {self.widths}")

    @property
    def time_stride(self) -> int:
        """Frames per latent frame after the first."""
        return prod(self.time)

    @property
    def space_stride(self) -> int:
        """Pixels per latent position and side."""
        return self.patch * prod(self.space)


class Squash(nn.Module):
    """Clamps softly to +-3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / CLAMP) * CLAMP


class MemoryBlock(nn.Module):
    """Three convolutions around a shortcut that see a frame and the one before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
            nn.ReLU(),
            _conv(channels, channels),
        )

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x [B * N, C, H, W] and the frame before them [B, C, 1, H, W] -> same as x, the newest of x."""
        frames = x.unflatten(0, (past.shape[0], -1))  # [B, N, C, H, W]
        before = torch.cat([past.transpose(1, 2), frames[:, :-1]], dim=1).flatten(0, 1)
        newest = frames[:, -1:].transpose(1, 2).clone()  # a view would hold all of x in memory
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x), newest


class Grow(nn.Module):
    """Makes ``stride`` frames of each by a convolution of one position."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B * N, C, H, W] -> [B * N * stride, C, H, W]."""
        return self.conv(x).unflatten(1, (-1, x.shape[1])).flatten(0, 1)


class TinyDecoder(nn.Module):
    """Latents to frames under the published parameter names; a ``Decoder`` of ``runtime.types``."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [Squash(), _conv(config.latent_channels, config.widths[0])]
        layers.append(nn.ReLU())
        levels = zip(config.widths, config.widths[1:], config.space, config.time, strict=False)
        for width, following, space, time in levels:
            layers += [MemoryBlock(width) for _ in range(config.blocks)]
            layers += [nn.Upsample(scale_factor=space), Grow(width, time)]
            layers.append(_conv(width, following, bias=False))
        layers += [nn.ReLU(), _conv(config.widths[-1], 3 * config.patch**2)]
        self.decoder = nn.Sequential(*layers)

    def decode(self, latents: Tensor, state: DecoderState | None) -> tuple[Tensor, DecoderState]:
        """Frames of the next latents of a video and the state after them; ``state`` stays usable.

        latents [B, T, C, h, w] normalised -> frames [B, n, 3, H, W] in [0, 1], where n is 1 + r * (T - 1) when ``state``
        is None (the video begins), else r * T. ValueError for a wrong shape or another row count.
        """
        self._check(latents, state)
        caches = self.empty(latents) if state is None else state.caches
        with torch.no_grad():
            frames, *kept = self.step(latents, caches)
        dropped = self.config.time_stride - 1 if state is None else 0
        return frames[:, dropped:], DecoderState(tuple(kept))

    def lay_out_(self, memory_format: torch.memory_format) -> None:
        """Put the weights in ``memory_format``; features follow them. Values stay."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=memory_format)

    def rows(self, state: DecoderState, rows: Sequence[int]) -> DecoderState:
        return state.rows(rows)

    def stack(self, states: Sequence[DecoderState | None]) -> DecoderState | None:
        if states[0] is None:
            return None
        return DecoderState.stack([state for state in states if state is not None])

    def step(self, latents: Tensor, caches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors in, (frames, *new caches) out: shapes depend on shapes only and nothing is written to, so a graph can
        replay it. latents [B, T, C, h, w] -> frames [B, r * T, 3, H, W] in [0, 1], with gradients if any are on.
        """
        raw, *kept = self.raw(latents, caches)
        return raw.clamp(0.0, 1.0), *kept

    def raw(self, latents: Tensor, caches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """``step`` without the clamp, which training must see past."""
        x = latents.flatten(0, 1).to(self.dtype)
        kept: list[Tensor] = []
        layers, position = list(self.decoder), 0
        while position < len(layers):
            layer = layers[position]
            if isinstance(layer, MemoryBlock):
                x, newest = layer(x, caches[len(kept)])
                kept.append(newest)
            elif isinstance(layer, nn.Upsample):
                # Growing is per position, so doing it before enlarging is the same for a quarter of the work.
                x = layer(layers[position + 1](x))
                position += 1
            else:
                x = layer(x)
            position += 1
        frames = F.pixel_shuffle(x, self.config.patch)
        return frames.unflatten(0, (latents.shape[0], -1)).contiguous(), *kept

    def empty(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The caches before a video begins, for latents [B, T, C, h, w]: zeros, each [B, C, 1, H, W]."""
        rows, _, _, height, width = latents.shape
        caches, size = [], 1
        for channels, space in zip(self.config.widths, self.config.space, strict=False):
            shape = (rows, channels, 1, height * size, width * size)
            for _ in range(self.config.blocks):
                caches.append(torch.zeros(shape, dtype=self.dtype, device=latents.device))
            size *= space
        return tuple(caches)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _check(self, latents: Tensor, state: DecoderState | None) -> None:
        channels = self.config.latent_channels
        wrong = latents.ndim != 5 or latents.shape[2] != channels or not latents.numel()
        if wrong or not latents.is_floating_point():
            raise ValueError(
                f"latents: want [B, T, {channels}, h, w] of a float dtype, at least one of each size, "
                f"got {list(latents.shape)} {latents.dtype}"
            )
        if state is None:
            return
        got = [state.batch, *state.caches[0].shape[3:]]
        want = [latents.shape[0], *latents.shape[3:]]
        if got != want:
            raise ValueError(
                f"state: want [rows, h, w] = {want} as the latents, got {got}; pick rows with state.rows"
            )


def tiny_flops(config: TinyConfig, rows: int, height: int, width: int, latents: int = 3) -> int:
    """Multiplications and additions of ``latents`` more latent frames of height x width for ``rows`` videos."""
    frames, area = latents, height * width
    total = frames * area * config.latent_channels * config.widths[0] * 9
    levels = zip(config.widths, config.widths[1:], config.space, config.time, strict=False)
    for channels, following, space, time in levels:
        total += frames * area * config.blocks * 4 * channels**2 * 9
        total += frames * area * time * channels**2
        frames, area = frames * time, area * space**2
        total += frames * area * channels * following * 9
    return 2 * rows * (total + frames * area * config.widths[-1] * 3 * config.patch**2 * 9)


def random_tiny(path: Path, device: torch.device | str, dtype: torch.dtype) -> TinyDecoder:
    """A tiny decoder of the sizes in the .json beside ``path``, or the published ones, with random weights."""
    with torch.device("meta"):
        model = TinyDecoder(_read_config(path.with_suffix(".json")))
    fill_random_(model, device, dtype)
    return _ready(model, device, dtype)


def load_tiny(path: Path, device: torch.device | str, dtype: torch.dtype) -> TinyDecoder:
    """The tiny decoder in ``path`` (.safetensors, or .pth as published), in ``dtype`` on ``device``.

    Sizes come from the .json beside it, under the key "config"; without one they are the published ones. The encoder's
    tensors, if the file has them, are left out. ValueError for a missing, damaged or foreign file.
    """
    config = _read_config(path.with_suffix(".json"))
    with torch.device("meta"):  # shapes only: no memory before the file has been compared
        model = TinyDecoder(config)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    tensors = {k: v for k, v in _read_tensors(path).items() if not k.startswith("encoder.")}
    for name, shape in wanted.items():
        # Published files may hold a Grow of more frames than its place makes; the newest frames' rows are the ones used.
        if name in tensors and tensors[name].ndim == 4 and shape[2:] == (1, 1):
            tensors[name] = tensors[name][-shape[0] :]
    compare_keys(
        path,
        {name: tuple(shape) for name, shape in wanted.items()},
        {name: tuple(value.shape) for name, value in tensors.items()},
    )
    bad = [
        name
        for name, value in tensors.items()
        if not value.is_floating_point() or not torch.isfinite(value).all()
    ]
    if bad:
        raise ValueError(f"{path}: {quote(bad)} not finite floats; fetch or copy it again")
    model.load_state_dict(tensors, assign=True)
    return _ready(model, device, dtype)


def _ready(model: TinyDecoder, device: torch.device | str, dtype: torch.dtype) -> TinyDecoder:
    # What its convolutions want on a GPU; on a CPU it makes no difference.
    if torch.device(device).type == "cuda":
        model.lay_out_(torch.channels_last)
    return model.to(device, dtype).eval().requires_grad_(False)


def _read_config(path: Path) -> TinyConfig:
    if not path.is_file():
        return TinyConfig()
    sizes = read_config(path).get("config")
    if not isinstance(sizes, dict):
        raise ValueError(f"{path}: want an object under the key 'config'")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
    try:
        return TinyConfig(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the sizes of this model ({error})") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; want the tiny decoder's .safetensors or .pth")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    if path.stat().st_size > MAX_PTH_BYTES:
        raise ValueError(
            f"{path}: want at most {MAX_PTH_BYTES} bytes of weights, got {path.stat().st_size}"
        )
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise ValueError(f"{path}: not a whole file of weights ({error})") from None
    named = isinstance(loaded, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    )
    if not named:
        raise ValueError(f"{path}: want tensors by name, got {type(loaded).__name__}")
    return loaded


def _conv(channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1, bias=bias)
