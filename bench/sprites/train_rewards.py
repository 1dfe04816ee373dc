"""Train and judge the two small rewards: `python -m runtime.bench.sprites.train_rewards --which image|video --out DIR`.

Every batch is drawn fresh from the training captions with defects of known severity; captions that are held out are used
for nothing but the rank correlations that are printed and stored beside the weights.

Legend: N frames or clips of a batch, n seen frames of a clip, W words.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from runtime.bench.sprites.corrupt import STATIC_WORDS, WORDS
from runtime.bench.sprites.decoded import HELD_OUT, Decoded
from runtime.bench.sprites.reward_batches import (
    Batch,
    decoded_images,
    decoded_videos,
    image_batch,
    to_device,
    video_batch,
)
from runtime.bench.sprites.reward_report import evaluate, read
from runtime.bench.sprites.train_log import pick_device
from runtime.bench.sprites.world import RADII, SHAPES, training_captions
from runtime.rewards.sprites_image import ImageNet
from runtime.rewards.sprites_net import known_words
from runtime.rewards.sprites_video import VideoNet

log = logging.getLogger("train_rewards")

BETAS = (0.9, 0.98)
SAVE_EVERY = 200  # steps between checkpoints


def mentions(prompts: Sequence[str], vocabulary: tuple[str, ...]) -> Tensor:
    """[N, W] with 1 / count at the words of each caption, so that a sum is a mean over its words."""
    rows = torch.zeros(len(prompts), len(vocabulary))
    for row, prompt in zip(rows, prompts, strict=True):
        ids = known_words(prompt, vocabulary)
        row[list(ids)] = 1 / max(len(ids), 1)
    return rows


def loss_of(
    net: nn.Module, batch: Batch, vocabulary: tuple[str, ...]
) -> tuple[Tensor, dict[str, float]]:
    """The training loss and its parts."""
    qualities, logits, places = read(net, batch.frames)
    aligned = (logits.sigmoid() * mentions(batch.prompts, vocabulary).to(logits)).sum(1)
    parts = {
        "quality": 4 * F.smooth_l1_loss(qualities, batch.qualities, beta=0.1),
        "words": F.binary_cross_entropy_with_logits(logits, batch.words),
        "aligned": 2 * F.mse_loss(aligned, batch.aligned),
    }
    if places.numel():
        shown = batch.words[:, : len(SHAPES)].amax(1)[
            :, None, None
        ]  # an absent object has no place
        parts["places"] = 0.5 * (shown * (places - batch.places) ** 2).mean()
    return sum(parts.values()), {name: part.item() for name, part in parts.items()}


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run is asked to do."""

    which: str
    out: Path
    steps: int
    seed: int
    resume: bool
    device: str
    peak: float  # learning rate
    start: Path | None = None  # weights of a reward to start from, where layers are the same
    frozen: bool = False  # leave the frame encoder as it is: a third of the cost of a step
    decoded: Path | None = None  # clips as a decoder shows them; then half of all batches are these
    judged_by: Path | None = None  # such clips of held-out captions

    def rate(self, step: int) -> float:
        """One warm-up, then a cosine down to a fiftieth."""
        warm = min(1.0, (step + 1) / 100)
        return self.peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def _start_from_(net: nn.Module, path: Path) -> None:
    """Copy into ``net`` every stored tensor of the same name and shape."""
    own = net.state_dict()
    stored = load_file(path)
    same = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict(same, strict=False)
    log.info("started %d of %d tensors from %s", len(same), len(own), path.name)


def train(run: Run) -> dict[str, float]:
    """Train, keep a checkpoint now and then, write weights and facts; returns the held-out correlations."""
    torch.manual_seed(run.seed)
    vocabulary = WORDS[:STATIC_WORDS] if run.which == "image" else WORDS
    net = (ImageNet if run.which == "image" else VideoNet)(len(vocabulary)).to(run.device)
    if run.start:
        _start_from_(net, run.start)
    if run.frozen:
        net.encoder.requires_grad_(False)
    optimiser = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad],
        lr=run.peak,
        betas=BETAS,
        weight_decay=0.01,
    )
    checkpoint = run.out / f"{run.which}.checkpoint.pt"
    first = 0
    if run.resume and checkpoint.is_file():
        stored = torch.load(checkpoint, map_location=run.device, weights_only=True)
        net.load_state_dict(stored["net"])
        optimiser.load_state_dict(stored["optimiser"])
        first = stored["step"]
        log.info("resumed %s at step %d", run.which, first)
    draw = batches(run)
    began = time.monotonic()
    for step in range(first, run.steps):
        # Each step has its own seed, so a resumed run sees the batches that an unbroken one would have seen.
        batch = to_device(draw(random.Random(f"{run.seed}/{step}")), run.device)
        for group in optimiser.param_groups:
            group["lr"] = run.rate(step)
        loss, parts = loss_of(net, batch, vocabulary)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            seconds = time.monotonic() - began
            log.info(
                "step %d %.0f s %s",
                step,
                seconds,
                " ".join(f"{k} {v:.4f}" for k, v in parts.items()),
            )
        if (step + 1) % SAVE_EVERY == 0:
            torch.save(
                {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1},
                checkpoint,
            )
    return save(net.cpu(), vocabulary, run)


def batches(run: Run) -> Callable[[random.Random], Batch]:
    """Draws a batch: corrupted renders, and where there are any, decoded clips every other time."""
    captions, image = training_captions(), run.which == "image"
    rendered = partial(image_batch if image else video_batch, captions)
    if run.decoded is None:
        return rendered
    decoded = partial(decoded_images if image else decoded_videos, Decoded.load(run.decoded))
    return lambda rng: rendered(rng) if rng.random() < 0.5 else decoded(rng)


def save(net: nn.Module, vocabulary: tuple[str, ...], run: Run) -> dict[str, float]:
    """Write ``{which}.safetensors`` and ``{which}.json``; returns the held-out correlations."""
    correlations = evaluate(net, vocabulary, Decoded.load(run.judged_by) if run.judged_by else None)
    save_file(
        {key: tensor.contiguous() for key, tensor in net.state_dict().items()},
        run.out / f"{run.which}.safetensors",
    )
    facts = {
        "reward": f"sprites-{run.which}",
        "words": list(vocabulary),
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": run.steps,
        "seed": run.seed,
        "started_from": run.start.name if run.start else None,
        "world_radii": list(RADII),
        "held_out_captions": HELD_OUT,
        "held_out_spearman": correlations,
    }
    (run.out / f"{run.which}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    for name, value in correlations.items():
        log.info("held-out rank correlation, %s: %.3f", name, value)
    return correlations


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.sprites.train_rewards", description=__doc__
    )
    parser.add_argument("--which", choices=("image", "video"), required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for weights, facts, checkpoint and log"
    )
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out, if there is one"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument(
        "--start", type=Path, help="weights to start from, where layers are the same"
    )
    parser.add_argument("--decoded", type=Path, help="clips written by ``decoded``")
    parser.add_argument("--judged-by", type=Path, help="the same of held-out captions")
    parser.add_argument("--frozen", action="store_true", help="do not train the frame encoder")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    handlers = [
        logging.StreamHandler(),
        logging.FileHandler(given.out / f"rewards_{given.which}.log"),
    ]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    train(
        Run(
            given.which,
            given.out,
            given.steps,
            given.seed,
            given.resume,
            str(pick_device(given.device)),
            given.rate,
            given.start,
            given.frozen,
            given.decoded,
            given.judged_by,
        )
    )


if __name__ == "__main__":
    main()
