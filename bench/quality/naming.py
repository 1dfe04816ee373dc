"""Where each video lies, under the name that VBench looks it up by: ``videos/5s/stream-t1/<prompt>-<sample>.mp4``.

VBench's standard suite finds a video by its prompt, letter for letter, with the sample's number behind it (0 to 4), in a
folder that holds one method's videos and nothing else. Its custom mode takes any name; there a prompt that no file can be
called by is shortened and told apart by a digest, and ``names.json`` beside the folders says which prompt each file is of.

Source   VBench, prompts/README.md (names and the five samples); README.md, "Evaluate Your Own Videos" (any name).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

SAMPLES = 5  # of each prompt that VBench's standard suite looks for
SUFFIX = ".mp4"
NAMES = "names.json"
LONGEST_BYTES = 255  # of a name, on every common file system
# VBench's long mode cuts a video into files that are called as it is and a number.
ROOM_BYTES = 24
_UNSAFE = re.compile(r"[^A-Za-z0-9._=-]+")
_NOT_IN_A_NAME = re.compile(r"[/\\\x00-\x1f\x7f]")
_DIGEST = 8


def method_folder(method: str) -> str:
    """A folder's name for a method's: ``stream-t1[4x2]`` lies in ``stream-t1_4x2``."""
    return _UNSAFE.sub("_", method).strip("_")


def video_folder(folder: Path, seconds: float, method: str) -> Path:
    """Where the videos of one method and length lie; nothing else may."""
    return folder / "videos" / f"{seconds:g}s" / method_folder(method)


def fits(prompt: str, sample: int = SAMPLES) -> bool:
    """Whether a file can be called by ``prompt`` as it stands."""
    name = f"{prompt}-{sample}{SUFFIX}"
    return not _NOT_IN_A_NAME.search(name) and len(os.fsencode(name)) + ROOM_BYTES <= LONGEST_BYTES


def file_name(prompt: str, sample: int, *, exact: bool = False) -> str:
    """``<prompt>-<sample>.mp4``, shortened where no file can be called so.

    With ``exact`` that is a ValueError, for VBench's standard suite would look for the whole prompt and find nothing.
    """
    if fits(prompt, sample):
        return f"{prompt}-{sample}{SUFFIX}"
    if exact:
        raise ValueError(
            f"prompt: want one that a file can be called by, for VBench's standard suite finds videos by "
            f"their prompts, got {prompt[:60]!r}; give the prompts one a line instead of as its JSON"
        )
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:_DIGEST]
    tail = f"~{digest}-{sample}{SUFFIX}"
    room = LONGEST_BYTES - ROOM_BYTES - len(tail)
    short = _NOT_IN_A_NAME.sub("_", prompt).encode()[:room].decode(errors="ignore").rstrip()
    return f"{short}{tail}"


def write_names(videos: Path, prompts: Mapping[str, str]) -> Path:
    """Write file name -> prompt beside the methods' folders, whole or not at all; VBench's ``--prompt_file`` reads it."""
    path = videos / NAMES
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(dict(prompts), indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
    return path
