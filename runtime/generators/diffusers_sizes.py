"""What the config.json files of a diffusers folder say, as sizes of our modules; what ours cannot be is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.weights import read_config

_DIT = {  # what must be as in Wan2.1-T2V; a key that is not there has its default, which is this
    "patch_size": [1, 2, 2],
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_VAE = {"attn_scales": [], "is_residual": False, "dropout": 0.0}
_TEXT = {
    "model_type": "umt5",
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}
_TEXT_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")


def dit_sizes(path: Path, text_len: int) -> dict[str, Any]:
    """``DiTConfig`` from transformer/config.json. ValueError for another model than Wan2.1-T2V."""
    config = _checked(path, _DIT)
    if config.get("in_channels") != config.get("out_channels"):
        raise ValueError(
            f"{path}: want as many channels in as out, got {config.get('in_channels')} and {config.get('out_channels')}"
        )
    heads = _whole(path, config, "num_attention_heads")
    return {
        "dim": heads * _whole(path, config, "attention_head_dim"),
        "heads": heads,
        "layers": _whole(path, config, "num_layers"),
        "ffn_dim": _whole(path, config, "ffn_dim"),
        "freq_dim": _whole(path, config, "freq_dim"),
        "text_dim": _whole(path, config, "text_dim"),
        "text_len": text_len,
        "channels": _whole(path, config, "in_channels"),
    }


def vae_sizes(path: Path) -> dict[str, Any]:
    """``VAEConfig`` from vae/config.json. ValueError for another autoencoder than Wan's."""
    config = _checked(path, _VAE)
    patch = config.get("patch_size") or 1
    if config.get("in_channels", 3) != 3 * patch**2:
        raise ValueError(f"{path}: want {3 * patch**2} in_channels, got {config['in_channels']}")
    multiples = config.get("dim_mult")
    if not isinstance(multiples, list):
        raise ValueError(f"{path}: dim_mult: want a list, got {multiples!r}")
    return {
        "latent_channels": _whole(path, config, "z_dim"),
        "base_dim": _whole(path, config, "base_dim"),
        "decoder_base_dim": config.get("decoder_base_dim"),
        "dim_mult": multiples,
        "res_blocks": _whole(path, config, "num_res_blocks"),
        "space_downsample": [True] * (len(multiples) - 1),
        "time_downsample": config.get("temperal_downsample"),  # as the file spells it
        "mid_attention": True,
        "patch": patch,
        "latent_mean": config.get("latents_mean"),
        "latent_std": config.get("latents_std"),
    }


def text_sizes(path: Path) -> dict[str, Any]:
    """``TextConfig`` from text_encoder/config.json. ValueError for another encoder than UMT5."""
    config = _checked(path, _TEXT)
    return {name: _whole(path, config, name) for name in _TEXT_SIZES}


def _checked(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    config = read_config(path)
    other = [
        f"{key} {config[key]!r} (want {value!r})"
        for key, value in wanted.items()
        if key in config and config[key] != value
    ]
    if other:
        raise ValueError(f"{path}: not Wan2.1-T2V's: {', '.join(other)}")
    return config


def _whole(path: Path, config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}: {name}: want a whole number of at least 1, got {value!r}")
    return value
