"""What BERT and CLIP read of a prompt: token ids cut or padded to one length, from a tokeniser file or, for timing, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

MAX_TOKENISER_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Ids of one length; ``mask`` is 1 where they are not padding."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]


class FixedWords:
    """Prompts in a folder's tokeniser, with its own marks around them."""

    def __init__(self, path: Path, length: int, pad: str, vocab_size: int) -> None:
        """``pad`` is the padding token. ValueError names the file that is missing or belongs to other weights."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file; copy the tokenizer.json of the backbone")
        if path.stat().st_size > MAX_TOKENISER_BYTES:
            raise ValueError(
                f"{path}: want at most {MAX_TOKENISER_BYTES} bytes, got {path.stat().st_size}"
            )
        try:
            self.tokeniser = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokeniser file ({error})") from None
        pad_id = self.tokeniser.token_to_id(pad)
        if pad_id is None or pad_id >= vocab_size:
            raise ValueError(f"{path}: want {pad} as a token below {vocab_size}, got id {pad_id}")
        largest = self.tokeniser.get_vocab_size()
        if largest > vocab_size:
            raise ValueError(
                f"{path}: has {largest} tokens, but the model knows {vocab_size}; "
                "the tokeniser belongs to other weights"
            )
        around = len(self.tokeniser.encode("").ids)
        if around != 2:
            raise ValueError(
                f"{path}: want one mark before and one behind a text, got {around}; copy the tokenizer.json of the backbone"
            )
        self.tokeniser.enable_truncation(length)
        self.tokeniser.enable_padding(length=length, pad_id=pad_id, pad_token=pad)
        # A prompt that spells a special token is text all the same.
        self.tokeniser.encode_special_tokens = True

    def ids(self, prompt: str) -> TokenRow:
        said = self.tokeniser.encode(prompt)
        return TokenRow(tuple(said.ids), tuple(said.attention_mask))


@dataclass(frozen=True, slots=True)
class ByteWords:
    """For random weights, which cannot read: a byte is its own id, and ``last`` the id behind them."""

    length: int
    last: int

    def ids(self, prompt: str) -> TokenRow:
        spoken = prompt.encode()[: self.length - 1]
        ids = (*spoken, self.last)
        rest = self.length - len(ids)
        return TokenRow(ids + (0,) * rest, (1,) * len(ids) + (0,) * rest)
