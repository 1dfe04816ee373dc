"""A generator's folder loads whole or names the file that is missing, damaged or somebody else's."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime.generators import Generator
from runtime.generators.sprites_model import SHARED, load
from runtime.generators.text import TextConfig, build_encoder, word_tokeniser
from runtime.generators.vae import VAEConfig, WanVAE
from runtime.generators.wan import DiTConfig, WanDiT

DIT = {
    "dim": 24,
    "heads": 2,
    "layers": 1,
    "ffn_dim": 24,
    "freq_dim": 8,
    "text_dim": 8,
    "text_len": 4,
    "channels": 4,
}
TEXT = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
VAE = {
    "latent_channels": 4,
    "base_dim": 4,
    "dim_mult": (1, 1),
    "res_blocks": 1,
    "space_downsample": (True,),
    "time_downsample": (True,),
    "mid_attention": False,
}
CONFIGS = {"dit": DIT, "text": {**TEXT, "text_len": 4}, "vae": VAE}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    modules = {
        "dit": WanDiT(DiTConfig(**DIT)),
        "text": build_encoder(TextConfig(**TEXT)),
        "vae": WanVAE(VAEConfig(**VAE)),
    }
    for name, module in modules.items():
        state = {key: value for key, value in module.state_dict().items() if key not in SHARED}
        save_file(state, tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.json").write_text(json.dumps({"config": CONFIGS[name]}))
    word_tokeniser(["red", "circle"]).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def loaded(folder: Path) -> Generator:
    return load(torch.device("cpu"), torch.bfloat16, folder)


def test_a_whole_folder_loads(folder):
    generator = loaded(folder)
    assert generator.dtype == torch.bfloat16 and generator.latent_shape == (4, 48, 48)
    assert generator.block_shape == (2, 3 * 24 * 24, 2, 12)
    assert generator.encode("red circle").keys[0].shape == (1, 4, 2, 12)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"config": 3},
        {"config": {}},
        {"config": {"surprise": 1}},
        {"config": {"dim": "24", "d_model": "8", "base_dim": "4"}},
        {"config": {"dim": -24, "heads": 0, "d_model": -8, "base_dim": -4}},
        {"config": {"dim": 24.5, "d_model": 8.5, "base_dim": 4.5}},
        {"config": {"layers": 2, "num_layers": 2, "res_blocks": 2}},
    ],
    ids=["none", "no-object", "empty", "unknown", "text", "negative", "half", "other"],
)
def test_a_damaged_config_is_named(folder, name, config):
    """A size that is wrong but possible shows when the weights are compared."""
    changes = config.get("config")
    if isinstance(changes, dict):
        known = {key: v for key, v in changes.items() if key in CONFIGS[name] or key == "surprise"}
        config = {"config": CONFIGS[name] | known if known else {"channels": 0, "num_layers": 0}}
    (folder / f"{name}.json").write_text(json.dumps(config))
    named = rf"^{re.escape(str(folder / name))}\.(json|safetensors): (not the sizes|want an object|this is not)"
    with pytest.raises(ValueError, match=named):
        loaded(folder)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_missing_file_is_named(folder, name, suffix):
    (folder / f"{name}.{suffix}").unlink()
    with pytest.raises(ValueError, match=rf"{name}\.{suffix}: no such file"):
        loaded(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_foreign_weight_file_is_named(folder, name):
    save_file({"other.weight": torch.ones(3)}, folder / f"{name}.safetensors")
    with pytest.raises(ValueError, match=rf"{name}\.safetensors: this is not a checkpoint of this"):
        loaded(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": {}}', "\xff"])
def test_a_damaged_tokeniser_is_named(folder, text):
    (folder / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokeniser file \("):
        loaded(folder)


def test_a_missing_tokeniser_is_named(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokeniser: no such file: .*tokenizer\.json"):
        loaded(folder)
