"""Turns a body into an order: every limit, every name and every value is looked at before anything is allocated."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import ValidationError

from runtime.scenes import check_prompt
from runtime.serve.bodies import CreateVideo, Scene, Search
from runtime.serve.errors import ApiError, guess, told, wrong
from runtime.serve.jobs import Order
from runtime.serve.options import Bounds, ServeOptions

FRIENDLY = {  # a field of ``search`` -> the setting it changes
    "policy": "search.policy",
    "histories": "search.histories",
    "expansions": "search.expansions",
    "seed": "search.seed",
    "propagation": "search.propagation",
    "beta": "noise.beta",
    "pruning": "search.pruning",
    "sinking": "memory.sinking",
    "tau": "reward.tau",
    "quality_threshold": "memory.quality_threshold",
    "transition_threshold": "memory.transition_threshold",
    "ema_alpha": "memory.ema_alpha",
    "reward_stride": "reward.stride",
    "reward_window": "reward.window_chunks",
    "window": "memory.window_frames",
    "horizon": "search.horizon_chunks",
}
ALLOWED = frozenset(FRIENDLY.values()) | {
    "noise.mode",
    "search.drafts",
    "search.draft_passes",
    "memory.sink_frames",
    "memory.max_sink_frames",
    "memory.rope",
    "memory.recache",
}
LONGEST = 10_000
LETTERS = {"K": "histories", "M": "expansions"}
PICTURES = ("input_reference", "image", "image_url", "video", "video_url", "url", "callback_url")
NAMES = (*CreateVideo.model_fields, *Search.model_fields, *Scene.model_fields)


@dataclass(frozen=True, slots=True)
class Menu:
    """What can be ordered here. ``size`` is the loaded model's."""

    options: ServeOptions
    size: str

    def order(self, fields: Mapping[str, Any], *, strict: bool) -> Order:
        """The order that a body means; ``strict``: numbers are not texts. Raises ApiError."""
        body = _read(fields, strict=strict)
        bounds = self.options.bounds
        if body.model not in (None, self.options.model):
            raise wrong("model", f"this server has {self.options.model!r}, got {body.model!r}")
        if body.size not in (None, self.size):
            raise wrong("size", f"this server makes {self.size}, got {body.size!r}")
        changes = self._changes(body)
        seconds = self._seconds(body.seconds)
        try:
            whole = self.options.settings.with_changes(changes | {"seconds": seconds})
        except ValueError as error:
            name, _, message = str(error).partition(": ")
            raise wrong(name.split(" ")[0], message or name) from None
        search, memory, reward = whole.search, whole.memory, whole.reward
        drawn = search.drafts if search.policy == "halving" else search.expansions
        _most("search.histories", search.histories, bounds.histories)
        _most("search.expansions", drawn, bounds.expansions)
        _most("search.histories * search.expansions", search.histories * drawn, bounds.candidates)
        _most("memory.window_frames", memory.window_frames, bounds.window_frames)
        _most("memory.max_sink_frames", memory.max_sink_frames, bounds.window_frames)
        _most("reward.window_chunks", reward.window_chunks, bounds.window_frames)
        # Of no use beyond, and numbers that a machine can count with.
        for name, got in (
            ("search.horizon_chunks", search.horizon_chunks),
            ("search.draft_passes", search.draft_passes),
            ("reward.stride", reward.stride),
        ):
            _most(name, got, LONGEST)
        return Order(
            prompts=_prompts(body, bounds),
            seconds=seconds,
            settings=changes,
            priority=body.priority,
            deadline_s=body.deadline_s,
            budget_fps=body.budget_fps,
        )

    def _seconds(self, asked: float | str | None) -> float:
        seconds = self.options.settings.seconds if asked is None else float(asked)
        most = self.options.bounds.seconds
        if not 0 < seconds <= most:
            raise wrong("seconds", f"want a length in (0, {most:g}], got {seconds:g}")
        return seconds

    @staticmethod
    def _changes(body: CreateVideo) -> dict[str, Any]:
        """Settings by dotted name; ValueErrors of their values are found by ``with_changes``."""
        asked = body.search.model_dump(exclude_none=True)
        changes: dict[str, Any] = {FRIENDLY[name]: value for name, value in asked.items()}
        for name, value in body.settings.items():
            if name not in ALLOWED:
                hint = guess(name, sorted(ALLOWED))
                text = f"no setting of a request; those are {', '.join(sorted(ALLOWED))}{hint}"
                raise wrong(f"settings.{name[:60]}", text, "unknown_field")
            if name in changes:
                raise wrong(f"settings.{name}", "is said in search too; say it once")
            changes[name] = value
        return changes


