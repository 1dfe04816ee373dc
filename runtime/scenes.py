"""What a video is told to show and when: one prompt, or several that follow each other at chunks of the caller's choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.settings import PROMPT_CHARACTERS, shown

MAX_SCENES = 1000
Prompts = str | Sequence[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A prompt and the chunk from which on it holds."""

    chunk: int
    prompt: str


def scenes_of(prompts: Prompts, chunks: int) -> tuple[Scene, ...]:
    """The scenes of a video of ``chunks`` chunks: of one prompt, or of pairs of a chunk and a prompt.

    Raises ValueError unless the first begins at chunk 0, each of the others later than the one before and inside the video,
    and every prompt is some words of at most ``PROMPT_CHARACTERS``.
    """
    pairs = [(0, prompts)] if isinstance(prompts, str) else prompts
    if not isinstance(pairs, Sequence):
        raise ValueError(f"prompts: want a text or pairs (chunk, prompt), got {shown(prompts)}")
    if not 1 <= len(pairs) <= MAX_SCENES:
        raise ValueError(f"prompts: want 1 to {MAX_SCENES} scenes, got {len(pairs)}")
    scenes = tuple(_scene(pair) for pair in pairs)
    if scenes[0].chunk != 0:
        raise ValueError(f"prompts: want the first at chunk 0, got chunk {shown(scenes[0].chunk)}")
    for before, after in zip(scenes, scenes[1:], strict=False):
        if after.chunk <= before.chunk:
            raise ValueError(
                f"prompts: want chunks in order, got {shown(after.chunk)} after {shown(before.chunk)}"
            )
    if scenes[-1].chunk >= chunks:
        raise ValueError(
            f"prompts: want chunks below {chunks}, which this video has, got {shown(scenes[-1].chunk)}; "
            "ask for more seconds"
        )
    return scenes


def spelled(pairs: Sequence[tuple[int, str]]) -> str:
    """The scenes as one text, for people."""
    (_, first), *rest = pairs
    return " | ".join([first, *(f"from chunk {chunk}: {prompt}" for chunk, prompt in rest)])


def _scene(pair: tuple[int, str]) -> Scene:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"prompts: want pairs (chunk, prompt), got {shown(pair)}")
    chunk, prompt = pair
    if type(chunk) is not int:
        raise ValueError(f"prompts: want a chunk's number, got {shown(chunk)}")
    check_prompt(prompt)
    return Scene(chunk, prompt)


def check_prompt(prompt: str) -> None:
    """ValueError for a prompt that is no text, empty or longer than ``PROMPT_CHARACTERS``."""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: want a text, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError("prompt: want some words, got an empty text")
    if len(prompt) > PROMPT_CHARACTERS:
        raise ValueError(f"prompt: want at most {PROMPT_CHARACTERS} characters, got {len(prompt)}")
