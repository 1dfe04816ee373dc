"""HPSv3 and VideoAlign from their authors' files into the folders that ``Judge.load`` reads.

    hpsv3        HPSv3.safetensors, or a .pt or .pth with the same tensors under the key "model"
    videoalign   model_config.json and checkpoint-<step>/ with model.pth, or with adapter_model.safetensors,
                 adapter_config.json and non_lora_state_dict.pth on top of the backbone's own weights
    both         a backbone's config.json and tokenizer.json beside them or one folder below; rubric.txt if there is one

Tensors go from mapped files into shards one at a time; LoRA is merged in float32 on the way. Names and shapes are compared
with the network's before the first tensor is read.

Source  key names: transformers (4.45 and the layout since 4.52), PEFT; what is trained and how it is saved: Ma et al.,
        HPSv3, 2025 and Liu et al., VideoAlign, 2025.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from runtime.pickles import read_checkpoint
from runtime.rewards import hpsv3, published_imagereward, published_mps, videoalign
from runtime.rewards.peft_keys import Names, merged_shapes, sort_keys
from runtime.rewards.qwen2vl import Qwen2VL, Qwen2VLConfig
from runtime.rewards.qwen2vl_judge import Kind
from runtime.rewards.qwen2vl_words import read_rubric, rubric_command
from runtime.shards import FolderWriter
from runtime.weights import compare_keys, read_config

MAX_TOKENISER_BYTES = 64 << 20
HPSV3_FILES = (
    "HPSv3.safetensors",
    "HPSv3.pth",
    "HPSv3.pt",
    "model.safetensors",
    "model.pth",
    "model.pt",
)
NESTED = ("model", "state_dict")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Papers:
    """What lies around the weights: where to look for it, and the backbone's own folder."""

    places: tuple[Path, ...]

    @staticmethod
    def around(*roots: Path) -> Papers:
        """``roots``, the first first, and the folders right below them."""
        below = [path for root in roots for path in sorted(root.iterdir()) if path.is_dir()]
        return Papers(tuple(dict.fromkeys((*roots, *below))))

    def find(self, name: str) -> Path | None:
        return next((place / name for place in self.places if (place / name).is_file()), None)

    def config(self, kind: Kind) -> Qwen2VLConfig:
        """The backbone's sizes, as published if no config.json says otherwise."""
        path = self.find("config.json")
        if path is None:
            return kind.config
        try:
            return Qwen2VLConfig.read(read_config(path))
        except ValueError as error:
            raise ValueError(f"{path}: not the sizes of a Qwen2-VL ({error})") from None


@dataclass(frozen=True, slots=True)
class Merge:
    """W + scale * B A, A being [rank, in]; the default is for files without an adapter."""

    rank: int = 0
    scale: float = 0.0


def convert_hpsv3(source: Path, out: FolderWriter) -> None:
    """``source`` is the folder with HPSv3.safetensors, or the file."""
    path = source
    if source.is_dir():
        found = [source / name for name in HPSV3_FILES if (source / name).is_file()]
        if not found:
            raise ValueError(f"{source}: want one of {', '.join(HPSV3_FILES)} in it")
        path = found[0]
    names = sort_keys({path: read_checkpoint(path, NESTED)})
    papers = Papers.around(path.parent)
    _write(hpsv3.KIND, names, Merge(), papers, out, {})
    out.facts(source=f"MizzenAI/HPSv3, {path.name}", licence="MIT")


