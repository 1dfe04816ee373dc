"""Prompts to embeddings: a tokeniser file and a UMT5 encoder, the same classes for Wan's UMT5-XXL and the embedded one.

The encoder is transformers' ``UMT5EncoderModel`` and the tokeniser the ``tokenizers`` library: text runs once per prompt,
so nothing is to be gained by code of our own, and their parameter names are the ones published weights come with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Sizes of a UMT5 encoder, under the names of its published configuration."""

    vocab_size: int
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"text.{name}: want a whole number of at least 1, got {value!r}")


class Tokeniser(Protocol):
    """What ``TextEncoder`` asks of a tokeniser: the part of ``tokenizers.Tokenizer`` that it uses."""

    def encode(self, sequence: str) -> Any:
        """``ids`` of the text's tokens and their ``offsets``, [first, last) in characters."""
        ...

    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Coded:
    ids: list[int]
    offsets: list[tuple[int, int]]


class ByteTokeniser:
    """Every UTF-8 byte is a token, wrapped around small vocabularies: for random weights, which come without a file."""

    def __init__(self, vocab_size: int) -> None:
        if vocab_size < 4:
            raise ValueError(f"vocab_size: want at least 4, three are special, got {vocab_size}")
        self.vocab_size = vocab_size

    def encode(self, sequence: str) -> Coded:
        ids = [*(3 + byte % (self.vocab_size - 3) for byte in sequence.encode()), 1]
        return Coded(ids, [(0, 0)] * len(ids))

    def token_to_id(self, token: str) -> int | None:
        return None  # no byte is unknown


class Visitor:
    """A module that waits in host memory and is on the device for one call at a time.

    ``move`` copies a tensor to a device. On a GPU the host memory is pinned, so that the copies run at full speed and
    the host does not wait for them.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        move: Callable[[Tensor, torch.device], Tensor] = lambda t, device: t.to(
            device, non_blocking=True
        ),
    ) -> None:
        self.module, self.device, self.move = module, device, move
        self.home = list(dict.fromkeys(chain(module.parameters(), module.buffers())))
        if device.type == "cuda":
            for tensor in self.home:
                tensor.data = tensor.data.pin_memory()

    @contextmanager
    def present(self) -> Iterator[nn.Module]:
        """The module on the device; it leaves when the block ends, however it ends."""
        waiting = [tensor.data for tensor in self.home]
        try:
            for tensor in self.home:
                tensor.data = self.move(tensor.data, self.device)
            yield self.module
        finally:
            for tensor, data in zip(self.home, waiting, strict=True):
                tensor.data = data


def word_tokeniser(words: Sequence[str]) -> Tokenizer:
    """A tokeniser of whole words, lower-cased, punctuation dropped, closed with the end token like UMT5's."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

    vocabulary = {token: index for index, token in enumerate([PAD, END, UNKNOWN, *words])}
    tokeniser = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokeniser.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokeniser.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]+"), "removed")
    tokeniser.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    return tokeniser


def build_encoder(config: TextConfig) -> nn.Module:
    """An uninitialised-by-file UMT5 encoder of these sizes; transformers is imported here because it takes seconds."""
    from transformers import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    arguments: dict[str, Any] = {
        **asdict(config),
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
    }
    return UMT5EncoderModel(UMT5Config(**arguments))


class TextEncoder:
    """Encodes one prompt to [1, tokens, d_model]; rows beyond the prompt are left for the model to zero-pad."""

    def __init__(self, tokeniser: Tokeniser, encoder: nn.Module | Visitor, text_len: int) -> None:
        self.tokeniser = tokeniser
        self.encoder = encoder
        self.text_len = text_len
        (encoder.module if isinstance(encoder, Visitor) else encoder).eval()

    @staticmethod
    def read_tokeniser(path: Path) -> Tokenizer:
        """The tokeniser in ``path``. ValueError when there is none or the file is not a tokeniser's."""
        if not path.is_file():
            raise ValueError(f"tokeniser: no such file: {path}")
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokeniser file ({error})") from None

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of ``prompt`` that the tokeniser replaces by its unknown token, in order, without repeats."""
        unknown = self.tokeniser.token_to_id(UNKNOWN)
        coded = self.tokeniser.encode(prompt)
        spans = (
            s for i, s in zip(coded.ids, coded.offsets, strict=True) if i == unknown and s[1] > s[0]
        )
        return list(dict.fromkeys(prompt[first:last] for first, last in spans))

    def token_ids(self, prompt: str) -> list[int]:
        """Ids of ``prompt``, cut to ``text_len`` with the end token kept."""
        ids = self.tokeniser.encode(re.sub(r"\s+", " ", prompt).strip()).ids
        return ids if len(ids) <= self.text_len else [*ids[: self.text_len - 1], ids[-1]]

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """One prompt -> embeddings [1, tokens, d_model] in the encoder's dtype and on its device."""
        with self._present() as encoder:
            device = next(encoder.parameters()).device
            ids = torch.tensor([self.token_ids(prompt)], device=device)
            return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    def _present(self) -> AbstractContextManager[nn.Module]:
        encoder = self.encoder
        return encoder.present() if isinstance(encoder, Visitor) else nullcontext(encoder)