def read_json(content: bytes) -> dict[str, Any]:
    """A JSON object. Raises ApiError for anything else."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a name occurs twice")
        return fields

    try:
        found = json.loads(content.decode(), parse_constant=refuse, object_pairs_hook=once)
    except RecursionError:
        raise ApiError(400, "body: is nested too deeply", code="invalid_json") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
        raise ApiError(400, f"body: not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "body: want a JSON object", code="invalid_json")
    return found


def read_form(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The fields of a form: ``search[seed]``, ``scenes[][chunk]`` and JSON texts become objects and lists."""
    fields: dict[str, Any] = {}
    scenes: dict[str, list[str]] = {}
    for name, value in pairs:
        path = [part for part in re.split(r"\[|\]\[|\]", name) if part]
        if name.startswith("scenes[]") and len(path) == 2:
            scenes.setdefault(path[1], []).append(value)
        elif len(path) == 2 and path[0] in ("search", "settings"):
            inner = fields.setdefault(path[0], {})
            if not isinstance(inner, dict) or path[1] in inner:
                raise wrong(name[:60], "is said twice")
            inner[path[1]] = _plain(value) if path[0] == "settings" else value
        elif name in fields:
            raise wrong(name[:60], "is said twice")
        else:
            nested = name in ("search", "settings", "scenes")
            fields[name] = _nested(name, value) if nested else value
    if scenes:
        if len({len(values) for values in scenes.values()}) > 1 or "scenes" in fields:
            raise wrong("scenes", "want a chunk and a prompt for each")
        columns = [[(name, value) for value in values] for name, values in scenes.items()]
        fields["scenes"] = [dict(row) for row in zip(*columns, strict=True)]
    return fields


def _nested(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise wrong(name, "not valid JSON", "invalid_json") from None


def _plain(text: str) -> Any:
    """A form's text as the number or truth value it looks like."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _read(fields: Mapping[str, Any], *, strict: bool) -> CreateVideo:
    for name in PICTURES:
        if name in fields:
            text = (
                "this model draws from words alone, and this server fetches nothing; leave it out"
            )
            raise wrong(name, text, "unsupported_field")
    search = fields.get("search")
    if isinstance(search, Mapping):
        renamed = [LETTERS.get(str(name), str(name)) for name in search]
        if len(set(renamed)) < len(renamed):
            raise wrong("search", "K is histories and M is expansions; say each once")
        fields = {**fields, "search": dict(zip(renamed, search.values(), strict=True))}
    try:
        return CreateVideo.model_validate(dict(fields), strict=strict)
    except ValidationError as error:
        raise told(error.errors(include_url=False, include_context=False), NAMES) from None


def _prompts(body: CreateVideo, bounds: Bounds) -> tuple[tuple[int, str], ...]:
    told_ = ((0, body.prompt), *((scene.chunk, scene.prompt) for scene in body.scenes))
    _most("scenes", len(told_), bounds.scenes)
    for number, (chunk, prompt) in enumerate(told_):
        name = f"scenes.{number - 1}" if number else "prompt"
        check_text(prompt, bounds, name)
        if number and chunk <= told_[number - 1][0]:
            raise wrong(name, f"want chunks in order, got {chunk} after {told_[number - 1][0]}")
    return told_


def check_text(prompt: str, bounds: Bounds, name: str = "prompt") -> None:
    """Raises ApiError for a prompt that no model could take."""
    _most(f"{name}: characters", len(prompt), bounds.prompt_characters)
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise wrong(name, "is not valid Unicode")
    try:
        check_prompt(prompt)
    except ValueError as error:
        raise wrong(name, str(error).partition(": ")[2]) from None


def _most(name: str, got: float, most: float) -> None:
    if got > most:
        raise ApiError(
            400,
            f"{name}: this server takes at most {most:g}, got {got}",
            code="limit_exceeded",
            param=name.partition(":")[0],
        )
