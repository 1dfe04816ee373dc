"""The user's prompts: VBench's own ``VBench_full_info.json``, or a text file with one prompt a line. Nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.arguments import PROMPTS_FILE_BYTES, checked

OPTION = "--prompts-file"
MOST_PROMPTS = 10_000  # in a file; Movie Gen Video Bench has 1,003
MOST_DIMENSIONS = 32  # VBench has 16


@dataclass(frozen=True, slots=True)
class PromptList:
    """Prompts in the file's order, each once, and of VBench's suite what each of them is there to measure."""

    texts: tuple[str, ...]
    places: tuple[int, ...]  # of each prompt among the file's entries, where it stands first
    entries: int  # of the file; VBench's 946 hold two prompts twice
    dimensions: tuple[frozenset[str], ...] = ()  # of each prompt; (): every prompt is for all
    full_info: Path | None = None  # VBench's own file, where the prompts came from it

    @property
    def standard(self) -> bool:
        """They are VBench's suite: each of its dimensions has prompts of its own."""
        return self.full_info is not None

    def first(self, count: int) -> list[str]:
        """The prompts of the file's first ``count`` entries. ValueError where it has fewer."""
        if not 1 <= count <= self.entries:
            raise ValueError(
                f"--prompts: want 1 to {self.entries}, all that the file has, got {count}"
            )
        return [text for text, place in zip(self.texts, self.places, strict=True) if place < count]

    def asks(self, index: int, dimension: str) -> bool:
        """Whether prompt ``index`` is there to measure ``dimension``."""
        return not self.dimensions or dimension in self.dimensions[index]


def read_prompt_file(path: Path) -> PromptList:
    """What ``path`` holds; a name that ends in .json is VBench's format. ValueError says which entry is wrong and why."""
    if path.suffix.lower() == ".json":
        return _full_info(path)
    texts = [
        checked(line.strip(), f"{OPTION}: {path}: line {number}")
        for number, line in enumerate(_content(path).split("\n"), 1)
        if line.strip()
    ]
    if not 1 <= len(texts) <= MOST_PROMPTS:
        raise ValueError(f"{OPTION}: want 1 to {MOST_PROMPTS} prompts, got {len(texts)}: {path}")
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    once = sorted(first, key=first.__getitem__)
    return PromptList(tuple(once), tuple(first[text] for text in once), len(texts))


def _full_info(path: Path) -> PromptList:
    entries = _json_list(path)
    found: dict[str, frozenset[str]] = {}
    places: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{OPTION}: {path}: entry {number}"
        prompt = entry.get("prompt_en") if isinstance(entry, dict) else None
        if not isinstance(prompt, str):
            raise ValueError(f'{where}: want an object with a "prompt_en", got {_short(entry)}')
        names = entry.get("dimension")
        if not isinstance(names, list) or not 1 <= len(names) <= MOST_DIMENSIONS:
            raise ValueError(
                f'{where}: want a list of names as its "dimension", got {_short(names)}'
            )
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f'{where}: want names in its "dimension", got {_short(names)}')
        text = checked(prompt, where)
        places.setdefault(text, number - 1)
        found[text] = found.get(text, frozenset()) | frozenset(names)
    dimensions = tuple(found.values())
    return PromptList(
        tuple(found), tuple(places.values()), len(entries), dimensions, path.resolve()
    )


def _json_list(path: Path) -> list[Any]:
    try:
        entries = json.loads(_content(path))
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{OPTION}: {path}: is not JSON{where}") from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_PROMPTS:
        got = f"{len(entries)} of them" if isinstance(entries, list) else type(entries).__name__
        raise ValueError(
            f"{OPTION}: {path}: want a list of 1 to {MOST_PROMPTS} prompts as VBench_full_info.json is, got {got}"
        )
    return entries


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(PROMPTS_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{OPTION}: cannot read {path}: {error.strerror}") from None
    if len(content) > PROMPTS_FILE_BYTES:
        raise ValueError(f"{OPTION}: want at most {PROMPTS_FILE_BYTES // 2**20} MiB: {path}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{OPTION}: {path}: line {line} is not valid UTF-8") from None


def _short(value: Any) -> str:
    return repr(value)[:60]
