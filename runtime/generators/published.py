"""Published generators, a row each: what their files are called, what they were trained for, and how they become ours.

SOURCE is a folder with the files of a row, at its root or in folders below it, and beside them those of Wan2.1-T2V-1.3B
that all share (autoencoder, text encoder, tokeniser), in Wan's own layout or diffusers'.

Where the facts come from, and what nobody here has seen run:
    wan-1.3b      names and sizes: the Wan2.1 repository and its diffusers conversion. It is no streaming model: it was
                  trained to see all frames at once in 50 steps. Its steps here are for timing only.
    self-forcing  configs/self_forcing_dmd.yaml of guandeh17/Self-Forcing: steps 1000, 750, 500, 250, warped with shift 5,
                  chunks of 3; its inference takes generator_ema. Window: its cache of 21 latent frames.
    longlive      published configurations: the steps and shift of Self-Forcing, local_attn_size 12, sink_size 3, an
                  adapter of rank 256 and alpha 256 under generator_lora.
    causvid       configs/wan_causal_dmd.yaml of tianweiy/CausVid: steps 1000, 757, 522 (then 0), shift 8, chunks of 3,
                  top key generator. Those steps are warped already (that project's tracker, #10: the nearest of 50 steps with
                  shift 8 to 750 and 500): warp(280) = 756.8 and warp(120) = 521.7. Its other checkpoints differ.
Their sizes fit: 5.68 GB are Wan's 825 tensors in float32, CausVid's 11.35 GB twice that (its critic, which is not read),
and 2.80 GB twice an adapter of rank 256 on every linear of the blocks (the generator's and the critic's).
None of these files was opened when this was written: names inside the .pt files are as their projects' loaders expect
them (``model.`` before every name, with or without ``_fsdp_wrapped_module.``). A file that differs is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.generators import diffusers_sizes
from runtime.generators.dit_keys import from_diffusers_keys, unwrapped
from runtime.generators.folder import SHARED, Blueprint, Recipe, build_text
from runtime.generators.lora import merges
from runtime.generators.text import TextEncoder
from runtime.generators.text_keys import from_wan_keys
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.generators.vae_keys import from_diffusers_keys as vae_from_diffusers_keys
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.pickles import read_checkpoint
from runtime.shards import FolderWriter
from runtime.weights import Edit, compare_keys, quote, read_config

Conversion = Callable[[Path, FolderWriter], None]

PACKAGED = Path(__file__).parent / "wan_1_3b"  # the sizes of what has no config.json of its own
DIFFUSERS_DIT = "transformer/diffusion_pytorch_model.safetensors"
DIFFUSERS_VAE = "vae/diffusion_pytorch_model.safetensors"
DIFFUSERS_TEXT = "text_encoder/model.safetensors"
WAN_DIT = "diffusion_pytorch_model.safetensors"
WAN_VAE = "Wan2.1_VAE.pth"
WAN_TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
WAN_TOKENISER = "google/umt5-xxl/tokenizer.json"
DEPTH = 3  # folders below SOURCE that are searched
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Read:
    """A part of a generator in its source: its sizes, its weights under our names, all mapped, and what it is to be."""

    path: Path
    sizes: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    module: nn.Module  # on the meta device

    def __post_init__(self) -> None:
        wanted = {n: tuple(v.shape) for n, v in self.module.state_dict().items() if n not in SHARED}
        compare_keys(self.path, wanted, {n: tuple(t.shape) for n, t in self.tensors.items()})
        foreign = [f"{n} ({t.dtype})" for n, t in self.tensors.items() if t.dtype not in _FLOATS]
        if foreign:
            raise ValueError(f"{self.path}: want weights of floats, got {quote(sorted(foreign))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A row: how to find and read one published generator. Calling it is the conversion."""

    name: str
    origin: str  # the repository it is published in
    licence: str  # as its card says
    dit: str = ""  # the file of its DiT; "": that of the Wan folder
    nested: tuple[str, ...] = ()  # keys that may hold the weights, best first
    lora: str = ""  # the file of an adapter that belongs to it
    alpha: float = 256.0  # of the adapter
    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    fps: int = 16
    frame_size: tuple[int, int] = (480, 832)
    sizes: Path = field(default=PACKAGED)

    def __call__(self, source: Path, out: FolderWriter, lora: Path | None = None) -> None:
        """Write ``source`` as a folder that ``load_generator`` takes; ``lora``: an adapter that lies elsewhere.

        Everything is found, named, shaped and measured before the first byte is written, and an adapter is merged in
        float32 before anything is rounded. ValueError names what is missing, foreign or damaged.
        """
        base = find_base(source)
        dit, vae, text = self.read_dit(source, base), self.read_vae(base), self.read_text(base)
        assert isinstance(dit.module, WanDiT) and isinstance(vae.module, WanVAE)
        recipe = {
            "frame_size": list(self.frame_size),
            "steps": list(self.steps),
            "shift": self.shift,
            "fps": self.fps,
        }
        Blueprint(dit.module, vae.module, text.module, Recipe(**recipe))  # type: ignore[arg-type]
        tokeniser = base / ("tokenizer/tokenizer.json" if is_diffusers(base) else WAN_TOKENISER)
        TextEncoder.read_tokeniser(tokeniser)
        adapter = lora or (find_file(source, self.lora) if self.lora else None)
        edits = merges(dit.module, adapter, self.alpha) if adapter else {}
        parts = {"dit": dit, "vae": vae, "text": text}
        out.reserve(sum(out.stored_bytes(part.tensors.values()) for part in parts.values()))
        out.json("model", {"config": recipe})
        for name, part in parts.items():
            out.json(name, {"config": dict(part.sizes)})
            out.weights(name, edited(part.tensors, edits if name == "dit" else {}, out.dtype))
        out.copy("tokenizer.json", tokeniser)
        out.facts(generator=self.name, source=self.origin, licence=self.licence)
        out.facts(dit=dit.path.name, lora=adapter.name if adapter else "")

    def read_dit(self, source: Path, base: Path) -> Read:
        if self.dit or not is_diffusers(base):
            path = find_file(source, self.dit) if self.dit else base / WAN_DIT
            sizes = self._packaged("dit")
            tensors = unwrapped(path, read_checkpoint(path, self.nested))
        else:
            path, text_len = base / DIFFUSERS_DIT, self._packaged("dit")["text_len"]
            sizes = diffusers_sizes.dit_sizes(path.with_name("config.json"), text_len)
            tensors = from_diffusers_keys(read_checkpoint(path))
        return Read(path, sizes, tensors, built(path, lambda: WanDiT(DiTConfig(**sizes))))

    def read_vae(self, base: Path) -> Read:
        if is_diffusers(base):
            path = base / DIFFUSERS_VAE
            sizes = diffusers_sizes.vae_sizes(path.with_name("config.json"))
            tensors = vae_from_diffusers_keys(read_checkpoint(path), sizes["res_blocks"])
        else:
            path, sizes = base / WAN_VAE, self._packaged("vae")
            tensors = dict(read_checkpoint(path))
        frozen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()
        }
        return Read(path, sizes, tensors, built(path, lambda: WanVAE(VAEConfig(**frozen))))

    def read_text(self, base: Path) -> Read:
        if is_diffusers(base):
            path = base / DIFFUSERS_TEXT
            sizes = diffusers_sizes.text_sizes(path.with_name("config.json"))
            stored = read_checkpoint(path)
            tensors = {name: stored[name] for name in stored if name not in SHARED}
        else:
            path, sizes = base / WAN_TEXT, self._packaged("text")
            tensors = from_wan_keys(read_checkpoint(path))
        return Read(path, sizes, tensors, built(path, lambda: build_text(dict(sizes))))

    def _packaged(self, name: str) -> dict[str, Any]:
        return read_config(self.sizes / f"{name}.json")["config"]


