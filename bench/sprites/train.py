"""``python -m runtime.bench.sprites.train``: everything the embedded model is made of, in order, from nothing.

VAE and its decoder once more, latents of clean and of wandering training clips, text encoder and DiT in three runs, the
tiny decoder, then the two rewards, each in two runs. Every stage resumes from its checkpoint in ``--out`` (earlier runs: in
``first`` and ``second`` there), logs to a text file there and is skipped once its weights exist. ``--install`` copies the result into the package.
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
    first, corpus, decoded = out / "first", out / "corpus", out / "decoded.pt"
    judges = out / "decoded_held_out.pt"
    second, begun, again = out / "second", out / "first" / "dit.pt", out / "second" / "dit.pt"
    early, vae = first / "vae.safetensors", out / "vae.safetensors"
    encode = ["encode_clips", "--vae", str(vae), "--out", str(corpus)]
    dit = ["train_dit", "--vae", str(vae), "--corpus", str(corpus)]
    steps: list[tuple[Path, list[str | Path]]] = [
        (early, ["train_vae", "--out", first]),
        (vae, ["train_decoder", "--start", early, "--out", out]),
        (corpus / "shard_019.pt", [*encode, "--shards", "20"]),
        (corpus / "wandering_015.pt", [*encode, "--wandering", "--shards", "16", "--clips", "192"]),
        (first / "dit.safetensors", [*dit, "--out", first]),
        (second / "dit.safetensors", [*dit, "--run", "second", "--start", begun, "--out", second]),
        (out / "dit.safetensors", [*dit, "--run", "third", "--start", again, "--out", out]),
        (out / "tiny_decoder.safetensors", ["train_tiny_decoder", "--vae", vae, "--out", out]),
        (decoded, ["decoded", "--vae", vae, "--out", decoded]),
        (judges, ["decoded", "--vae", vae, "--out", judges, "--held-out", "--clips", "48"]),
    ]
    for which in REWARDS:
        name = f"{which}.safetensors"
        teach: list[str | Path] = ["train_rewards", "--which", which, "--resume"]
        more: list[str | Path] = [
            "--start",
            first / name,
            "--decoded",
            decoded,
            "--judged-by",
            judges,
        ]
        steps += [
            (first / name, [*teach, "--out", first]),
            (out / name, [*teach, "--out", out, "--steps", "700", "--rate", "1e-3", *more]),
        ]
    return [(result, [*map(str, words), "--device", device]) for result, words in steps]


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
