"""The table of what can be fetched: exact where it claims to be, and honest about licences."""

from pathlib import Path

import pytest

from runtime.catalogue import CATALOGUE, HubFile, Part, Row, find_row
from runtime.generators import published
from runtime.generators.published import CONVERSIONS as GENERATORS
from runtime.hub import is_hex
from runtime.presets import PRESETS
from runtime.rewards.published import CONVERSIONS as REWARDS
from runtime.rewards.published import HPSV3_FILES, Papers, find_checkpoint

PARTS = {(part.repo, part.revision) for row in CATALOGUE.values() for part in row.parts}


def test_every_revision_is_a_whole_commit_and_a_repository_has_one():
    assert all(is_hex(revision, 40) for _, revision in PARTS)
    assert len({repo for repo, _ in PARTS}) == len(PARTS)


def test_every_digest_is_a_sha256_and_every_path_stays_inside():
    files = [file for row in CATALOGUE.values() for part in row.parts for file in part.files]
    assert all(not file.sha256 or is_hex(file.sha256, 64) for file in files)
    assert all(file.bytes > 0 for file in files)


@pytest.mark.parametrize("path", ["../x", "a//b", "", "a/..", "a\\b"])
def test_a_path_that_leaves_the_repository_is_refused(path):
    with pytest.raises(ValueError, match="want one inside a repository"):
        HubFile(path, 1)


def test_no_two_files_of_a_row_land_in_one_place():
    for row in CATALOGUE.values():
        places = [f"{part.folder}/{file.path}" for part in row.parts for file in part.files]
        assert len(set(places)) == len(places), row.name


@pytest.mark.parametrize("name", ["wan-1.3b", "wan-1.3b-diffusers", "longlive", "self-forcing", "causvid"])  # fmt: skip
def test_every_generator_has_a_conversion_and_a_preset(name):
    folder = find_row(name).folder
    assert folder in GENERATORS and folder in PRESETS
    assert f"--generator {folder}" in find_row(name).use


def laid_out(name: str, folder: Path) -> Path:
    """The folder that a fetch makes of a row, its files empty."""
    for part in find_row(name).parts:
        for file in part.files:
            path = folder / part.folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


@pytest.mark.parametrize("name", ["wan-1.3b", "wan-1.3b-diffusers", "longlive", "self-forcing", "causvid"])  # fmt: skip
def test_a_generators_conversion_finds_every_file_of_its_row(tmp_path, name):
    folder, row = laid_out(name, tmp_path), published.CHECKPOINTS[find_row(name).folder]
    base = published.find_base(folder)
    taken = {published.find_file(folder, file) for file in (row.dit, row.lora) if file}
    if published.is_diffusers(base):
        parts = published.DIFFUSERS_DIT, published.DIFFUSERS_VAE, published.DIFFUSERS_TEXT
        for part in parts:
            taken |= {(base / part).with_name("config.json"), (base / part).with_name(f"{Path(part).name}.index.json")}  # fmt: skip
            taken |= set((base / part).parent.glob("*.safetensors"))
        taken.add(base / "tokenizer" / "tokenizer.json")
        taken.discard((base / published.DIFFUSERS_VAE).with_name(f"{Path(published.DIFFUSERS_VAE).name}.index.json"))  # fmt: skip
    else:
        taken |= {base / file for file in (published.WAN_VAE, published.WAN_TEXT, published.WAN_TOKENISER)}  # fmt: skip
        if not row.dit:
            taken.add(base / published.WAN_DIT)
    there = {path for path in folder.rglob("*") if path.is_file()}
    assert taken <= there
    assert {path.name for path in there - taken} <= {"config.json"}


def test_the_rewards_conversions_find_every_file_of_their_rows(tmp_path):
    folder = laid_out("hpsv3", tmp_path / "hpsv3")
    papers = Papers.around(folder)
    assert (folder / HPSV3_FILES[0]).is_file()
    assert papers.find("tokenizer.json").parent.name == "Qwen2-VL-7B-Instruct"
    folder = laid_out("videoalign", tmp_path / "videoalign")
    checkpoint = find_checkpoint(folder)
    assert checkpoint.name == "checkpoint-11352" and (checkpoint / "model.pth").is_file()
    assert Papers.around(checkpoint, folder).find("config.json").parent.name == "Qwen2-VL-2B-Instruct"  # fmt: skip


@pytest.mark.parametrize("name", ["hpsv3", "videoalign", "imagereward"])
def test_every_reward_has_a_conversion(name):
    assert name in REWARDS and name in find_row(name).use


def test_licences_that_forbid_commercial_use_are_marked():
    restricted = {name for name, row in CATALOGUE.items() if row.restricted}
    assert restricted == {"longlive", "self-forcing", "causvid"}


def test_a_size_is_exact_only_where_digests_cover_it():
    known, unknown = HubFile("a", 10_000, "0" * 64), HubFile("b", 50)
    row = Row("x", "", (Part("o/n", "MIT", (known, unknown)),), "")
    assert row.exact and row.bytes == 10_050
    loose = Row("x", "", (Part("o/n", "MIT", (unknown,)),), "")
    assert not loose.exact
    assert not find_row("imagereward").exact and find_row("longlive").exact


def test_an_unknown_name_is_guessed():
    with pytest.raises(ValueError, match=r"known: wan-1.3b, .*; did you mean videoalign\?"):
        find_row("videoaling")
