"""Yes-or-no questions about a video, and how a chat model is asked them: the words of ``runtime/rewards/videollama3.py``.

The questions lie as ``questions.json`` beside the weights, ``[{"text": "...", "weight": 0.3}, ...]``, with ``{prompt}`` where the
prompt goes, if it does. Those of VisionReward belong to its authors and are not copied here. Around them stands the chat
template of the folder's tokeniser, which transformers renders in a sandbox.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MAX_QUESTIONS = 256
MAX_CHARACTERS = 2000
MAX_BYTES = 1 << 20
PLACE = "{prompt}"
YES, NO = ("Yes", "yes", " Yes", " yes", "YES"), ("No", "no", " No", " no", "NO")
REPLY = "\nAnswer yes or no."


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Token ids around the frames of a video: before each of them, and after the last, once for every question."""

    before: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[int, ...], ...]


class Asker(Protocol):
    """Turns a prompt and the times of its frames into tokens."""

    @property
    def yes(self) -> tuple[int, ...]:
        """Ids that an answer may begin with."""
        ...

    @property
    def no(self) -> tuple[int, ...]: ...

    @property
    def weights(self) -> tuple[float, ...]: ...

    def dialogue(self, prompt: str, seconds: Sequence[float]) -> Dialogue: ...


def read_questions(path: Path) -> tuple[Question, ...]:
    """The questions in ``path``. ValueError names the file and the question that is wrong."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; put there what the video is to be asked, as "
            '[{"text": "Is the picture sharp?", "weight": 1.0}, ...]'
        )
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: want at most {MAX_BYTES} bytes, got {path.stat().st_size}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(table, list) or not 1 <= len(table) <= MAX_QUESTIONS:
        raise ValueError(f"{path}: want a list of 1 to {MAX_QUESTIONS} questions")
    return tuple(_question(path, number, entry) for number, entry in enumerate(table, 1))


def _question(path: Path, number: int, entry: Any) -> Question:
    table: dict[str, Any] = entry if isinstance(entry, dict) else {}
    text, weight = table.get("text"), table.get("weight")
    if not isinstance(text, str) or not 1 <= len(text.strip()) <= MAX_CHARACTERS:
        raise ValueError(
            f"{path}: question {number}: want a text of 1 to {MAX_CHARACTERS} characters"
        )
    real = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is None or not real or not math.isfinite(weight) or abs(weight) > 1000:
        raise ValueError(f"{path}: question {number}: want a weight of -1000 to 1000, got {weight!r}")  # fmt: skip
    return Question(text.strip(), float(weight))


class ChatAsker:
    """Questions in a folder, in the folder's chat template and tokeniser."""

    def __init__(self, folder: Path, video_token_id: int) -> None:
        """``video_token_id`` is the model's mark for a piece of a frame. ValueError names what is missing."""
        from transformers import AutoTokenizer

        self.questions = read_questions(folder / "questions.json")
        self.weights = tuple(question.weight for question in self.questions)
        try:
            self.tokeniser = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"{folder}: no tokeniser that transformers knows ({error})") from None
        self.video = self.tokeniser.convert_ids_to_tokens(video_token_id)
        if not isinstance(self.video, str) or not self.tokeniser.chat_template:
            raise ValueError(
                f"{folder}: want a chat template and a token {video_token_id}; the tokeniser belongs to other weights"
            )
        self.yes, self.no = (self._single(words) for words in (YES, NO))
        if not (self.yes and self.no):
            raise ValueError(f"{folder}: the tokeniser has no single token for yes or none for no")
        self._split("x")  # or the first score would find out

    def dialogue(self, prompt: str, seconds: Sequence[float]) -> Dialogue:
        """A prompt that spells special tokens is text all the same: they are spelt apart."""
        spoken = prompt.replace("<|", "< |")
        halves = [self._split(q.text.replace(PLACE, spoken) + REPLY) for q in self.questions]
        first = halves[0][0]
        times = [f"Time {second:.1f}s:" for second in seconds]
        before = [first + times[0], *(f",{time}" for time in times[1:])]
        return Dialogue(
            tuple(self._ids(text) for text in before),
            tuple(self._ids(after) for _, after in halves),
        )

    def _split(self, question: str) -> tuple[str, str]:
        """What the chat says before and after the video."""
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.tokeniser.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        parts = text.split(self.video)
        if len(parts) != 2:
            raise ValueError(
                f"chat template: want {self.video} once, got {len(parts) - 1}: it is not VideoLLaMA3's of transformers"
            )
        return parts[0], parts[1]

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokeniser(text, add_special_tokens=False)["input_ids"])

    def _single(self, words: Sequence[str]) -> tuple[int, ...]:
        ids = [self._ids(word) for word in words]
        return tuple(dict.fromkeys(found[0] for found in ids if len(found) == 1))


@dataclass(frozen=True, slots=True)
class ByteAsker:
    """For random weights, which cannot read: ``count`` questions of ``length`` tokens, a byte its own id."""

    count: int = 32
    length: int = 40
    yes: tuple[int, ...] = (ord("y"),)
    no: tuple[int, ...] = (ord("n"),)

    @property
    def weights(self) -> tuple[float, ...]:
        return (1.0,) * self.count

    def dialogue(self, prompt: str, seconds: Sequence[float]) -> Dialogue:
        before = tuple(tuple(f",Time {second:.1f}s:".encode()) for second in seconds)
        spoken = (prompt.encode() + b"." * self.length)[: self.length - 1]
        asked = tuple((*spoken, number % 256) for number in range(self.count))
        return Dialogue(before, asked)
