"""What a chunk must cost: FLOPs and bytes of its stages by hand formulas, from the model's sizes and the chunk's plan.

A multiplication with its addition is two FLOPs. Bytes are the traffic that no kernel avoids: weights once per forward,
each row's context keys and values, inputs and outputs of every product; norms, sums and activations count as fused into
them. What is made once per prompt or per timestep (text, modulation) is not counted, nor is what has no formula here.

Legend: B rows of a forward, S tokens of a chunk, E width, L text tokens, C latent channels, T latent frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from runtime.engine import Engine
from runtime.generators import StreamingVAE
from runtime.generators.vae import VAEConfig
from runtime.generators.vae_layers import Upsample
from runtime.generators.wan import PATCH, DiTConfig
from runtime.settings import CHUNK_FRAMES
from runtime.types import Twins, row_ranges


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs and bytes of something. ``linears``: the part of the FLOPs that ``run.linears`` may narrow to 8 bits."""

    flops: int = 0
    bytes: int = 0
    linears: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.bytes + other.bytes, self.linears + other.linears
        )

    def times(self, count: int) -> Cost:
        return Cost(self.flops * count, self.bytes * count, self.linears * count)


@runtime_checkable
class Counted(Protocol):
    """A reward model that knows what it costs."""

    def flops(self, frames: int, height: int, width: int, fps: int) -> int:
        """FLOPs of judging one clip with the shortest prompt; its frames are counted before any sampling."""
        ...


@runtime_checkable
class CountedTogether(Protocol):
    """A reward model that shares among clips what they have in common."""

    def flops_together(self, twins: Twins, height: int, width: int, fps: int) -> int:
        """FLOPs of judging the clips that ``twins`` tells of, otherwise as ``Counted.flops``."""
        ...


