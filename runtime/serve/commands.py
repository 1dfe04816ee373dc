"""What the server asks of the worker, as frozen values. A message that is none of them is a ValueError, never a crash."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.scenes import MAX_SCENES, check_prompt
from runtime.settings import LONGEST_SECONDS

NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
MOST_URGENT = 8
LONGEST_GRACE_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Make a video, or go on with one. What its settings may be is the engine's to say."""

    job: str
    folder: Path  # of its files
    prompts: tuple[tuple[int, str], ...]
    settings: Mapping[str, Any]  # changes to the worker's own, by dotted name
    priority: int = 0
    deadline_s: float | None = None
    budget_fps: float | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a job at its next chunk and forget its snapshots."""

    job: str


@dataclass(frozen=True, slots=True)
class Switch:
    """Show something else from ``chunk`` on, or from the next chunk when it is None."""

    job: str
    prompt: str
    chunk: int | None
    tag: Any  # the server's own, handed back


@dataclass(frozen=True, slots=True)
class Stop:
    """Save every job and end."""

    grace_s: float


Command = Submit | Cancel | Switch | Stop


def command_of(message: Mapping[str, Any]) -> Command:
    """The command that ``message`` spells. Raises ValueError that names the field that is wrong."""
    verb = message.get("do")
    if not isinstance(verb, str) or verb not in _SPELLED:
        raise ValueError(f"do: want one of {', '.join(_SPELLED)}, got {_brief(verb)}")
    return _SPELLED[verb](message)


def job_named(message: Mapping[str, Any]) -> str | None:
    """The job that a message is about, if it names one."""
    name = message.get("job")
    return name if isinstance(name, str) and NAME.fullmatch(name) else None


def _submit(message: Mapping[str, Any]) -> Submit:
    folder = _text(message, "folder")
    if "\0" in folder or not Path(folder).is_absolute():
        raise ValueError("folder: want an absolute path")
    priority = _whole(message.get("priority", 0), "priority")
    if not -MOST_URGENT <= priority <= MOST_URGENT:
        raise ValueError(f"priority: want -{MOST_URGENT} to {MOST_URGENT}, got {priority}")
    settings = message.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings: want an object, got {_brief(settings)}")
    resume = message.get("resume", False)
    if not isinstance(resume, bool):
        raise ValueError(f"resume: want true or false, got {_brief(resume)}")
    return Submit(
        job=_job(message),
        folder=Path(folder),
        prompts=_prompts(message.get("prompts")),
        settings=settings,
        priority=priority,
        deadline_s=_positive(message, "deadline_s", LONGEST_SECONDS),
        budget_fps=_positive(message, "budget_fps", 1000.0),
        resume=resume,
    )


def _cancel(message: Mapping[str, Any]) -> Cancel:
    return Cancel(_job(message))


def _switch(message: Mapping[str, Any]) -> Switch:
    prompt = _text(message, "prompt")
    check_prompt(prompt)
    chunk = message.get("chunk")
    if chunk is not None and _whole(chunk, "chunk") < 0:
        raise ValueError(f"chunk: want at least 0, got {chunk}")
    return Switch(_job(message), prompt, chunk, message.get("tag"))


def _stop(message: Mapping[str, Any]) -> Stop:
    grace = message.get("grace_s", 0)
    if not _number(grace) or not 0 <= grace <= LONGEST_GRACE_S:
        raise ValueError(f"grace_s: want 0 to {LONGEST_GRACE_S:.0f} seconds, got {_brief(grace)}")
    return Stop(float(grace))


_SPELLED: Mapping[str, Callable[[Mapping[str, Any]], Command]] = {
    "submit": _submit,
    "cancel": _cancel,
    "switch": _switch,
    "stop": _stop,
}


def _job(message: Mapping[str, Any]) -> str:
    name = job_named(message)
    if name is None:
        raise ValueError(f"job: want 1 to 80 of A-Z a-z 0-9 _ -, got {_brief(message.get('job'))}")
    return name


def _prompts(pairs: Any) -> tuple[tuple[int, str], ...]:
    if not isinstance(pairs, list) or not 1 <= len(pairs) <= MAX_SCENES:
        raise ValueError(f"prompts: want 1 to {MAX_SCENES} pairs of a chunk and a text")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise ValueError("prompts: want pairs of a chunk and a text")
    for _, prompt in pairs:
        check_prompt(prompt)
    return tuple((_whole(chunk, "prompts"), prompt) for chunk, prompt in pairs)


def _text(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key}: want a text, got {_brief(value)}")
    return value


def _whole(value: Any, key: str) -> int:
    if type(value) is not int:
        raise ValueError(f"{key}: want a whole number, got {_brief(value)}")
    return value


def _positive(message: Mapping[str, Any], key: str, most: float) -> float | None:
    value = message.get(key)
    if value is None:
        return None
    if not _number(value) or not 0 < value <= most:
        raise ValueError(f"{key}: want a number in (0, {most:g}], got {_brief(value)}")
    return float(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _brief(value: Any) -> str:
    return repr(value)[:60]
