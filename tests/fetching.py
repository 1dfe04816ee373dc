"""A small published reward on a fake hub, for tests that fetch it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save

from runtime import catalogue, fetch
from runtime.catalogue import BY_NC_SA, MIT, HubFile, Part, Row
from tests.fake_hub import FakeHub, Files, commit
from tests.reward_folder import KINDS, RUBRICS, SIZES, byte_tokeniser, random_net

NAME = "hpsv3"
MAKER, BACKBONE = "maker/HPSv3", "qwen/Qwen2-VL-7B-Instruct"
FIRST, SECOND = commit("first"), commit("second")
WEIGHTS = "HPSv3.safetensors"


def published(seed: int = 0) -> Files:
    """What the maker's repository holds."""
    kind = KINDS[NAME]
    table = SIZES | {"vocab_size": byte_tokeniser(kind.marks).get_vocab_size()}
    return {
        WEIGHTS: save(dict(random_net(kind, table, seed).state_dict())),
        "rubric.txt": RUBRICS[NAME].encode(),
    }


def backbone() -> Files:
    rows = byte_tokeniser(KINDS[NAME].marks).get_vocab_size()
    return {
        "config.json": json.dumps(SIZES | {"vocab_size": rows}).encode(),
        "tokenizer.json": byte_tokeniser(()).to_str().encode(),
    }


def small_row(revision: str = "") -> Row:
    files = HubFile(WEIGHTS, 100_000), HubFile("rubric.txt", 100)
    beside = HubFile("config.json", 500), HubFile("tokenizer.json", 20_000)
    parts = (
        Part(MAKER, BY_NC_SA, files, revision),
        Part(BACKBONE, MIT, beside, folder="Qwen2-VL-7B-Instruct"),
    )
    return Row(NAME, "a small reward", parts, "python -m runtime HERE")


def small_hub(folder: Path) -> FakeHub:
    return FakeHub(folder, {MAKER: {FIRST: published()}, BACKBONE: {FIRST: backbone()}})


class Bench:
    """A fake hub, a home for weights and the command."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(catalogue.CATALOGUE, NAME, small_row())
        self.hub, self.home = small_hub(folder / "cache"), folder / "home"

    def fetch(self, *arguments: str, yes: bool = True) -> int:
        return fetch.main(
            [NAME, "-o", str(self.home), *(["--yes"] if yes else []), *arguments], self.hub
        )

    @property
    def target(self) -> Path:
        return self.home / NAME

    @property
    def manifest(self) -> dict:
        return json.loads((self.target / "manifest.json").read_text())