@dataclass(frozen=True, slots=True)
class DiTShape:
    """A DiT at the size it runs at."""

    config: DiTConfig
    tokens: int  # S
    element_bytes: int = 2  # of activations, keys and values
    weight_bytes: int = 2  # of a weight of the blocks' products

    @property
    def block_bytes(self) -> int:
        """Keys and values of one chunk, all layers."""
        return 2 * self.config.layers * self.tokens * self.config.dim * self.element_bytes

    def forward(self, contexts: Sequence[int]) -> Cost:
        """One denoising pass of a batch; ``contexts`` has the number of context blocks of each row."""
        return self._layers(contexts, self.config.layers) + self._patches(contexts, sides=2)

    def clean(self, contexts: Sequence[int]) -> Cost:
        """The pass that only makes keys and values: nothing after the last layer's q, k and v, no head."""
        qkv = self._product(len(contexts), self.config.dim, 3 * self.config.dim)
        return (
            self._layers(contexts, self.config.layers - 1) + qkv + self._patches(contexts, sides=1)
        )

    def _layers(self, contexts: Sequence[int], layers: int) -> Cost:
        """Whole blocks."""
        dim, rows = self.config.dim, len(contexts)
        square, wide = (
            self._product(rows, *size) for size in ((dim, dim), (dim, self.config.ffn_dim))
        )
        # q, k and v of self attention in one product, which reads its input once; o, cross q and cross o; up and down
        products = self._product(rows, dim, 3 * dim) + square.times(3) + wide.times(2)
        own = sum((self._self_attention(blocks) for blocks in contexts), Cost())
        return (products + own + self._cross_attention(rows)).times(layers)

    def _product(self, rows: int, inner: int, outer: int) -> Cost:
        flops = 2 * rows * self.tokens * inner * outer
        moved = rows * self.tokens * (inner + outer) * self.element_bytes
        return Cost(flops, moved + inner * outer * self.weight_bytes, flops)

    def _self_attention(self, blocks: int) -> Cost:
        """One row in one layer, over its own chunk and ``blocks`` others: q, k, v in and one out."""
        keys = (1 + blocks) * self.tokens
        return Cost(
            4 * self.tokens * keys * self.config.dim,
            2 * (self.tokens + keys) * self.config.dim * self.element_bytes,
        )

    def _cross_attention(self, rows: int) -> Cost:
        """All rows in one layer; they share the prompt's keys and values."""
        dim, length = self.config.dim, self.config.text_len
        moved = 2 * (rows * self.tokens + length) * dim * self.element_bytes
        return Cost(4 * rows * self.tokens * length * dim, moved)

    def _patches(self, contexts: Sequence[int], sides: int) -> Cost:
        """Patches to tokens and, for ``sides`` = 2, tokens to patches. They stay dense in every precision."""
        rows, values = len(contexts), self.config.channels * PATCH**2
        flops = 2 * rows * self.tokens * values * self.config.dim
        moved = (rows * self.tokens * (values + self.config.dim)) * self.element_bytes
        weights = values * self.config.dim * self.element_bytes
        return Cost(flops, moved + weights).times(sides)


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The autoencoder's decoder at the size it runs at; ``height`` x ``width`` are latent positions."""

    config: VAEConfig
    height: int
    width: int
    element_bytes: int = 2
    folded: bool = False  # every enlarging is one product with the convolution after it

    @staticmethod
    def of(decoder: StreamingVAE, height: int, width: int, element_bytes: int) -> DecoderShape:
        """Of a decoder as its weights are laid out."""
        layers = decoder.vae.decoder.modules()
        folded = any(isinstance(one, Upsample) and one.folded is not None for one in layers)
        return DecoderShape(decoder.vae.config, height, width, element_bytes, folded)

    def decode(self, rows: int, latents: int, fresh: bool) -> Cost:
        """Frames of the next ``latents`` latent frames of ``rows`` videos; ``fresh`` where the video begins."""
        config = self.config
        channels, middle = config.latent_channels, config.decoder_widths[0]
        size = (rows * latents, self.height, self.width)
        cost = self._conv(channels, channels, 1, size) + self._conv(channels, middle, 27, size)
        cost += self._residual(middle, middle, size).times(2)
        if config.mid_attention:
            cost += self._attention(middle, size)
        steps = list(zip(config.space_downsample, config.time_downsample, strict=True))[::-1]
        frames, channels = latents, middle
        for level, width in enumerate(config.decoder_widths[1:]):
            for _ in range(config.res_blocks + 1):
                cost += self._residual(channels, width, size)
                channels = width
            space, time = steps[level] if level < len(steps) else (False, False)
            if time:
                # The very first frame is passed on untouched.
                doubled = frames - fresh
                cost += self._conv(channels, 2 * channels, 3, (rows * doubled, *size[1:]))
                frames = 2 * doubled + fresh
            if space:
                size = (rows * frames, 2 * size[1], 2 * size[2])
                cost += self._conv(channels, channels // 2, 4 if self.folded else 9, size)
                channels //= 2
            size = (rows * frames, *size[1:])
        return cost + self._conv(channels, 3 * config.patch**2, 27, size)

    def _conv(self, inner: int, outer: int, taps: int, size: tuple[int, int, int]) -> Cost:
        """A convolution of ``taps`` weights per channel pair; ``size`` are output frames, height and width."""
        frames, height, width = size
        places, weights = frames * height * width, inner * outer * taps
        moved = (places * (inner + outer) + weights) * self.element_bytes
        return Cost(2 * places * weights, moved)

    def _residual(self, inner: int, outer: int, size: tuple[int, int, int]) -> Cost:
        cost = self._conv(inner, outer, 27, size) + self._conv(outer, outer, 27, size)
        return cost if inner == outer else cost + self._conv(inner, outer, 1, size)

    def _attention(self, channels: int, size: tuple[int, int, int]) -> Cost:
        """Among the positions of each frame."""
        frames, places = size[0], size[1] * size[2]
        seen = Cost(4 * frames * places**2 * channels, 4 * frames * places * channels)
        sides = self._conv(channels, 3 * channels, 1, size) + self._conv(
            channels, channels, 1, size
        )
        return seen + sides


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """What one chunk had to do: read from its record when it is done, priced later."""

    index: int
    contexts: tuple[int, ...]  # context blocks of each candidate
    kept: tuple[int, ...]  # rows of the candidates that survived
    frames: int  # pixel frames of one candidate
    last: bool
    size: tuple[int, int] = (0, 0)  # of a frame: height and width
    twins: Twins = ()  # of the candidates' recent frames, the newest last; (): unknown


@dataclass(frozen=True, slots=True)
class Rewards:
    """The rewards that know their cost, and what they are shown."""

    image: Counted | None = None
    video: Counted | None = None
    image_stride: int = 1  # of the chunk's frames
    time_stride: int = 4  # frames of a latent frame
    fps: int = 16

    @staticmethod
    def of(engine: Engine) -> Rewards:
        """Those of an engine."""
        parts, generator = engine.parts, engine.parts.generator
        image, video = (
            model if isinstance(model, Counted) else None for model in (parts.image, parts.video)
        )
        stride = engine.settings.reward.stride
        return Rewards(image, video, stride, generator.time_stride, generator.fps)


@dataclass(frozen=True, slots=True)
class LineCosts:
    """Prices the chunks of one engine, stage by stage. A stage that is missing in the answer has no formula."""

    dit: DiTShape
    decoder: DecoderShape | None
    passes: int
    batch_rows: int  # 0: all at once
    clean_all: bool
    keep_last: bool
    cold: bool  # candidates are decoded from nothing for the rewards, survivors once more for the viewer
    reward_chunks: int  # of the video reward's window
    judges: bool
    whole: bool = True  # every candidate goes through every pass
    rewards: Rewards = Rewards()

    @staticmethod
    def of(engine: Engine) -> LineCosts:
        """Of an engine as it stands."""
        generator, settings = engine.parts.generator, engine.settings
        _, height, width = generator.latent_shape
        element = generator.dtype.itemsize
        dense = settings.run.linears == "dense"
        wasteful = settings.run.schedule == "released"
        decoder = None
        if isinstance(generator.decoder, StreamingVAE):
            decoder = DecoderShape.of(generator.decoder, height, width, element)
        tokens = CHUNK_FRAMES * (height // PATCH) * (width // PATCH)
        return LineCosts(
            DiTShape(generator.dit.config, tokens, element, element if dense else 1),
            decoder if settings.reward.decoder == "full" else None,
            generator.schedule.passes,
            1 if wasteful else settings.run.batch_rows,
            wasteful,
            settings.memory.keep_last,
            (settings.released or wasteful) and engine.policy.judges,
            settings.reward.window_chunks,
            engine.policy.judges,
            not engine.policy.draft_passes,
            Rewards.of(engine),
        )

    def chunk(self, work: ChunkWork) -> dict[str, Cost]:
        """Stage -> cost, under the names of the stage clock; the clean pass belongs to "memory"."""
        costs = self._judging(work) if self.judges else {}
        if self.whole:
            costs["denoise"] = self._denoise(work)
        if not work.last or self.keep_last:
            rows = range(len(work.contexts)) if self.clean_all else work.kept
            contexts = [work.contexts[row] for row in rows]
            costs["memory"] = _batched(self.dit.clean, contexts, self.batch_rows)
        if self.decoder is not None and self.whole:
            costs["decode"] = self._decode(work, self.decoder)
        return costs

    def _denoise(self, work: ChunkWork) -> Cost:
        return _batched(self.dit.forward, work.contexts, self.batch_rows).times(self.passes)

    def _judging(self, work: ChunkWork) -> dict[str, Cost]:
        """Of the rewards that know. The video reward sees the recent chunks; one that begins cold begins with one frame."""
        rewards, rows = self.rewards, len(work.contexts)
        past = min(work.index, self.reward_chunks - 1)
        begins = self.cold or past == work.index
        whole = CHUNK_FRAMES * rewards.time_stride
        window = whole * (past + 1) - (rewards.time_stride - 1 if begins else 0)
        costs = {}
        if rewards.image is not None:
            frames = -(-work.frames // rewards.image_stride)
            costs["image reward"] = rows * rewards.image.flops(frames, *work.size, rewards.fps)
        if isinstance(rewards.video, CountedTogether) and work.twins and not self.cold:
            twins = tuple(row[-window:] for row in work.twins)
            costs["video reward"] = sum(
                rewards.video.flops_together(twins[r.start : r.stop], *work.size, rewards.fps)
                for r in row_ranges(rows, self.batch_rows)
            )
        elif rewards.video is not None:
            costs["video reward"] = rows * rewards.video.flops(window, *work.size, rewards.fps)
        return {stage: Cost(flops) for stage, flops in costs.items()}

    def _decode(self, work: ChunkWork, decoder: DecoderShape) -> Cost:
        rows, first = len(work.contexts), work.index == 0
        if not self.cold:
            return decoder.decode(rows, CHUNK_FRAMES, first)
        cost = decoder.decode(rows, CHUNK_FRAMES, True)
        if self.judges:
            past = min(work.index, self.reward_chunks - 1)
            cost += decoder.decode(rows, CHUNK_FRAMES, True)
            cost += decoder.decode(rows, CHUNK_FRAMES, False).times(past)
        return cost + decoder.decode(len(work.kept), CHUNK_FRAMES, first)


def _batched(price, contexts: Sequence[int], batch_rows: int) -> Cost:
    """The sum over forwards of at most ``batch_rows`` rows."""
    ranges = row_ranges(len(contexts), batch_rows)
    return sum((price([contexts[row] for row in rows]) for rows in ranges), Cost())
