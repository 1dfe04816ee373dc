"""Render training clips and encode them with the trained VAE, in shards that training can pick up as they arrive.

``--wandering`` renders clips that drift away from their caption (see ``wander``) and writes them under a name of their own.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from runtime.bench.sprites.train_log import atomic_save, pick_device
from runtime.bench.sprites.wander import Wander, render_wandering
from runtime.bench.sprites.world import Scene, render, training_captions
from runtime.generators.vae import VAEConfig, WanVAE

CLIP_FRAMES = 81
YOUNG = 0.4  # share of wandering clips that are watched from their beginning
OLDEST = 40  # chunks that may go by unseen after the first


def load_vae(path: Path, device: torch.device) -> WanVAE:
    """The VAE written by ``train_vae``."""
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    vae = WanVAE(
        VAEConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    )
    vae.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return vae.to(device).eval()


@torch.no_grad()
def encode_shard(vae: WanVAE, name: str, clips: int, wandering: bool, device: torch.device) -> dict:
    """One shard: latents [clips, 21, C, h, w] float16, the captions' texts, and for wandering clips the chunks that
    went by unseen after the first."""
    rng, captions = random.Random(name), training_captions()
    latents, texts, ages = [], [], []
    for _ in range(0, clips, 4):
        scenes = [Scene.draw(rng.choice(captions), rng) for _ in range(4)]
        if wandering:
            gone = [0 if rng.random() < YOUNG else rng.randint(1, OLDEST) for _ in scenes]
            walks = [
                Wander.draw(s, CLIP_FRAMES, age, rng) for s, age in zip(scenes, gone, strict=True)
            ]
            shown = [render_wandering(s, walk) for s, walk in zip(scenes, walks, strict=True)]
            ages += gone
        else:
            shown = [render(scene, CLIP_FRAMES) for scene in scenes]
        frames = torch.stack(shown).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            latents.append(vae.encode(frames, piece=8).to("cpu", torch.float16))
        texts += [scene.caption.text for scene in scenes]
    return {"latents": torch.cat(latents), "captions": texts, "ages": ages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path("out/train/vae.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("out/train/corpus"))
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--clips", type=int, default=256, help="clips a shard")
    parser.add_argument("--wandering", action="store_true", help="clips that drift")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    vae = load_vae(args.vae, device)
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.shards):
        name = f"wandering {index}" if args.wandering else f"shard {index}"
        path = args.out / f"{name.split()[0]}_{index:03d}.pt"
        if not path.exists():
            atomic_save(encode_shard(vae, name, args.clips, args.wandering, device), path)


if __name__ == "__main__":
    main()
