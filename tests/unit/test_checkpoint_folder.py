"""A generator's folder loads whole or names the file that is missing, damaged or somebody else's."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime import manifest
from runtime.generators import Generator, find_folder, load_generator
from runtime.generators.folder import SHARED, read_blueprint
from runtime.generators.schedule import Schedule
from runtime.generators.text import TextConfig, build_encoder, word_tokeniser
from runtime.generators.vae import WAN21, VAEConfig, WanVAE
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.parts import Parts
from runtime.settings import Settings, weights_home

CPU = torch.device("cpu")
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
MODEL = {"frame_size": [8, 12], "steps": [1000, 500], "shift": 3.0, "fps": 8}
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
    (tmp_path / "model.json").write_text(json.dumps({"config": MODEL}))
    word_tokeniser(["red", "circle"]).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def loaded(folder: Path) -> Generator:
    return load_generator("sprites", CPU, torch.bfloat16, weights=str(folder))


def test_a_whole_folder_loads(folder):
    generator = loaded(folder)
    assert generator.dtype == torch.bfloat16 and generator.latent_shape == (4, 4, 6)
    assert generator.block_shape == (2, 3 * 2 * 3, 2, 12)
    assert generator.schedule == Schedule.warped((1000, 500), 3.0) and generator.fps == 8
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frame_size": [8]}, r"want \[rows, columns\] and a rate"),
        ({"frame_size": [8, 0]}, r"whole numbers of at least 1, got \[8, 0\]"),
        ({"frame_size": [8, 6]}, r"want multiples of 4 pixels, got \[8, 6\]"),
        ({"fps": 0.5}, "a rate, whole numbers of at least 1"),
        ({"fps": True}, "a rate, whole numbers of at least 1"),
        ({"steps": [500, 1000]}, "steps: want falling values"),
        ({"steps": []}, "steps: want falling values"),
        ({"shift": 0}, "shift: want a positive number"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_run_is_named(folder, change, words):
    (folder / "model.json").write_text(json.dumps({"config": MODEL | change}))
    with pytest.raises(ValueError, match=rf"model\.json: not the sizes of this model .*{words}"):
        loaded(folder)


def test_a_missing_model_file_is_named(folder):
    (folder / "model.json").unlink()
    with pytest.raises(ValueError, match=r"model\.json: no such file"):
        loaded(folder)


def test_a_folder_that_is_no_generator_s_says_what_makes_one(tmp_path):
    (tmp_path / "longlive_base.pt").touch()
    with pytest.raises(ValueError, match=rf"{tmp_path}: not a generator's .*runtime\.convert NAME"):
        loaded(tmp_path)


def test_random_weights_need_sizes_only(folder, caplog):
    """The prompt still matters, bytes are tokens, and the same numbers are drawn every time."""
    one, two = (load_generator("sprites-256", CPU, torch.bfloat16, weights="") for _ in range(2))
    assert "random weights" in caplog.text
    assert one.dtype == torch.bfloat16 and one.dit.config.dim == 256 and one.dit.config.layers == 8
    keys = [g.encode(prompt).keys[-1] for g in (one, two) for prompt in ("red", "blå")]
    assert torch.equal(keys[0], keys[2]) and not torch.equal(keys[0], keys[1])
    assert one.text.unknown_words("anything at all") == []
    assert all(torch.isfinite(p).all() for p in one.dit.parameters())


def test_a_folder_may_stand_for_any_generator(folder):
    assert load_generator("longlive", CPU, torch.float32, weights=str(folder)).fps == 8


def test_packaged_weights_may_be_left_for_random_ones():
    a, b = (load_generator("sprites", CPU, torch.float32, weights=w) for w in ("", "random"))
    assert a.block_shape == b.block_shape and a.schedule == b.schedule
    assert not torch.equal(a.dit.head.head.weight, b.dit.head.head.weight)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAM_T1_WEIGHTS", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", ["wan-1.3b", "longlive", "self-forcing", "causvid"])
def test_a_generator_without_weights_names_the_commands_that_bring_them(name, home):
    command = (
        rf"runtime\.fetch {name}' .* 'python -m runtime\.convert {name} SOURCE -o {home}/{name}'"
    )
    with pytest.raises(
        ValueError, match=rf"run.weights: .* {name!r} and {home}/{name} .*{command}"
    ):
        load_generator(name, CPU, torch.float32)
    with pytest.raises(ValueError, match="want a folder or 'random', got 'nowhere': no such"):
        load_generator(name, CPU, torch.float32, weights="nowhere")


def test_weights_are_found_at_home(folder, home):
    home.mkdir()
    (home / "longlive").symlink_to(folder)
    assert find_folder("longlive") == (home / "longlive", False)
    assert load_generator("longlive", CPU, torch.float32).fps == 8
    assert find_folder("longlive", "random")[0] == find_folder("wan-1.3b", "random")[0]


def test_home_is_in_the_cache_if_nobody_says(monkeypatch):
    monkeypatch.delenv("STREAM_T1_WEIGHTS", raising=False)
    assert weights_home() == Path.home() / ".cache" / "stream-t1-runtime"
    monkeypatch.setenv("STREAM_T1_WEIGHTS", "~/elsewhere")
    assert weights_home() == Path.home() / "elsewhere"


def test_a_generator_may_be_named_by_its_folder(folder, monkeypatch):
    assert find_folder(str(folder)) == (folder, False)
    assert find_folder(str(folder), "random") == (folder, True)
    monkeypatch.chdir(folder.parent)
    assert find_folder(folder.name) == (Path(folder.name), False)
    assert load_generator(f"./{folder.name}", CPU, torch.float32).fps == 8
    (folder.parent / "sprites").mkdir()
    assert find_folder("sprites")[0].name == "sprites" != find_folder("./sprites")[0]
    with pytest.raises(ValueError, match=r"run.generator: './nowhere': no such folder"):
        find_folder("./nowhere")
    with pytest.raises(ValueError, match=r"run.weights: run.generator is a folder already"):
        find_folder(str(folder), str(folder))


# The manifest.


def test_a_folder_is_verified_unless_it_is_not_asked_for(folder):
    manifest.write(folder, {})
    assert loaded(folder).fps == 8
    path = folder / "dit.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1  # a number's lowest bits: another finite number
    path.write_bytes(bytes(content))
    with pytest.raises(
        ValueError, match=r"bytes of dit\.safetensors are not those of its manifest"
    ):
        loaded(folder)
    Parts.load(settings_of(folder).with_changes({"run.verify": False}))
    with pytest.raises(ValueError, match=r"dit\.safetensors are not those"):
        Parts.load(settings_of(folder))


def settings_of(folder: Path) -> Settings:
    return Settings().with_changes({"run.generator": str(folder), "search.policy": "single"})


def test_full_size_is_the_published_size():
    """Counted on the meta device: 1.42 billion weights, blocks of 823 MiB in two bytes."""
    plan = read_blueprint(find_folder("wan-1.3b", "random")[0])
    assert sum(weight.numel() for weight in plan.dit.parameters()) == 1_418_996_800
    assert plan.latent_shape == (16, 60, 104)
    assert plan.vae.config == dataclasses.replace(WAN21)
    assert 2 * math.prod(plan.block_shape) == 862_617_600
