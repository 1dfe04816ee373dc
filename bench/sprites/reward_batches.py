"""Batches for the rewards of the embedded world: clips with known defects, stacked with their truth.

Legend: N frames or clips of a batch, n seen frames of a clip, W words.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.bench.sprites.corrupt import (
    MOVEMENT,
    PICTURE,
    STATIC,
    VOCABULARY,
    Defects,
    Sample,
    corrupt,
)
from runtime.bench.sprites.decoded import Decoded
from runtime.bench.sprites.world import SIZE, Caption, Scene
from runtime.rewards.sprites_video import seen_frames

CHUNK = 12  # frames of a chunk; the first chunk of a clip has 9
IMAGE_CLIPS, IMAGE_FRAMES = 20, 4  # clips of a batch, frames of each
VIDEO_CLIPS = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch and its truth. For images a row is a frame, for videos a clip."""

    frames: Tensor  # [N, 3, 96, 96] or [N, n, 3, 96, 96]
    prompts: list[str]  # N captions as shown
    qualities: Tensor  # [N, 1] quality, or [N, 2] VQ and MQ
    aligned: Tensor  # [N] alignment with the shown caption
    words: Tensor  # [N, W] degree of truth of each word
    places: Tensor  # [N, n, 4] cosine and sine of the object's x, then y; empty for images


def draw_defects(rng: random.Random, *, still: bool = False) -> Defects:
    """A random mix: one clip in eight clean, others with one to three defects; ``still`` leaves out what needs time."""
    chosen: dict[str, float] = {}
    if rng.random() > 0.125:
        names = [*PICTURE, "morph"] if still else [*PICTURE, *MOVEMENT]
        for name in rng.sample(names, rng.choice((1, 1, 2, 2, 3))):
            chosen[name] = rng.random()
        if rng.random() < 0.05:
            chosen["fade"] = 1.0
        if rng.random() < 0.4:
            chosen["onset"] = rng.uniform(0.0, 0.6)
    wrong = wrong_words(rng, STATIC if still else tuple(VOCABULARY))
    wear = rng.random() if rng.random() < 0.8 else 0.0
    return Defects(**chosen, wear=wear, wrong=wrong)


def image_batch(captions: Sequence[Caption], rng: random.Random, clips: int = IMAGE_CLIPS) -> Batch:
    """``clips`` clips of random length, a few frames of each."""
    samples = []
    for _ in range(clips):
        length = rng.randint(IMAGE_FRAMES, 81)
        picked = sorted(rng.sample(range(length), IMAGE_FRAMES))
        scene = Scene.draw(rng.choice(captions), rng)
        samples.append(
            corrupt(scene, draw_defects(rng, still=True), length, rng.getrandbits(32), picked)
        )
    return stack_frames(samples)


def stack_frames(samples: Sequence[Sample]) -> Batch:
    """An image batch: every frame of every sample is a row."""
    return Batch(
        frames=torch.cat([s.frames for s in samples]),
        prompts=[s.caption.text for s in samples for _ in range(IMAGE_FRAMES)],
        qualities=torch.cat([s.quality for s in samples])[:, None],
        aligned=torch.cat([s.alignment for s in samples]),
        words=torch.cat([s.still_truth for s in samples]),
        places=torch.empty(0),
    )


def wrong_words(rng: random.Random, pool: Sequence[str]) -> tuple[str, ...]:
    """Which of a caption's attributes are exchanged before the clip is judged; none in a third of all clips."""
    count = rng.choice((0, 0, 1, 1, 2, 3, 4, 5))
    return tuple(rng.sample(list(pool), min(count, len(pool))))


def decoded_images(shelf: Decoded, rng: random.Random, clips: int = IMAGE_CLIPS) -> Batch:
    """``image_batch`` of clips that a decoder drew."""
    samples = []
    for _ in range(clips):
        picked = sorted(rng.sample(range(shelf.frames.shape[1]), IMAGE_FRAMES))
        samples.append(shelf.draw(rng, picked, wrong_words(rng, STATIC)))
    return stack_frames(samples)


def decoded_videos(shelf: Decoded, rng: random.Random, clips: int = VIDEO_CLIPS) -> Batch:
    """``video_batch`` of clips that a decoder drew."""
    count, most = len(seen_frames(clip_length(rng))), shelf.frames.shape[1]
    samples = []
    for _ in range(clips):
        first = rng.randint(0, most - min(count, most))
        picked = range(first, min(first + count, most))
        samples.append(shelf.draw(rng, picked, wrong_words(rng, tuple(VOCABULARY))))
    return stack_clips(samples)


def clip_length(rng: random.Random) -> int:
    """Frames of one to ten chunks, the first of which is shorter; now and then a window that begins later."""
    chunks = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 7, 9, 10))
    return CHUNK * chunks - 3 * (rng.random() < 0.8)


def video_batch(
    captions: Sequence[Caption],
    rng: random.Random,
    clips: int = VIDEO_CLIPS,
    length: int | None = None,
) -> Batch:
    """``clips`` clips of one length; only the frames that the reward looks at are rendered."""
    length = length or clip_length(rng)
    samples = [
        corrupt(
            Scene.draw(rng.choice(captions), rng),
            draw_defects(rng),
            length,
            rng.getrandbits(32),
            seen_frames(length),
        )
        for _ in range(clips)
    ]
    return stack_clips(samples)


def stack_clips(samples: Sequence[Sample]) -> Batch:
    """A video batch of clips with equally many seen frames."""
    angles = 2 * math.pi * torch.stack([s.centres for s in samples]) / SIZE  # [N, n, 2]
    return Batch(
        frames=torch.stack([s.frames for s in samples]),
        prompts=[s.caption.text for s in samples],
        qualities=torch.tensor([[s.visual, s.motion] for s in samples]),
        aligned=torch.tensor([s.aligned for s in samples]),
        words=torch.stack([s.truth for s in samples]),
        places=torch.stack((angles.cos(), angles.sin()), 3).flatten(2),
    )


def to_device(batch: Batch, device: str) -> Batch:
    """The same batch with its tensors on ``device``."""
    moved = {
        name: getattr(batch, name).to(device)
        for name in ("frames", "qualities", "aligned", "words", "places")
    }
    return Batch(prompts=batch.prompts, **moved)
