"""The table of what can be fetched: exact where it claims to be, and honest about licences."""

import pytest

from runtime.catalogue import CATALOGUE, HubFile, Part, Row, find_row
from runtime.generators.published import CONVERSIONS as GENERATORS
from runtime.hub import is_hex
from runtime.rewards.published import CONVERSIONS as REWARDS
from runtime.settings import PRESETS

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


@pytest.mark.parametrize("name", ["hpsv3", "videoalign"])
def test_every_reward_of_the_paper_has_a_conversion(name):
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
