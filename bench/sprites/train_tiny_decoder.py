"""Distil the embedded full decoder into a tiny one, on latents of the sprites world; resumable, CPU or GPU."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from runtime.bench.sprites.encode_clips import load_vae
from runtime.bench.sprites.muon import Pair
from runtime.bench.sprites.train_log import TrainLog, atomic_save, pick_device
from runtime.bench.sprites.world import Caption, Scene, held_out_captions, render, training_captions
from runtime.generators.tiny_decoder import TinyConfig, TinyDecoder, load_tiny
from runtime.generators.vae import WanVAE

CONFIG = TinyConfig(
    latent_channels=12, widths=(64, 64, 48), blocks=2, space=(1, 2), time=(2, 2), patch=6
)
LATENTS = 4  # a clip
LATENT_NOISE = 0.1  # a DiT's latents are not quite an encoder's
OBJECT_WEIGHT = 4.0
NAME = "tiny_decoder"


@torch.no_grad()
def clips(
    vae: WanVAE, count: int, captions: list[Caption], rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Latents [count, LATENTS, C, h, w] and the full decoder's frames of them as bytes, [count, T, 3, H, W]."""
    device = vae.latent_mean.device
    source = torch.Generator(device).manual_seed(rng.randrange(1 << 31))
    length = 1 + (LATENTS - 1) * vae.config.time_stride
    latents, frames = [], []
    for _ in range(0, count, 4):
        scenes = [Scene.draw(rng.choice(captions), rng) for _ in range(4)]
        shown = torch.stack([render(s, length, rng.randrange(64)) for s in scenes]).to(device)
        clean = vae.encode(shown, piece=LATENTS)
        spread = LATENT_NOISE * rng.random()
        noise = torch.randn(clean.shape, generator=source, device=device)
        latents.append(clean + spread * noise)
        decoded = vae.decode_fresh(latents[-1], piece=LATENTS)
        frames.append((decoded * 255).round().to(torch.uint8))
    return torch.cat(latents), torch.cat(frames)


def error_of(tiny: TinyDecoder, latents: Tensor, frames: Tensor) -> Tensor:
    """What the tiny decoder shows less what the full one shows, in [0, 1] units, un-clamped."""
    raw, *_ = tiny.raw(latents, tiny.empty(latents))
    return raw[:, tiny.config.time_stride - 1 :] - frames.float() / 255


def loss_of(error: Tensor, frames: Tensor) -> Tensor:
    """L1 + MSE, more where there is something to see."""
    paper = frames[:, :, :, :1, :1].float()  # a corner pixel is background nearly always
    object_there = (frames.float() - paper).abs().amax(2, keepdim=True) > 12
    return ((1 + OBJECT_WEIGHT * object_there) * (error.abs() + 4 * error.square())).mean()


@torch.no_grad()
def psnr(tiny: TinyDecoder, latents: Tensor, frames: Tensor) -> float:
    """Of clamped frames against the full decoder's, in dB over all pixels."""
    shown, _ = tiny.decode(latents, None)
    return -10 * math.log10((shown.float() - frames.float() / 255).square().mean().item())


@dataclass(frozen=True)
class Run:
    """What is distilled from what, and for how long."""

    vae: Path
    out: Path
    steps: int
    clips: int  # made ahead, and drawn from
    start: Path | None = None  # a tiny decoder of an earlier decoder


def train(run: Run, device: torch.device) -> None:
    """Run to ``steps``, resuming from ``out``; writes the weights, their sizes and what they reach."""
    out, steps = run.out, run.steps
    torch.manual_seed(0)
    vae = load_vae(run.vae, device)
    log, saved_at = TrainLog(out / f"{NAME}.log"), out / f"{NAME}.pt"
    latents, frames = clips(vae, run.clips, training_captions(), random.Random(0))
    tiny = load_tiny(run.start, device, torch.float32) if run.start else TinyDecoder(CONFIG)
    tiny = tiny.to(device).train().requires_grad_(True)
    optimiser = Pair(tiny, edges=("decoder.1.", f"decoder.{len(tiny.decoder) - 1}."))
    first, batch, began = 0, 8, time.monotonic()
    if saved_at.exists():
        saved = torch.load(saved_at, weights_only=True, map_location=device)
        tiny.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    for step in range(first, steps):
        rows = random.Random(step).sample(range(len(latents)), batch)
        error = error_of(tiny, latents[rows], frames[rows])
        loss = loss_of(error, frames[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tiny.parameters(), 1.0)
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.step(4e-3 * min(1.0, (step + 1) / 50) * falling)
        log.add(step, loss=loss, psnr=-10 * error.detach().square().mean().log10())
        if step % 20 == 19:
            log.write(step, seconds=time.monotonic() - began)
        if step % 100 == 99 or step == steps - 1:
            whole = {"model": tiny.state_dict(), "optimiser": optimiser.state_dict()}
            atomic_save({**whole, "step": step + 1}, saved_at)
    finish(vae, tiny, out / f"{NAME}.safetensors", steps)


def finish(vae: WanVAE, tiny: TinyDecoder, path: Path, steps: int) -> None:
    """Write bfloat16 weights, their sizes, and how close they come on captions that training never saw."""
    weights = {k: v.to("cpu", torch.bfloat16).contiguous() for k, v in tiny.state_dict().items()}
    save_file(weights, path)
    facts = {"config": asdict(tiny.config), "steps": steps}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    device = vae.latent_mean.device
    fresh = clips(vae, 64, held_out_captions(64), random.Random(1))
    facts["psnr_to_full_decoder_db"] = round(
        psnr(load_tiny(path, device, torch.float32), *fresh), 2
    )
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("out/train/vae.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--clips", type=int, default=768, help="made ahead, and drawn from")
    parser.add_argument("--start", type=Path, help="a tiny decoder to begin with")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    run = Run(args.vae, args.out, args.steps, args.clips, args.start)
    train(run, pick_device(args.device))


if __name__ == "__main__":
    main()
