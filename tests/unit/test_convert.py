"""Published files become one checked folder that an engine runs; what is missing, foreign or damaged is named first."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime import convert, manifest
from runtime.engine import Engine
from runtime.generators import load_generator, published
from runtime.generators.schedule import Schedule
from runtime.settings import Settings
from runtime.shards import FolderWriter, Stored, verify
from tests.published_folder import (
    FRAME,
    Models,
    adapter,
    prefixed,
    small_row,
    tiny_models,
    wan_folder,
)

CPU = torch.device("cpu")
RANK = 4
NAMES = ("wan-1.3b", "longlive", "self-forcing", "causvid")


@pytest.fixture(scope="module")
def models() -> Models:
    return tiny_models()


@pytest.fixture
def wan(tmp_path: Path, models: Models) -> Path:
    return wan_folder(tmp_path / "Wan2.1-T2V-1.3B", models)


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``python -m runtime.convert`` with the published rows at small sizes; returns its exit code."""
    for name in NAMES:
        monkeypatch.setitem(published.CONVERSIONS, name, small_row(name, tmp_path / "sizes"))
    return lambda *arguments: convert.main([str(argument) for argument in arguments])


def trained(models: Models, by: float = 0.01) -> dict[str, Tensor]:
    """Other weights of the same names: what a project made of Wan's."""
    return {name: tensor + by for name, tensor in models.dit.state_dict().items()}


def longlive(wan: Path, models: Models, wrap: str, name: str, step: str = "generator") -> Path:
    source = wan.parent
    (source / "models").mkdir()
    state = prefixed(trained(models), wrap)
    torch.save(
        {step: state, "critic": {"x": torch.ones(3)}}, source / "models" / "longlive_base.pt"
    )
    lora = adapter(models.dit, RANK, wrap.replace("model.", "", 1) if name else wrap, name)
    torch.save({"generator_lora": lora, "step": 7}, source / "models" / "lora.pt")
    return source


def causvid(wan: Path) -> Path:
    (wan / "autoregressive_checkpoint").mkdir(exist_ok=True)
    return wan / "autoregressive_checkpoint" / "model.pt"


