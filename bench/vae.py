"""Times the video decoder on a later chunk of every candidate: plain, laid out, folded, by tiles, and the tiny one.

    python -m runtime.bench.vae                               # tests first, then the table
    python -m runtime.bench.vae --device cuda --shapes full

"plain" is ``WanVAE.decode_plain``: weights as built, every step an operation of its own. "laid out" is ``prepare_`` without
folding, "prepared" with it, "tiles" the same by tiles. Rates count the products of the unfolded decoder, so a folded one may
pass its ceiling. The embedded decoders have their weights, full-size ones random values. Errors are the frames' (in
[0, 1]), against the plain decoder in float64, or in float32 at full size and for the first candidate only; the tiny one's
is how far it is from the full one at its worst pixel, and has no meaning for random weights.

On a CPU one chunk at full size is minutes of work, so that size runs on a GPU only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import runtime
from runtime.bench.op import Case, main
from runtime.bench.sprites.encode_clips import load_vae
from runtime.generators.decoder_state import DecoderState
from runtime.generators.tiny_decoder import TinyConfig, TinyDecoder, load_tiny, tiny_flops
from runtime.generators.vae import WAN21, WanVAE
from runtime.generators.vae_cost import decoder_flops
from runtime.weights import fill_random_

EMBEDDED = Path(runtime.__file__).parent / "generators" / "sprites"
LATENTS = {"embedded": (4, 3, 12, 8, 8), "full": (4, 3, 16, 60, 104)}  # B, T, C, h, w
DTYPES = {"embedded": torch.float32, "full": torch.bfloat16}
TILE = {"embedded": 4, "full": 32}
Decode = Callable[[Tensor, DecoderState | None], tuple[Tensor, DecoderState]]


def cases(device: torch.device, size: str) -> Iterator[Case]:
    if size == "full" and device.type == "cpu":
        print("vae: full size is timed on a GPU only", file=sys.stderr)
        return
    dtype, shape = DTYPES[size], LATENTS[size]
    source = torch.Generator(device).manual_seed(0)
    latents = torch.randn(shape, generator=source, device=device).to(dtype)
    plain, laid, prepared = (full_decoder(size, device, dtype) for _ in range(3))
    laid.prepare_(fold=False)
    prepared.prepare_()
    tiles = partial(prepared.decode_next, tile=TILE[size])
    ways = {
        "plain": plain.decode_plain,
        "laid out": laid.decode_next,
        "prepared": prepared.decode_next,
        "tiles": tiles,
    }
    rows, latent_frames, _, height, width = shape
    name = f"B={rows} T={latent_frames} {width}x{height}"
    exact = reference(plain, latents, torch.float64 if size == "embedded" else torch.float32)
    flops = decoder_flops(plain.config, rows, height, width, latent_frames)
    yield case("vae", name, latents, ways, exact, flops=flops)
    tiny = tiny_decoder(size, device, dtype)
    both = {"full": prepared.decode_next, "tiny": tiny.decode}
    share = tiny_flops(tiny.config, rows, height, width, latent_frames) / flops
    yield case("vae tiny", f"{name} flops {share:.0%}", latents, both, exact, size == "embedded")


def case(
    op: str,
    name: str,
    latents: Tensor,
    ways: Mapping[str, Decode],
    exact: Tensor,
    comparable: bool = True,
    *,
    flops: int = 0,
) -> Case:
    """Every way of decoding a chunk that follows itself."""
    runs, errors, moved = {}, {}, latents.nbytes
    for impl, decode in ways.items():
        state = decode(latents, None)[1]
        runs[impl] = partial(decode, latents, state)
        frames = runs[impl]()[0]
        error = (frames[: len(exact)].to(exact.dtype) - exact).abs().max()
        errors[impl] = float(error) if comparable or impl != "tiny" else math.nan
        moved = latents.nbytes + frames.nbytes + 2 * state.nbytes if flops else frames.nbytes
    return Case(op, name, latents.dtype, runs, errors, moved, flops)


def full_decoder(size: str, device: torch.device, dtype: torch.dtype) -> WanVAE:
    if size == "embedded":
        return load_vae(EMBEDDED / "vae.safetensors", device).to(dtype)
    with torch.device("meta"):
        vae = WanVAE(WAN21)
    fill_random_(vae, device, dtype)
    return vae.to(device, dtype).eval()


def tiny_decoder(size: str, device: torch.device, dtype: torch.dtype) -> TinyDecoder:
    if size == "embedded":
        return load_tiny(EMBEDDED / "tiny_decoder.safetensors", device, dtype)
    with torch.device("meta"):
        tiny = TinyDecoder(TinyConfig())
    fill_random_(tiny, device, dtype)
    return tiny.to(memory_format=torch.channels_last).eval()


def reference(vae: WanVAE, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Frames of the second of two equal chunks by the plain way in ``dtype``; of the first row only in float32."""
    wide = WanVAE(vae.config)
    wide.load_state_dict(vae.state_dict())
    wide.to(latents.device, dtype).eval()
    given = latents.to(dtype) if dtype == torch.float64 else latents[:1].to(dtype)
    with torch.backends.cudnn.flags(allow_tf32=False):
        _, state = wide.decode_plain(given, None)
        return wide.decode_plain(given, state)[0]


if __name__ == "__main__":
    sys.exit(main("vae", cases, "Latents of a chunk to its frames."))
