"""The user's prompts: VBench's own ``VBench_full_info.json``, or a text file with one prompt a line. Nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.arguments import PROMPTS_FILE_BYTES, checked, read_prompts
from runtime.settings import MAX_PROMPTS

OPTION = "--prompts-file"
MOST_DIMENSIONS = 32  # VBench has 16


@dataclass(frozen=True, slots=True)
class PromptList:
    """Prompts in the file's order, and of VBench's suite what each of them is there to measure."""

    texts: tuple[str, ...]
    dimensions: tuple[frozenset[str], ...] = ()  # of each prompt; (): every prompt is for all
    full_info: Path | None = None  # VBench's own file, where the prompts came from it

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def standard(self) -> bool:
        """They are VBench's suite: each of its dimensions has prompts of its own."""
        return self.full_info is not None

    def first(self, count: int) -> PromptList:
        """The first ``count`` of them. ValueError where the file has fewer."""
        if not 1 <= count <= len(self):
            raise ValueError(
                f"--prompts: want 1 to {len(self)}, all that the file has, got {count}"
            )
        return PromptList(self.texts[:count], self.dimensions[:count], self.full_info)

    def asks(self, index: int, dimension: str) -> bool:
        """Whether prompt ``index`` is there to measure ``dimension``."""
        return not self.dimensions or dimension in self.dimensions[index]


def read_prompt_file(path: Path) -> PromptList:
    """What ``path`` holds; a name that ends in .json is VBench's format. ValueError says which entry is wrong and why."""
    if path.suffix.lower() == ".json":
        return _full_info(path)
    texts = read_prompts(path)
    first: dict[str, int] = {}
    for number, text in enumerate(texts, 1):
        if text in first:
            raise ValueError(
                f"{OPTION}: {path}: prompt {number} is prompt {first[text]} again, and its video would "
                f"take the other's place: {text[:60]!r}; leave one out"
            )
        first[text] = number
    return PromptList(tuple(texts))


def _full_info(path: Path) -> PromptList:
    entries = _json_list(path)
    found: dict[str, frozenset[str]] = {}
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
        found[text] = found.get(text, frozenset()) | frozenset(names)
    return PromptList(tuple(found), tuple(found.values()), path.resolve())


def _json_list(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            content = file.read(PROMPTS_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{OPTION}: cannot read {path}: {error.strerror}") from None
    if len(content) > PROMPTS_FILE_BYTES:
        raise ValueError(f"{OPTION}: want at most {PROMPTS_FILE_BYTES // 2**20} MiB: {path}")
    try:
        entries = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{OPTION}: {path}: is not valid UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = str(error).partition(": line")[0] or "nested too deep"
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{OPTION}: {path}: is not JSON{line}: {reason}") from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_PROMPTS:
        got = f"{len(entries)} of them" if isinstance(entries, list) else type(entries).__name__
        raise ValueError(
            f"{OPTION}: {path}: want a list of 1 to {MAX_PROMPTS} prompts as VBench_full_info.json is, got {got}"
        )
    return entries


def _short(value: Any) -> str:
    return repr(value)[:60]