def built(path: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` makes on the meta device. ValueError names the file whose sizes cannot be."""
    try:
        with torch.device("meta"):
            return build()
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path}: not the sizes of this model ({error})") from error


def edited(
    tensors: Mapping[str, Tensor], edits: Mapping[str, Edit], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """``tensors`` one at a time, those with an edit as it makes them, rounded once: to ``dtype``, None: to their own."""
    for name, tensor in tensors.items():
        yield name, edits[name](tensor).to(dtype or tensor.dtype) if name in edits else tensor


def is_diffusers(base: Path) -> bool:
    return not (base / WAN_VAE).is_file()


def find_base(source: Path) -> Path:
    """The folder with autoencoder and text encoder, in ``source`` or right below it. ValueError when there is none."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder")
    below = sorted(path for path in source.iterdir() if path.is_dir())
    for folder in (source, *below):
        if (folder / WAN_VAE).is_file() or (folder / "vae" / "config.json").is_file():
            return folder
    raise ValueError(
        f"{source}: want {WAN_VAE}, {WAN_TEXT} and {WAN_TOKENISER}, or the vae, text_encoder and tokenizer folders of "
        f"diffusers, in it or in a folder of it"
    )


def find_file(source: Path, name: str) -> Path:
    """The one file called ``name`` in ``source`` or below it. ValueError for none or several."""
    patterns = ["/".join(["*"] * depth + [name]) for depth in range(DEPTH + 1)]
    found = sorted(path for pattern in patterns for path in source.glob(pattern) if path.is_file())
    if len(found) != 1:
        several = f"; got {quote([str(path) for path in found])}" if found else ""
        raise ValueError(f"{source}: want one file {name} in it or below it{several}")
    return found[0]


def _rows(*rows: Checkpoint) -> dict[str, Checkpoint]:
    return {row.name: row for row in rows}


CHECKPOINTS: Mapping[str, Checkpoint] = _rows(
    Checkpoint(name="wan-1.3b", origin="Wan-AI/Wan2.1-T2V-1.3B", licence="Apache-2.0"),
    Checkpoint(
        name="longlive",
        origin="Efficient-Large-Model/LongLive-1.3B",
        licence="CC BY-NC-SA 4.0",
        dit="longlive_base.pt",
        nested=("generator", "generator_ema"),
        lora="lora.pt",
    ),
    Checkpoint(
        name="self-forcing",
        origin="gdhe17/Self-Forcing",
        licence="CC BY-NC-SA 4.0",
        dit="self_forcing_dmd.pt",
        nested=("generator_ema", "generator"),
    ),
    Checkpoint(
        name="causvid",
        origin="tianweiy/CausVid",
        licence="CC BY-NC-SA 4.0",
        dit="autoregressive_checkpoint/model.pt",
        nested=("generator",),
        steps=(1000, 280, 120),
        shift=8.0,
    ),
)
CONVERSIONS: dict[str, Conversion] = dict(CHECKPOINTS)
