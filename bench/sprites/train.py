"""``python -m runtime.bench.sprites.train``: everything the embedded model is made of, in order, from nothing.

VAE, then latents of training clips, then text encoder and DiT, the tiny decoder, then the two rewards. Every stage resumes
from its checkpoint in ``--out``, logs to a text file there and is skipped once its weights exist. ``--install`` copies the
result into the package.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import runtime

PACKAGE = Path(runtime.__file__).parent
GENERATOR = ("vae", "dit", "text", "tiny_decoder")
REWARDS = ("image", "video")


def stages(out: Path, device: str) -> list[tuple[Path, list[str]]]:
    """What each stage writes last, and the command that writes it."""
    vae, corpus = out / "vae.safetensors", out / "corpus"
    on = ["--device", device]
    return [
        (vae, ["train_vae", "--out", str(out), *on]),
        (
            corpus / "shard_019.pt",
            ["encode_clips", "--vae", str(vae), "--out", str(corpus), "--shards", "20", *on],
        ),
        (
            out / "dit.safetensors",
            ["train_dit", "--vae", str(vae), "--corpus", str(corpus), "--out", str(out), *on],
        ),
        (
            out / "tiny_decoder.safetensors",
            ["train_tiny_decoder", "--vae", str(vae), "--out", str(out), *on],
        ),
        *(
            (out / f"{which}.safetensors", ["train_rewards", "--which", which, "--out", str(out)])
            for which in REWARDS
        ),
    ]


def install(out: Path) -> None:
    """Copy weights and their configurations to where the package looks for them."""
    for folder, names in (("generators", GENERATOR), ("rewards", REWARDS)):
        target = PACKAGE / folder / "sprites"
        target.mkdir(exist_ok=True)
        for name in names:
            for suffix in (".safetensors", ".json"):
                shutil.copyfile(out / (name + suffix), target / (name + suffix))
    shutil.copyfile(out / "tokenizer.json", PACKAGE / "generators" / "sprites" / "tokenizer.json")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench.sprites.train", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=Path("out/train"))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--install", action="store_true", help="copy the weights into the package at the end"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for result, (module, *options) in stages(args.out, args.device):
        if result.exists():
            print(f"{result} exists, skipping {module}", flush=True)
            continue
        print(f"{module}: log in {args.out}", flush=True)
        command = [sys.executable, "-m", f"runtime.bench.sprites.{module}", *options]
        code = subprocess.run(command, check=False).returncode
        if code or not result.exists():
            print(f"error: {module} stopped with code {code}; run again to resume", file=sys.stderr)
            return code or 1
    if args.install:
        install(args.out)
        print(f"installed into {PACKAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