def loaded(folder: Path, dtype: torch.dtype = torch.float32):
    return load_generator(str(folder), CPU, dtype)


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_wan_s_folder_becomes_one_that_loads_with_its_very_weights(door, wan, models, tmp_path):
    target = tmp_path / "out"
    assert door("wan-1.3b", wan, "-o", target, "--verify") == 0
    names = {"manifest.json", "model.json", "tokenizer.json"}
    names |= {
        f"{part}.{kind}" for part in ("dit", "vae", "text") for kind in ("json", "safetensors")
    }
    assert {path.name for path in target.iterdir()} == names
    verify(target)
    generator = loaded(target)
    same(generator.dit.state_dict(), models.dit.state_dict())
    same(generator.decoder.vae.state_dict(), models.vae.state_dict())
    for name, tensor in models.text.state_dict().items():
        assert torch.equal(generator.text.encoder.state_dict()[name], tensor.bfloat16().float())
    assert generator.latent_shape == (4, FRAME[0] // 4, FRAME[1] // 4) and generator.fps == 8
    facts = json.loads((target / "manifest.json").read_text())["facts"]
    assert facts["source"] == "Wan-AI/Wan2.1-T2V-1.3B" and facts["licence"] == "Apache-2.0"


def test_weights_are_stored_as_published_unless_a_dtype_is_asked_for(door, wan, tmp_path):
    for dtype, want in (((), "F32"), (("--dtype", "bfloat16"), "BF16")):
        target = tmp_path / f"out{want}"
        assert door("wan-1.3b", wan, "-o", target, *dtype, "--quiet") == 0
        assert set(Stored(target / "dit.safetensors").dtypes.values()) == {want}
        assert set(Stored(target / "text.safetensors").dtypes.values()) == {"BF16"}


@pytest.mark.parametrize(
    ("wrap", "name", "step"),
    [
        ("model.", "", "generator"),
        ("model._fsdp_wrapped_module.", ".default", "generator_ema"),
        ("", ".default", "generator"),
    ],
)
def test_longlive_s_adapter_is_merged_as_if_by_hand(door, wan, models, tmp_path, wrap, name, step):
    source = longlive(wan, models, wrap, name, step)
    assert door("longlive", source, "-o", tmp_path / "out") == 0
    lora = adapter(models.dit, RANK, "")
    got = loaded(tmp_path / "out").dit.state_dict()
    changed = 0
    for key, base in trained(models).items():
        a = lora.get(f"base_model.model.{key.removesuffix('.weight')}.lora_A.weight")
        exact = base.double()
        if a is not None:
            b = lora[f"base_model.model.{key.removesuffix('.weight')}.lora_B.weight"]
            exact, changed = exact + 256 / RANK * b.double() @ a.double(), changed + 1
        error = (got[key].double() - exact).abs().max()
        assert error <= 8 * torch.finfo(torch.float32).eps * (1 + exact.abs().max())
    assert changed == 2 * 10


def test_a_merged_weight_is_rounded_once(door, wan, models, tmp_path):
    """To bfloat16 from the merged float32, not from two rounded halves."""
    source = longlive(wan, models, "model.", "")
    assert door("longlive", source, "-o", tmp_path / "wide") == 0
    assert door("longlive", source, "-o", tmp_path / "narrow", "--dtype", "bfloat16") == 0
    wide, narrow = (Stored(tmp_path / name / "dit.safetensors") for name in ("wide", "narrow"))
    same(dict(narrow), {name: tensor.bfloat16() for name, tensor in wide.items()})


def test_a_merged_weight_keeps_the_dtype_of_its_base(door, wan, models, tmp_path):
    source = longlive(wan, models, "model.", "")
    state = {name: t.bfloat16() for name, t in prefixed(trained(models), "model.").items()}
    torch.save({"generator": state}, source / "models" / "longlive_base.pt")
    assert door("longlive", source, "-o", tmp_path / "out") == 0
    assert set(Stored(tmp_path / "out" / "dit.safetensors").dtypes.values()) == {"BF16"}


def test_an_adapter_may_lie_elsewhere(door, wan, models, tmp_path):
    source = longlive(wan, models, "model.", "")
    assert door("longlive", source, "-o", tmp_path / "one") == 0
    elsewhere = tmp_path / "elsewhere.pt"
    (source / "models" / "lora.pt").rename(elsewhere)
    assert door("longlive", source, "-o", tmp_path / "two") == 2
    assert door("longlive", source, "-o", tmp_path / "two", "--lora", elsewhere) == 0
    same(*(dict(Stored(tmp_path / name / "dit.safetensors")) for name in ("two", "one")))


def test_self_forcing_takes_the_averaged_weights_and_causvid_its_own_steps(
    door, wan, models, tmp_path
):
    averaged, plain = trained(models, 0.02), trained(models, 0.03)
    table = {"generator": prefixed(plain, "model."), "generator_ema": prefixed(averaged, "model.")}
    torch.save(table, tmp_path / "self_forcing_dmd.pt")
    assert door("self-forcing", tmp_path, "-o", tmp_path / "sf") == 0
    same(loaded(tmp_path / "sf").dit.state_dict(), averaged)
    torch.save({"generator": prefixed(plain, "model.")}, causvid(wan))
    assert door("causvid", wan, "-o", tmp_path / "cv") == 0
    generator = loaded(tmp_path / "cv")
    same(generator.dit.state_dict(), plain)
    assert [round(t) for t in generator.schedule.timesteps] == [1000, 757, 522]
    assert loaded(tmp_path / "sf").schedule == Schedule.warped((1000, 750, 500, 250), 5.0)


def test_an_engine_makes_chunks_with_a_converted_folder(door, wan, models, tmp_path):
    source = longlive(wan, models, "model.", "")
    assert door("longlive", source, "-o", tmp_path / "out") == 0
    rewards = {"reward.image": "stub", "reward.video": "stub"}
    settings = Settings().with_changes(
        {"run.generator": str(tmp_path / "out"), "seconds": 2.6, **rewards}
    )
    chunks = list(Engine(settings).stream("red circle"))
    assert len(chunks) == 2 and all(torch.isfinite(chunk.frames).all() for chunk in chunks)
    assert chunks[-1].frames.shape[-2:] == FRAME


def test_a_long_part_is_written_in_shards_that_load_alike(door, wan, tmp_path, monkeypatch, models):
    monkeypatch.setattr("runtime.shards.SHARD_BYTES", 20_000)
    assert door("wan-1.3b", wan, "-o", tmp_path / "out") == 0
    shards = sorted(path.name for path in (tmp_path / "out").glob("dit-*"))
    assert len(shards) > 2 and shards[0] == f"dit-00001-of-{len(shards):05d}.safetensors"
    same(loaded(tmp_path / "out").dit.state_dict(), models.dit.state_dict())


# What is refused, before a byte is written.


def refused(door, capsys, *arguments, words: str, code: int = 2) -> None:
    target = Path(arguments[arguments.index("-o") + 1])
    before = sorted(target.parent.iterdir())
    assert door(*arguments) == code
    error = capsys.readouterr().err
    assert re.search(words, error.splitlines()[-1]), error
    assert sorted(target.parent.iterdir()) == before


def test_a_name_that_is_not_published_is_guessed(door, capsys, wan, tmp_path):
    words = r"error: 'longlife': no conversion of that name; known: wan-1\.3b.*mean 'longlive'"
    refused(door, capsys, "longlife", wan, "-o", tmp_path / "out", words=words)
    words = "error: the following arguments are required"
    refused(door, capsys, "longlive", "-o", tmp_path / "out", words=words)


def test_a_folder_that_holds_something_is_not_written_over(door, capsys, wan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    words = "out: exists and is not an empty folder"
    refused(door, capsys, "wan-1.3b", wan, "-o", tmp_path / "out", words=words)
    (tmp_path / "out" / "mine").unlink()
    assert door("wan-1.3b", wan, "-o", tmp_path / "out") == 0


def test_another_conversion_s_unfinished_folder_is_left_alone(door, capsys, wan, tmp_path):
    (tmp_path / "out.part").mkdir()
    words = r"out\.part: exists: something writes it, or was killed"
    refused(door, capsys, "wan-1.3b", wan, "-o", tmp_path / "out", words=words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda w: (w / "Wan2.1_VAE.pth").unlink(), r"want Wan2\.1_VAE\.pth, .* or the vae"),
        (lambda w: (w / "diffusion_pytorch_model.safetensors").unlink(), "no such file"),
        (lambda w: (w / "models_t5_umt5-xxl-enc-bf16.pth").unlink(), "bf16.pth: no such file"),
        (lambda w: (w / "google/umt5-xxl/tokenizer.json").unlink(), "tokeniser: no such file"),
        (
            lambda w: torch.save({"conv1.weight": torch.ones(2)}, w / "Wan2.1_VAE.pth"),
            r"VAE\.pth: this is not a checkpoint of this model: missing .*; mis-shaped conv1\.weight",
        ),
    ],
    ids=["vae", "dit", "text", "tokeniser", "foreign"],
)
def test_what_a_source_lacks_is_named(door, capsys, wan, tmp_path, damage, words):
    damage(wan)
    refused(door, capsys, "wan-1.3b", wan, "-o", tmp_path / "out", words=words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("model.head.head.bias"), r"missing head\.head\.bias$"),
        (lambda s: s.update({"model.other": torch.ones(1)}), r"unknown other$"),
        (lambda s: s.update({"optimizer.x": torch.ones(1)}), r"unknown optimizer\.x$"),
        (
            lambda s: s.update({"model.head.head.bias": torch.ones(2)}),
            r"mis-shaped head\.head\.bias",
        ),
        (
            lambda s: s.update({"model._orig_mod.head.head.bias": torch.ones(16)}),
            r"model\._orig_mod\.head\.head\.bias and model\.head\.head\.bias are the same weight",
        ),
        (
            lambda s: s.update({"model.head.head.bias": torch.ones(16, dtype=torch.int32)}),
            r"want weights of floats, got head\.head\.bias \(torch\.int32\)",
        ),
        (
            lambda s: s.update({"model.head.head.bias": torch.full((16,), torch.nan)}),
            r"dit: head\.head\.bias is not finite",
        ),
    ],
    ids=["missing", "unknown", "owner", "shape", "twice", "dtype", "nan"],
)
def test_what_is_wrong_inside_a_checkpoint_is_named(
    door, capsys, wan, models, tmp_path, change, words
):
    state = prefixed(models.dit.state_dict(), "model.")
    change(state)
    torch.save({"generator": state}, causvid(wan))
    refused(door, capsys, "causvid", wan, "-o", tmp_path / "out", words=words)


