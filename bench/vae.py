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
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import runtime
from runtime.bench.op import Case, main
from runtime.bench.sprites.encode_clips import load_vae
from runtime.bench.sprites.world import Scene, held_out_captions, render
from runtime.generators.decoder_state import DecoderState
from runtime.generators.tiny_decoder import TinyConfig, TinyDecoder, load_tiny, tiny_flops
from runtime.generators.vae import WAN21, WanVAE
from runtime.generators.vae_cost import decoder_flops
from runtime.settings import CHUNK_FRAMES
from runtime.weights import fill_random_

EMBEDDED = Path(runtime.__file__).parent / "generators" / "sprites"
SIZES = {"embedded": (12, 8, 8), "full": (16, 60, 104)}  # C, h, w
ROWS = 4
PLAIN_ROWS = {
    "embedded": 4,
    "full": 2,
}  # of four, the enlarged picture has more elements than 32 bits count
DTYPES = {"embedded": torch.float32, "full": torch.bfloat16}
TILE = {"embedded": 4, "full": 32}
Decode = Callable[[Tensor, DecoderState | None], tuple[Tensor, DecoderState]]


def cases(device: torch.device, size: str) -> Iterator[Case]:
    if size == "full" and device.type == "cpu":
        print("vae: full size is timed on a GPU only", file=sys.stderr)
        return
    dtype = DTYPES[size]
    plain, laid, prepared = (full_decoder(size, device, dtype) for _ in range(3))
    laid.prepare_(fold=False)
    prepared.prepare_()
    tiny = tiny_decoder(size, device, dtype)
    chunks = two_chunks(prepared, size)
    exact = reference(plain, chunks, torch.float64 if size == "embedded" else torch.float32)
    fast = {
        "prepared": prepared.decode_next,
        "tiles": partial(prepared.decode_next, tile=TILE[size]),
    }
    every = {"plain": plain.decode_plain, "laid out": laid.decode_next, **fast}
    yield case("vae", chunks[:, : PLAIN_ROWS[size]], every, exact, plain)
    if PLAIN_ROWS[size] < ROWS:
        yield case("vae", chunks, fast, exact, plain)
    both = {"full": prepared.decode_next, "tiny": tiny.decode}
    yield case("vae tiny", chunks, both, exact, tiny, comparable=size == "embedded")


def case(
    op: str,
    chunks: Tensor,
    ways: Mapping[str, Decode],
    exact: Tensor,
    model: WanVAE | TinyDecoder,
    comparable: bool = True,
) -> Case:
    """Every way of decoding the second of two chunks [2, B, T, C, h, w] after the first; ``model`` says what it costs."""
    runs, errors = {}, {}
    opening, latents = chunks
    rows, latent_frames, _, height, width = latents.shape
    for impl, decode in ways.items():
        state = decode(opening, None)[1]
        runs[impl] = partial(decode, latents, state)
        frames = runs[impl]()[0]
        compared = min(len(exact), rows)
        error = (frames[:compared].to(exact.dtype) - exact[:compared]).abs().max()
        errors[impl] = float(error) if comparable or impl != "tiny" else math.nan
    count = decoder_flops if isinstance(model, WanVAE) else tiny_flops
    flops = count(model.config, rows, height, width, latent_frames)
    name = f"B={rows} T={latent_frames} {width}x{height} {flops / 1e9:.3g} GFLOP"
    # The two of a tiny case do not do the same work, so no rate is told of it but the name.
    shared = isinstance(model, WanVAE)
    moved = latents.nbytes + frames.nbytes
    return Case(op, name, latents.dtype, runs, errors, moved, flops if shared else 0)


def two_chunks(vae: WanVAE, size: str) -> Tensor:
    """[2, ROWS, T, C, h, w]: of clips of the embedded world, or random at full size."""
    device, dtype = vae.conv2.weight.device, vae.conv2.weight.dtype
    if size == "full":
        source = torch.Generator(device).manual_seed(0)
        shape = (2, ROWS, CHUNK_FRAMES, *SIZES[size])
        return torch.randn(shape, generator=source, device=device).to(dtype)
    rng, length = random.Random(0), 1 + (2 * CHUNK_FRAMES - 1) * vae.config.time_stride
    scenes = [Scene.draw(caption, rng) for caption in held_out_captions(ROWS)]
    frames = torch.stack([render(scene, length) for scene in scenes]).to(device, dtype)
    latents = vae.encode(frames)
    return torch.stack(latents.split(CHUNK_FRAMES, dim=1))


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
    tiny.lay_out_(torch.channels_last)
    return tiny.eval()


def reference(vae: WanVAE, chunks: Tensor, dtype: torch.dtype) -> Tensor:
    """Frames of the second chunk by the plain way in ``dtype``; of the first row only in float32."""
    wide = WanVAE(vae.config)
    wide.load_state_dict(vae.state_dict())
    wide.to(chunks.device, dtype).eval()
    opening, latents = chunks.to(dtype) if dtype == torch.float64 else chunks[:, :1].to(dtype)
    with torch.backends.cudnn.flags(allow_tf32=False):
        _, state = wide.decode_plain(opening, None)
        return wide.decode_plain(latents, state)[0]


if __name__ == "__main__":
    sys.exit(main("vae", cases, "Latents of a chunk to its frames."))
