"""Train the embedded decoder further with its latents held still: sharper outlines, and nothing that reads latents changes.

Clips wander (``wander``), so that the decoder knows colours between the palette's and outlines between the shapes. The
loss is on pixels and on their differences to the right and below, which is where a soft outline shows. Resumable.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from torch import Tensor

from runtime.bench.sprites.encode_clips import load_vae
from runtime.bench.sprites.muon import Pair
from runtime.bench.sprites.train_log import TrainLog, atomic_save, pick_device
from runtime.bench.sprites.wander import Wander, render_wandering
from runtime.bench.sprites.world import Caption, Scene, training_captions

CLIP_FRAMES, LATENTS = 13, 4
LATENT_NOISE = 0.12  # largest: a DiT's latents are not quite an encoder's
OBJECT_WEIGHT, EDGE_WEIGHT = 4.0, 1.0
WANDERING = 0.5  # share of clips
OLDEST = 40  # chunks


def draw_clips(count: int, rng: random.Random, captions: list[Caption]) -> Tensor:
    """Short clips [count, CLIP_FRAMES, 3, H, W] in [0, 1], some of which have wandered for a while."""
    clips = []
    for _ in range(count):
        scene = Scene.draw(rng.choice(captions), rng)
        age = rng.randint(0, OLDEST) if rng.random() < WANDERING else 0
        first = rng.choice((0, 9, 9, 9))
        wander = Wander.draw(scene, first + CLIP_FRAMES, age, rng)
        if not age:
            wander = wander.still()
        clips.append(render_wandering(scene, wander)[first:])
    return torch.stack(clips)


def loss_of(shown: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted L1 and squares of pixels and of their differences; the plain MSE in [0, 1] units for PSNR."""
    error = (shown.float() + 1) / 2 - clips
    paper = clips[:, :, :, :1, :1]  # a corner pixel is background nearly always
    weight = 1 + OBJECT_WEIGHT * ((clips - paper).abs().amax(2, keepdim=True) > 0.05)
    across, down = error.diff(dim=-1), error.diff(dim=-2)
    edges = (weight[..., 1:] * across.abs()).mean() + (weight[..., 1:, :] * down.abs()).mean()
    squared = error.square()
    return (weight * (error.abs() + 4 * squared)).mean() + EDGE_WEIGHT * edges, squared.mean()


def train(
    start: Path, out: Path, steps: int, batch: int, rate: float, device: torch.device
) -> None:
    """Run to ``steps`` from the VAE at ``start``, resuming from ``out/decoder.pt``; writes ``out/vae.safetensors``."""
    torch.manual_seed(0)
    vae = load_vae(start, device)
    vae.requires_grad_(False)
    trained = [vae.decoder, vae.conv2]
    for module in trained:
        module.requires_grad_(True)
    optimiser = Pair(vae, edges=("decoder.head", "decoder.conv1", "conv2", "gamma"))
    log, state, first = TrainLog(out / "decoder.log"), out / "decoder.pt", 0
    average = {k: v.detach().clone() for k, v in vae.state_dict().items()}
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        vae.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, first = saved["average"], saved["step"]
    captions, began = training_captions(), time.monotonic()
    for step in range(first, steps):
        clips = draw_clips(batch, random.Random(f"decoder {step}"), captions).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(clips, piece=LATENTS)
            spread = LATENT_NOISE * torch.rand(len(clips), 1, 1, 1, 1, device=device)
            shown = vae.decode_train(latents + spread * torch.randn_like(latents))
        loss, mse = loss_of(shown, clips)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for m in trained for p in m.parameters()], 1.0)
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.step(rate * min(1.0, (step + 1) / 50) * falling)
        for name, value in vae.state_dict().items():
            average[name].lerp_(value, 0.01)
        log.add(step, loss=loss, psnr=-10 * mse.detach().log10())
        if step % 20 == 19:
            log.write(step, seconds=time.monotonic() - began)
        if step % 200 == 199 or step == steps - 1:
            saved = {"model": vae.state_dict(), "average": average, "step": step + 1}
            atomic_save({**saved, "optimiser": optimiser.state_dict()}, state)
    config = json.loads(start.with_suffix(".json").read_text())["config"]
    log.finish(out / "vae.safetensors", average, config, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, default=Path("out/train/first/vae.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args.start, args.out, args.steps, args.batch, args.rate, pick_device(args.device))


if __name__ == "__main__":
    main()