def test_an_unknown_wrapper_is_not_guessed_away(door, capsys, wan, models, tmp_path):
    torch.save({"generator": prefixed(models.dit.state_dict(), "net.")}, causvid(wan))
    words = r"missing blocks.*; unknown net\."
    refused(door, capsys, "causvid", wan, "-o", tmp_path / "out", words=words)


def test_two_files_of_one_name_are_not_chosen_between(door, capsys, wan, models, tmp_path):
    for folder in ("a", "b"):
        (wan / folder).mkdir()
        torch.save({"generator": models.dit.state_dict()}, wan / folder / "self_forcing_dmd.pt")
    words = r"want one file self_forcing_dmd\.pt in it or below it; got .*/a/self.*, .*/b/self"
    refused(door, capsys, "self-forcing", wan, "-o", tmp_path / "out", words=words)


def test_an_adapter_of_another_model_is_named(door, capsys, wan, models, tmp_path):
    source = longlive(wan, models, "model.", "")
    other = {"base_model.model.blocks.9.ffn.0.lora_A.weight": torch.ones(2, 3)}
    torch.save({"generator_lora": other}, source / "models" / "lora.pt")
    words = r"lora\.pt: .*unknown blocks\.9\.ffn\.0\.lora_A\.weight$"
    refused(door, capsys, "longlive", source, "-o", tmp_path / "out", words=words)
    words = "--lora: causvid takes no adapter"
    assert (
        door("wan-1.3b", wan, "-o", tmp_path / "fine", "--lora", source / "models" / "lora.pt") == 2
    )