def convert_videoalign(source: Path, out: FolderWriter) -> None:
    """``source`` is the folder with model_config.json, or a checkpoint-<step> folder in it to take that one."""
    checkpoint = find_checkpoint(source)
    root = checkpoint.parent if checkpoint != source or not _has_config(source) else source
    facts = read_config(root / "model_config.json")
    papers = Papers.around(*dict.fromkeys((checkpoint, root)))
    extra = _videoalign_facts(root / "model_config.json", facts)
    whole = checkpoint / "model.pth"
    if whole.is_file():
        states = {whole: read_checkpoint(whole, NESTED)}
        said = _object(root / "model_config.json", facts, "peft_lora_config")
        merge = _read_merge(root / "model_config.json", said, "lora_r")
    else:
        adapter, tuned = (
            checkpoint / "adapter_model.safetensors",
            checkpoint / "non_lora_state_dict.pth",
        )
        base = papers.find("model.safetensors.index.json") or papers.find("model.safetensors")
        if base is None:
            raise ValueError(
                f"{checkpoint}: holds an adapter, which needs the weights of Qwen2-VL-2B-Instruct; "
                f"put their folder into {root}"
            )
        # What comes later replaces what came before.
        states = {
            base: read_checkpoint(base),
            tuned: read_checkpoint(tuned),
            adapter: read_checkpoint(adapter),
        }
        said = read_config(checkpoint / "adapter_config.json")
        merge = _read_merge(checkpoint / "adapter_config.json", said, "r")
    _write(videoalign.KIND, sort_keys(states), merge, papers, out, extra)
    out.facts(source=f"KlingTeam/VideoReward, {checkpoint.name}", licence="Apache-2.0")


CONVERSIONS: dict[str, Callable[[Path, FolderWriter], None]] = {
    "hpsv3": convert_hpsv3,
    "videoalign": convert_videoalign,
    **published_imagereward.CONVERSIONS,
    **published_mps.CONVERSIONS,
}


def find_checkpoint(source: Path) -> Path:
    """``source`` if it holds a checkpoint, else the checkpoint-<step> in it with the highest step."""
    if any((source / name).is_file() for name in ("model.pth", "adapter_model.safetensors")):
        return source
    steps = {
        int(match[1]): path
        for path in (source.iterdir() if source.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d{1,12})", path.name)) and path.is_dir()
    }
    if not steps:
        raise ValueError(f"{source}: want checkpoint-<step> folders in it, or model.pth")
    return steps[max(steps)]


def _has_config(folder: Path) -> bool:
    return (folder / "model_config.json").is_file()


def _object(path: Path, table: dict[str, Any], name: str) -> dict[str, Any]:
    part = table.get(name) or {}
    if not isinstance(part, dict):
        raise ValueError(f"{path}: {name}: want an object, got {type(part).__name__}")
    return part


