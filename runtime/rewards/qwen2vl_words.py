"""What a Qwen2-VL reward reads around its pictures: a rubric from a file, or filler of the same length for timing.

The pictures come first, then the text, in one user turn of the model's usual chat. The rubric is the prose that a published
reward was trained with; it is not part of this package but lies as ``rubric.txt`` beside the weights: all the user says after
the pictures, ``{prompt}`` where the prompt goes, every read-out token once and in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

PLACE = "{prompt}"
PICTURE_START, PICTURE_END = "<|vision_start|>", "<|vision_end|>"
BEFORE = (
    f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{PICTURE_START}"
)
MAX_RUBRIC_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids around the pictures; ``at`` are the positions in ``after`` where the model is read, the last being its end."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    at: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.before) + len(self.after)

    @property
    def back(self) -> tuple[int, ...]:
        """How many tokens before the end each read-out is."""
        return tuple(self.at[-1] - at for at in self.at)


class Script(Protocol):
    """Turns a prompt into what the model reads."""

    def ids(self, prompt: str) -> TokenIds: ...


class Rubric:
    """The rubric in a folder, in the folder's tokeniser."""

    def __init__(self, folder: Path, marks: tuple[str, ...], vocab_size: int) -> None:
        """Reads ``tokenizer.json`` and ``rubric.txt``; ``marks`` are the read-out tokens. ValueError names file and token."""
        self.marks = marks
        self.tokeniser = read_tokeniser(folder / "tokenizer.json", marks, vocab_size)
        self.text = read_rubric(folder / "rubric.txt", marks)
        self.mark_ids = tuple(self.tokeniser.token_to_id(mark) for mark in marks)

    def ids(self, prompt: str) -> TokenIds:
        """A prompt that spells special tokens is text all the same: they are spelt apart."""
        spoken = self.text.replace(PLACE, prompt.replace("<|", "< |"))
        after = self._encode(PICTURE_END + spoken)
        at = tuple(after.index(mark) for mark in self.mark_ids)
        return TokenIds(self._encode(BEFORE), after[: at[-1] + 1], at)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokeniser.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True, slots=True)
class Filler:
    """For random weights, which cannot read: ``tokens`` ids in all whatever the prompt, so every timing has one length.

    A byte is its own id and the read-out tokens are the last of the vocabulary. The prompt stands in the last of as many
    equal sections as there are read-out tokens, cut or padded with full stops to fit.
    """

    tokens: int
    marks: int
    vocab_size: int

    def __post_init__(self) -> None:
        least = len(BEFORE) + 2 * self.marks
        if self.tokens < least or self.vocab_size < 256 + self.marks:
            raise ValueError(
                f"filler: want at least {least} tokens and a vocabulary of {256 + self.marks}, "
                f"got {self.tokens} and {self.vocab_size}"
            )

    def ids(self, prompt: str) -> TokenIds:
        before = tuple(BEFORE.encode())
        length = self.tokens - len(before)
        at = tuple(length * (section + 1) // self.marks - 1 for section in range(self.marks))
        after = list(b"." * length)
        start = at[-2] + 1 if self.marks > 1 else 0
        spoken = prompt.encode()[: at[-1] - start]
        after[start : start + len(spoken)] = spoken
        for number, place in enumerate(at):
            after[place] = self.vocab_size - self.marks + number
        return TokenIds(before, tuple(after), at)


def read_tokeniser(path: Path, marks: tuple[str, ...], vocab_size: int) -> Tokenizer:
    """The tokeniser in ``path``. ValueError unless each of ``marks`` is one token of it and of the model."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; copy the tokenizer.json that came with the weights"
        )
    try:
        tokeniser = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: not a tokeniser file ({error})") from None
    for mark in (*marks, PICTURE_START, PICTURE_END):
        ids = tokeniser.encode(mark, add_special_tokens=False).ids
        if len(ids) != 1 or tokeniser.token_to_id(mark) != ids[0]:
            raise ValueError(
                f"{path}: want {mark} as one token, got {len(ids)}; add it as the reward's training did"
            )
        if ids[0] >= vocab_size:
            raise ValueError(
                f"{path}: {mark} has id {ids[0]}, but the model knows {vocab_size} tokens; "
                "the tokeniser belongs to other weights"
            )
    return tokeniser


def rubric_command(name: str, folder: Path) -> str:
    """The command that writes the rubric of the reward called ``name`` into its folder."""
    return f"python -m runtime.rewards.rubric {name} --from PATH_OF_ITS_AUTHORS_CODE -o {folder}"


def read_rubric(path: Path, marks: tuple[str, ...]) -> str:
    """The text in ``path``. ValueError unless it has one place for the prompt and each of ``marks`` once, in order."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; put there what the reward's authors ask after the pictures, with {PLACE} "
            f"and {', '.join(marks)} in their places, or let it be taken out of their code: "
            f"{rubric_command(path.parent.name, path.parent)}"
        )
    if path.stat().st_size > MAX_RUBRIC_BYTES:
        raise ValueError(
            f"{path}: want at most {MAX_RUBRIC_BYTES} bytes, got {path.stat().st_size}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from None
    for piece in (PLACE, *marks):
        if text.count(piece) != 1:
            raise ValueError(f"{path}: want {piece} once, got it {text.count(piece)} times")
    if [mark for _, mark in sorted((text.index(mark), mark) for mark in marks)] != list(marks):
        raise ValueError(f"{path}: want the read-out tokens in the order {', '.join(marks)}")
    return text
