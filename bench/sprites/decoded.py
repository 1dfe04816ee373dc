"""Wandering clips as the decoder shows them, with their truth: what rewards meet when they judge a real generator.

``python -m runtime.bench.sprites.decoded --vae VAE --out FILE`` renders clips that have wandered for a while, passes them
through the VAE with a little noise on the latents, and keeps every second frame with how far the look had wandered.
``Decoded`` draws batches of them; degrees of truth follow from colour, outline, sharpness and pace alone.

Legend: N clips, n kept frames of a clip, W words.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.sprites.corrupt import (
    MOVEMENT_WEIGHT,
    PICTURE_WEIGHT,
    STATIC,
    STATIC_WORDS,
    VOCABULARY,
    WORDS,
    Sample,
    shown,
)
from runtime.bench.sprites.encode_clips import load_vae
from runtime.bench.sprites.train_log import atomic_save, pick_device
from runtime.bench.sprites.wander import OPENING, Wander, render_wandering
from runtime.bench.sprites.world import (
    BACKGROUNDS,
    COLOURS,
    SIZE,
    Caption,
    Scene,
    held_out_captions,
    training_captions,
)
from runtime.generators.vae import WanVAE

FRAMES, KEPT = 117, 59  # of a clip: ten chunks, and every second frame of them
LATENT_NOISE = 0.2  # largest
HELD_OUT, HELD_OUT_SEED = 96, 7  # captions that rewards are judged by, and nothing else
STILL = 0.25  # share of clips that do not wander at all
OLDEST = 40  # chunks
FAR_INK, FAR_PAPER, FAR_PACE = 0.45, 0.22, 0.6  # distances at which nothing of a word is true
FAR_BLUR = 3.5  # pixels, as in ``corrupt``
BAD_TAKES = 0.35  # share of clips whose sharpness and outline are worse than wandering makes them


def truth_of(caption: Caption, walk: Wander) -> Tensor:
    """Degree [n, W] in [0, 1] to which each word is true of each frame."""
    truth = torch.zeros(len(walk.morph), len(WORDS))
    truth[:, WORDS.index(caption.shape)] = 1 - walk.morph
    truth[:, WORDS.index(walk.other)] = walk.morph
    for table, word, moved, far in (
        (COLOURS, caption.colour, walk.ink, FAR_INK),
        (BACKGROUNDS, caption.background, walk.paper, FAR_PAPER),
    ):
        colour = (torch.tensor(table[word]) + moved).clamp(0, 1)
        for name, ideal in table.items():
            gap = (colour - torch.tensor(ideal)).norm(dim=1)
            truth[:, WORDS.index(name)] = (1 - gap / far).clamp(0, 1)
    truth[:, WORDS.index(caption.motion)] = 1
    truth[:, WORDS.index(caption.speed)] = (1 - (walk.pace - 1).abs() / FAR_PACE).clamp(0, 1)
    return truth


def sample_of(
    frames: Tensor, centres: Tensor, caption: Caption, told: Caption, walk: Wander
) -> Sample:
    """The truth about a clip that looks as ``walk`` says and is judged against the caption ``told``."""
    truth = truth_of(caption, walk)
    picture = 1 - PICTURE_WEIGHT["blur"] * (walk.blur / FAR_BLUR).clamp(max=1)
    picture = picture * (1 - 0.5 * 4 * walk.morph * (1 - walk.morph))
    moved = {
        "ink_drift": (walk.ink - walk.ink[0]).norm(dim=1).max() / FAR_INK,
        "paper_drift": (walk.paper - walk.paper[0]).norm(dim=1).max() / FAR_PAPER,
        "morph": walk.morph.max() - walk.morph.min(),
    }
    motion = 1.0
    for name, amount in moved.items():
        motion *= 1 - MOVEMENT_WEIGHT[name] * min(float(amount), 1.0)
    columns = [WORDS.index(getattr(told, name)) for name in VOCABULARY]
    return Sample(
        frames=frames,
        caption=told,
        quality=picture,
        alignment=truth[:, columns[: len(STATIC)]].mean(1),
        visual=float(picture.mean()),
        motion=motion,
        aligned=float(truth.mean(0)[columns].mean()),
        truth=truth.mean(0),
        still_truth=truth[:, :STATIC_WORDS],
        centres=centres,
    )


@dataclass(frozen=True)
class Decoded:
    """Clips on a shelf, and how each had wandered."""

    frames: Tensor  # [N, n, 3, 96, 96] uint8
    centres: Tensor  # [N, n, 2] pixels
    captions: tuple[Caption, ...]
    walks: tuple[Wander, ...]

    @staticmethod
    def load(path: Path) -> Decoded:
        stored = torch.load(path, weights_only=True)
        return Decoded(
            stored["frames"],
            stored["centres"],
            tuple(Caption(*words) for words in stored["captions"]),
            tuple(Wander(**walk) for walk in stored["walks"]),
        )

    def draw(self, rng: random.Random, picked: Sequence[int], wrong: Sequence[str]) -> Sample:
        """Some frames of some clip, judged against its caption with the words ``wrong`` exchanged."""
        index = rng.randrange(len(self.captions))
        rows = list(picked)
        frames = self.frames[index][rows].float() / 255
        told = shown(self.captions[index], wrong, rng)
        walk = self.walks[index].at(rows)
        return sample_of(frames, self.centres[index][rows], self.captions[index], told, walk)


def walk_of(scene: Scene, rng: random.Random) -> Wander:
    """How a clip looks that begins ``OLDEST`` chunks into a video at the latest."""
    if rng.random() < STILL:
        return Wander.draw(scene, OPENING + FRAMES, 0, rng).still()
    walk = Wander.draw(scene, OPENING + FRAMES, rng.randint(0, OLDEST), rng)
    if rng.random() < BAD_TAKES:
        walk = walk.worse(blur=rng.uniform(0, 2.5), morph=rng.uniform(0, 0.5))
    return walk


@torch.no_grad()
def make(vae: WanVAE, count: int, captions: Sequence[Caption], seed: str) -> dict:
    """``count`` clips as plain values, to be saved."""
    rng, source = random.Random(seed), torch.Generator().manual_seed(0)
    device = vae.latent_mean.device
    frames, centres, chosen, walks = [], [], [], []
    for _ in range(count):
        scene = Scene.draw(rng.choice(captions), rng)
        walk = walk_of(scene, rng)
        clip = render_wandering(scene, walk)[OPENING:].to(device)[None]
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(clip, piece=8)
            noise = torch.randn(latents.shape, generator=source).to(device)
            out = vae.decode_fresh(latents + LATENT_NOISE * rng.random() * noise, piece=8)
        kept = range(0, FRAMES, 2)
        frames.append((out[0, ::2].float() * 255).round().to("cpu", torch.uint8))
        clock = (walk.pace.cumsum(0) - walk.pace[0])[OPENING:]
        centres.append(torch.tensor([scene.position(clock[frame].item()) for frame in kept]) % SIZE)
        chosen.append([getattr(scene.caption, name) for name in Caption.__slots__])
        walks.append(walk.at([OPENING + frame for frame in kept]).table())
    return {
        "frames": torch.stack(frames),
        "centres": torch.stack(centres),
        "captions": chosen,
        "walks": walks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.sprites.decoded", description=__doc__
    )
    parser.add_argument("--vae", type=Path, default=Path("out/train/vae.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("out/train/decoded.pt"))
    parser.add_argument("--clips", type=int, default=480)
    parser.add_argument(
        "--held-out", action="store_true", help="of captions that training never sees, to judge by"
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    vae = load_vae(args.vae, pick_device(args.device))
    captions, seed = training_captions(), "decoded"
    if args.held_out:
        captions, seed = held_out_captions(HELD_OUT, HELD_OUT_SEED), "test"
    atomic_save(make(vae, args.clips, captions, seed), args.out)


if __name__ == "__main__":
    main()