def _videoalign_facts(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """What config.json must say of the head and the pictures. ValueError where the runtime scores otherwise."""
    said = _object(path, table, "inference_config")
    for name, mean, std in zip(("VQ", "MQ", "TA"), videoalign.MEANS, videoalign.STDS, strict=True):
        for key, want in ((f"{name}_mean", mean), (f"{name}_std", std)):
            got = said.get(key)
            if said and not (isinstance(got, int | float) and abs(got - want) < 1e-4):
                raise ValueError(f"{path}: {key}: want {want}, as the reward scores, got {got!r}")
    extra = {"output_dim": _object(path, table, "model_config").get("output_dim", 1)}
    most = _object(path, table, "data_config").get("max_frame_pixels")
    if most is not None:
        if type(most) is not int or most < 1:
            raise ValueError(f"{path}: max_frame_pixels: want a whole number, got {most!r}")
        extra["max_pixels"] = most
    return extra


def _read_merge(path: Path, table: dict[str, Any], rank_name: str) -> Merge:
    """How an adapter is merged, of what PEFT or VideoAlign's own file says of it."""
    if not table or table.get("lora_enable") is False:
        return Merge()
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if table.get(name):
            raise ValueError(f"{path}: {name} is not supported; merge the adapter with PEFT first")
    rank, alpha = table.get(rank_name), table.get("lora_alpha")
    if type(rank) is not int or not isinstance(alpha, int | float) or min(rank, alpha) <= 0:
        raise ValueError(
            f"{path}: want {rank_name} and lora_alpha above 0, got {rank!r}, {alpha!r}"
        )
    return Merge(rank, alpha / math.sqrt(rank) if table.get("use_rslora") else alpha / rank)


def _write(
    kind: Kind, names: Names, merge: Merge, papers: Papers, out: FolderWriter, extra: dict[str, Any]
) -> None:
    """Check everything, then write model.safetensors, config.json, tokenizer.json and, if it is there, rubric.txt."""
    config = papers.config(kind)
    embedding = names.weights.get("model.embed_tokens.weight")
    if embedding is None:
        raise ValueError(f"{names.path}: this is no Qwen2-VL: it has no embed_tokens.weight")
    rows = embedding.tensor.shape[0]
    text = dataclasses.replace(config.text, vocab_size=max(rows, 1))
    table = {**dataclasses.asdict(text), "vision_config": dataclasses.asdict(config.vision)}
    most = extra.get("max_pixels", kind.pixels.most)
    table |= {"min_pixels": min(kind.pixels.least, most), "max_pixels": most} | extra
    with torch.device("meta"):
        net = Qwen2VL(Qwen2VLConfig(text, config.vision), kind.head(text.hidden_size, table))
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    compare_keys(names.path, wanted, merged_shapes(names, wanted))
    ranks = {piece.tensor.shape[0] for piece in names.downs.values()}
    if ranks - {merge.rank}:
        raise ValueError(
            f"{names.path}: holds an adapter of rank {max(ranks)}, but what lies beside it speaks of {merge.rank}"
        )
    tokeniser = _tokeniser(kind, papers, rows, config.text.vocab_size)
    rubric = papers.find("rubric.txt")
    words = read_rubric(rubric, kind.marks) if rubric else None
    out.weights("model", _merged(names, wanted, merge.scale))
    out.json("config", table)
    out.text("tokenizer.json", tokeniser)
    if words is not None:
        out.text("rubric.txt", words)
    else:
        log.warning(
            "%s: has no rubric.txt yet; make it with: %s",
            kind.name,
            rubric_command(kind.name, out.target),
        )


def _merged(names: Names, wanted: dict[str, Any], scale: float) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the network wants; W + scale * B A in float32, rounded once, where there is an adapter."""
    for name in wanted:
        weight = names.weights[name].tensor
        if name in names.downs:
            down, up = (side[name].tensor.float() for side in (names.downs, names.ups))
            weight = weight.float().addmm(up, down, alpha=scale).to(weight.dtype)
        yield name, weight


def _tokeniser(kind: Kind, papers: Papers, rows: int, padded: int) -> str:
    """The tokeniser with the read-out tokens, as JSON. ValueError unless it is the one that the embedding was made for."""
    path = papers.find("tokenizer.json")
    if path is None:
        raise ValueError(
            f"{papers.places[0]}: want the backbone's tokenizer.json there or in a folder below; it comes with "
            f"Qwen2-VL-{'7B' if kind is hpsv3.KIND else '2B'}-Instruct"
        )
    if path.stat().st_size > MAX_TOKENISER_BYTES:
        raise ValueError(f"{path}: want at most {MAX_TOKENISER_BYTES} bytes")
    try:
        tokeniser = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: not a tokeniser file ({error})") from None
    tokeniser.add_special_tokens(list(kind.marks))  # those that are there keep their ids
    tokens = tokeniser.get_vocab_size(with_added_tokens=True)
    ids = [tokeniser.token_to_id(mark) for mark in kind.marks]
    # A resized embedding has a row for every token; a backbone's own is padded beyond them.
    if tokens != rows and not tokens < rows == padded:
        raise ValueError(
            f"{path}: knows {tokens} tokens with {', '.join(kind.marks)}, but the embedding has {rows} rows; "
            "the tokeniser belongs to other weights"
        )
    if ids != list(range(tokens - len(ids), tokens)):
        raise ValueError(
            f"{path}: want {', '.join(kind.marks)} as its last tokens, got the ids {ids}"
        )
    return tokeniser.to_str()