def test_a_source_that_is_not_what_its_manifest_says_is_named(door, capsys, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    manifest.write(source, {})
    (source / "stray").touch()
    arguments = ("wan-1.3b", source, "-o", tmp_path / "out", "--verify")
    refused(door, capsys, *arguments, words="does not list stray")


# The disk.


def test_the_disk_is_asked_before_anything_is_written(door, capsys, wan, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("runtime.shards.write_file", lambda *args: written.append(args))
    few = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: few)
    words = r"out: wants 0\.00 GiB of disk, 0\.00 GiB are free"
    refused(door, capsys, "wan-1.3b", wan, "-o", tmp_path / "out", words=words, code=1)
    assert not written


def test_a_disk_that_fills_up_leaves_nothing(door, capsys, wan, tmp_path, monkeypatch):
    write = FolderWriter._write_shard

    def full(self, name, *rest):
        if name == "vae":
            raise OSError(28, "No space left on device")
        return write(self, name, *rest)

    monkeypatch.setattr(FolderWriter, "_write_shard", full)
    words = "No space left on device"
    refused(door, capsys, "wan-1.3b", wan, "-o", tmp_path / "out", words=words, code=1)


def test_without_a_place_a_folder_goes_home(door, capsys, wan, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAM_T1_WEIGHTS", str(tmp_path / "home"))
    assert door("wan-1.3b", wan) == 0
    assert str(tmp_path / "home" / "wan-1.3b") in capsys.readouterr().out
    assert load_generator("wan-1.3b", CPU, torch.float32).fps == 8
