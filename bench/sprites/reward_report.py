"""How well a reward of the embedded world ranks what it never saw: Spearman correlations on held-out captions.

Legend: N frames or clips, n seen frames of a clip, W words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from runtime.bench.sprites.corrupt import MOVEMENT, PICTURE, Defects, corrupt
from runtime.bench.sprites.decoded import HELD_OUT, HELD_OUT_SEED, Decoded
from runtime.bench.sprites.reward_batches import (
    VIDEO_CLIPS,
    Batch,
    decoded_images,
    decoded_videos,
    image_batch,
    stack_clips,
    video_batch,
)
from runtime.bench.sprites.world import Caption, Scene, held_out_captions
from runtime.rewards.sprites_image import ImageNet
from runtime.rewards.sprites_net import agreement, known_words
from runtime.rewards.sprites_video import seen_frames


def read(net: nn.Module, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(qualities [N, 1 or 2], word logits [N, W], places) of either network."""
    reading = net(frames)
    if isinstance(net, ImageNet):
        return reading.quality[:, None], reading.words, torch.empty(0)
    return torch.stack((reading.visual, reading.motion), 1), reading.words, reading.places


def ranks(values: Tensor) -> Tensor:
    """Ranks of ``values`` [N], ties sharing their mean."""
    ordered, inverse, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (
        (ends - (counts.double() - 1) / 2)[inverse]
        if len(ordered) > 1
        else torch.zeros(len(values)).double()
    )


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two [N] tensors in [-1, 1]; 0 where one of them is constant."""
    a, b = (ranks(x.double()) for x in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = (a.norm() * b.norm()).item()
    return (a @ b).item() / scale if scale else 0.0


def _judge(
    net: nn.Module, batches: Sequence[Batch], vocabulary: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Predicted and true [N, 2 or 3] over ``batches``."""
    got, true = [], []
    for batch in batches:
        qualities, logits, _ = read(net, batch.frames)
        ids = [known_words(prompt, vocabulary) for prompt in batch.prompts]
        aligned = torch.stack(
            [agreement(row[None], i)[0] for row, i in zip(logits, ids, strict=True)]
        )
        got.append(torch.cat((qualities, aligned[:, None]), 1))
        true.append(torch.cat((batch.qualities, batch.aligned[:, None]), 1))
    return torch.cat(got), torch.cat(true)


def one_defect(net: nn.Module, name: str, captions: Sequence[Caption], rng: random.Random) -> float:
    """Rank correlation of the output that ``name`` should move with its true target, that defect acting alone."""
    samples = []
    still = isinstance(net, ImageNet)
    for caption in captions[:64]:
        defects = Defects(**{name: rng.random()}, wear=rng.random())
        scene, seed = Scene.draw(caption, rng), rng.getrandbits(32)
        samples.append(
            corrupt(scene, defects, 81, seed, (rng.randrange(81),) if still else seen_frames(81))
        )
    if still:
        got = read(net, torch.cat([s.frames for s in samples]))[0][:, 0]
        return spearman(got, torch.cat([s.quality for s in samples]))
    batch = stack_clips(samples)
    got = torch.cat([read(net, part)[0] for part in batch.frames.split(16)])
    column = 0 if name in PICTURE else 1
    return spearman(got[:, column], batch.qualities[:, column])


@torch.inference_mode()
def evaluate(
    net: nn.Module, vocabulary: tuple[str, ...], shelf: Decoded | None = None
) -> dict[str, float]:
    """Spearman rank correlations on held-out captions: each output with its target, mixed defects and one at a time.

    ``shelf``: clips as a decoder shows them, of held-out captions; the outputs are held against their truth, too.
    """
    net.eval()
    captions = held_out_captions(HELD_OUT, HELD_OUT_SEED)
    rng = random.Random(HELD_OUT_SEED)
    if isinstance(net, ImageNet):
        names, defects = ("quality", "alignment"), PICTURE
        batches = [image_batch(captions, rng) for _ in range(12)]
    else:
        names, defects = ("VQ", "MQ", "TA"), (*PICTURE, *MOVEMENT)
        batches = [
            video_batch(captions, rng, length=length)
            for length in (9, 33, 57, 81, 105, 117)
            for _ in range(6)
        ]
    got, true = _judge(net, batches, vocabulary)
    report = {name: spearman(got[:, i], true[:, i]) for i, name in enumerate(names)}
    report["score"] = spearman(got.sum(1), true.sum(1))
    if not isinstance(net, ImageNet):
        longest = slice(-12 * VIDEO_CLIPS, None)
        report |= {
            f"{name}, 105 to 117 frames": spearman(got[longest, i], true[longest, i])
            for i, name in enumerate(names)
        }
    report |= {f"only {name}": one_defect(net, name, captions, rng) for name in defects}
    if shelf is not None:
        rng = random.Random(HELD_OUT_SEED)
        draw = decoded_images if isinstance(net, ImageNet) else decoded_videos
        got, true = _judge(net, [draw(shelf, rng) for _ in range(12)], vocabulary)
        report |= {
            f"decoded, {name}": spearman(got[:, i], true[:, i]) for i, name in enumerate(names)
        }
        report["decoded, score"] = spearman(got.sum(1), true.sum(1))
    net.train()
    return {name: round(value, 4) for name, value in report.items()}
