"""Render training clips and encode them with the trained VAE, in shards that training can pick up as they arrive."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from runtime.bench.sprites.train_log import atomic_save, pick_device
from runtime.bench.sprites.world import Scene, render, training_captions
from runtime.generators.vae import VAEConfig, WanVAE

CLIP_FRAMES = 81


def load_vae(path: Path, device: torch.device) -> WanVAE:
    """The VAE written by ``train_vae``."""
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    vae = WanVAE(
        VAEConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    )
    vae.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return vae.to(device).eval()


@torch.no_grad()
def encode_shard(vae: WanVAE, index: int, clips: int, device: torch.device) -> dict:
    """One shard: latents [clips, 21, C, h, w] float16 and the captions' texts."""
    rng, captions = random.Random(f"shard {index}"), training_captions()
    latents, texts = [], []
    for _ in range(0, clips, 4):
        scenes = [Scene.draw(rng.choice(captions), rng) for _ in range(4)]
        frames = torch.stack([render(scene, CLIP_FRAMES) for scene in scenes]).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            latents.append(vae.encode(frames, piece=8).to("cpu", torch.float16))
        texts += [scene.caption.text for scene in scenes]
    return {"latents": torch.cat(latents), "captions": texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("out/train/vae.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("out/train/corpus"))
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--clips", type=int, default=256, help="clips a shard")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    vae = load_vae(args.vae, device)
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.shards):
        path = args.out / f"shard_{index:03d}.pt"
        if not path.exists():
            atomic_save(encode_shard(vae, index, args.clips, device), path)


if __name__ == "__main__":
    main()
