"""Train the embedded causal VAE on clips of the sprites world; resumable, CPU or GPU."""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.bench.sprites.muon import Pair
from runtime.bench.sprites.train_log import TrainLog, atomic_save, pick_device
from runtime.bench.sprites.world import Scene, render, training_captions
from runtime.generators.vae import VAEConfig, WanVAE

CONFIG: dict[str, Any] = {
    "latent_channels": 12,
    "base_dim": 16,
    "decoder_base_dim": 32,
    "dim_mult": (1, 2, 3),
    "res_blocks": 1,
    "space_downsample": (True, False),
    "time_downsample": (True, True),
    "mid_attention": False,
    "patch": 6,
}
CLIP_FRAMES = 13
LATENT_NOISE = 0.05
OBJECT_WEIGHT = 4.0


def draw_clips(count: int, rng: random.Random, captions: list) -> Tensor:
    """Random short clips [count, CLIP_FRAMES, 3, H, W] in [0, 1], each from a random moment of a random scene."""
    scenes = [Scene.draw(rng.choice(captions), rng) for _ in range(count)]
    return torch.stack([render(scene, CLIP_FRAMES, rng.randrange(64)) for scene in scenes])


def loss_of(vae: WanVAE, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted L1 + MSE of the reconstruction, and the plain MSE in [0, 1] units for PSNR."""
    with torch.autocast(clips.device.type, torch.bfloat16):
        mean, _ = vae.moments(clips)
        noisy = mean + LATENT_NOISE * torch.randn_like(mean)
        out = vae.decode_train(noisy)
    error = (out.float() + 1) / 2 - clips
    paper = clips[
        :, :, :, :1, :1
    ]  # a corner pixel is background nearly always; the weight need not be exact
    weight = 1 + OBJECT_WEIGHT * ((clips - paper).abs().amax(2, keepdim=True) > 0.05)
    squared = error.square()
    loss = (weight * (error.abs() + 4 * squared)).mean() + 1e-3 * mean.float().square().mean()
    return loss, squared.mean()


@torch.no_grad()
def start_as_image_model(vae: WanVAE) -> None:
    """Begin as an autoencoder of single frames whose residual branches are closed; time is learned from there."""
    for name, module in vae.named_modules():
        if not isinstance(module, torch.nn.Conv3d) or module.kernel_size[0] == 1:
            continue
        module.weight[:, :, :-1] *= 0.1
        if name.endswith("time_conv"):
            ways = module.out_channels // module.in_channels  # 1 going down in time, 2 going up
            module.weight *= 0.1
            eye = torch.eye(module.in_channels).repeat(ways, 1).to(module.weight)
            module.weight[:, :, -1, 0, 0] += eye
        elif name.endswith("residual.6"):
            module.weight *= 0.2
        else:
            module.weight *= 1.7  # variance of three taps in one


@torch.no_grad()
def latent_statistics(vae: WanVAE, captions: list, clips: int = 64) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation of raw latents over fresh clips."""
    means = vae.moments(draw_clips(clips, random.Random(1), captions))[0].float()
    flat = means.transpose(0, 2).flatten(1)
    return flat.mean(1), flat.std(1)


def train(out: Path, steps: int, batch: int, rate: float, device: torch.device) -> Path:
    """Run to ``steps``, resuming from ``out/vae.pt`` when it exists; writes ``out/vae.safetensors`` and its config."""
    torch.manual_seed(0)
    captions = training_captions()
    vae = WanVAE(VAEConfig(**CONFIG)).to(device)
    start_as_image_model(vae)
    optimiser = Pair(
        vae, edges=("encoder.conv1", "decoder.head", "encoder.head", "decoder.conv1", "gamma")
    )
    log = TrainLog(out / "vae.log")
    state, first = out / "vae.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        vae.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    began = time.monotonic()
    for step in range(first, steps):
        clips = draw_clips(batch, random.Random(step), captions).to(device)
        loss, mse = loss_of(vae, clips)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.step(rate * min(1.0, (step + 1) / 50) * falling)
        log.add(step, loss=loss, psnr=-10 * mse.detach().log10())
        if step % 20 == 19:
            log.write(step, seconds=time.monotonic() - began)
        if step % 200 == 199 or step == steps - 1:
            atomic_save(
                {"model": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1},
                state,
            )
    mean, std = latent_statistics(vae.cpu(), captions)
    config = {**CONFIG, "latent_mean": tuple(mean.tolist()), "latent_std": tuple(std.tolist())}
    log.finish(out / "vae.safetensors", vae.state_dict(), config, steps)
    return out / "vae.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    train(args.out, args.steps, args.batch, args.rate, pick_device(args.device))


if __name__ == "__main__":
    main()
