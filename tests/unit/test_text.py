"""Prompts become ids: words the tokeniser lacks are told, long prompts keep their end."""

import pytest
import torch
from torch import nn

from runtime.generators import load_generator
from runtime.generators.text import (
    END,
    PAD,
    UNKNOWN,
    ByteTokeniser,
    TextConfig,
    TextEncoder,
    Visitor,
    build_encoder,
    word_tokeniser,
)

WORDS = ["a", "red", "circle", "moving", "left", "über", "2"]
FIRST = 3  # id of the first word, after the three special tokens


class Lengths(nn.Module):
    """Stands in for the encoder: every id becomes a row of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, input_ids, attention_mask):
        assert attention_mask.bool().all() and attention_mask.shape == input_ids.shape
        rows = input_ids[..., None] * self.scale
        return type("Output", (), {"last_hidden_state": rows})()


def encoder(text_len: int = 8) -> TextEncoder:
    return TextEncoder(word_tokeniser(WORDS), Lengths(), text_len)


def ids(*words: str) -> list[int]:
    return [FIRST + WORDS.index(word) for word in words]


def test_special_tokens_come_first():
    tokeniser = word_tokeniser(WORDS)
    assert [tokeniser.token_to_id(token) for token in (PAD, END, UNKNOWN)] == [0, 1, 2]
    assert tokeniser.get_vocab_size() == FIRST + len(WORDS)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle",
        "A RED Circle",
        "  a\tred\n\n circle ",
        "a, red... (circle)!",
        "a-red/circle",
        "a\u00a0red \u200bcircle",
        "a \uff32\uff25\uff24 circle",  # full-width letters
        "«a» red — circle 🟥",
    ],
    ids=ascii,
)
def test_case_space_and_punctuation_do_not_matter(prompt):
    assert encoder().token_ids(prompt) == [*ids("a", "red", "circle"), 1]


def test_a_prompt_of_no_words_is_only_its_end():
    assert encoder().token_ids("...") == [1]
    assert encoder().encode("...").shape == (1, 1, 1)


def test_words_of_any_script_and_numbers_are_words():
    assert encoder().token_ids("U\u0308ber 2") == [
        *ids("über", "2"),
        1,
    ]  # a letter and its dots, apart
    assert encoder().token_ids("圆 é") == [2, 2, 1]


@pytest.mark.parametrize("words", [6, 7, 8, 9, 400])
def test_a_long_prompt_is_cut_and_keeps_its_end(words):
    got = encoder(8).token_ids("red " * words)
    assert got == [*ids("red") * min(words, 7), 1] and len(got) <= 8


def test_unknown_words_are_told_once_as_they_were_written():
    prompt = "A Blue circle, a blue square & a Blue hat — 3"
    assert encoder().unknown_words(prompt) == ["Blue", "blue", "square", "hat", "3"]
    assert encoder().unknown_words("a red circle!") == []
    assert encoder().unknown_words("") == []


def test_unknown_words_are_found_after_letters_of_several_bytes():
    assert encoder().unknown_words("über 🟥 großer circle") == ["großer"]


def test_one_prompt_gives_one_row_of_its_own_length():
    got = encoder().encode("a red circle")
    assert got.shape == (1, 4, 1) and got.flatten().tolist() == [*ids("a", "red", "circle"), 1]
    assert not got.requires_grad


@pytest.mark.parametrize(
    "name", ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"]
)
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", None, True])
def test_sizes_that_are_not_whole_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"text.{name}: want a whole number of at least 1, got"):
        TextConfig(**{"vocab_size": 8, name: value})


# Text without a tokeniser file.


def test_bytes_stand_in_for_a_tokeniser():
    wide, narrow = ByteTokeniser(300), ByteTokeniser(64)
    assert wide.encode("aé").ids == [3 + 97, 3 + 0xC3, 3 + 0xA9, 1]
    assert all(0 <= i < 64 for i in narrow.encode("any prompt at all, é").ids)
    assert TextEncoder(narrow, Lengths(), 8).unknown_words("zeppelin") == []
    assert len(TextEncoder(narrow, Lengths(), 8).token_ids("far too many bytes")) == 8
    with pytest.raises(ValueError, match="vocab_size: want at least 4"):
        ByteTokeniser(3)


# An encoder that waits in host memory.

SIZES = TextConfig(vocab_size=64, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)


class Moves:
    """Stands in for the copy to a device: counts, and returns a copy, which a device would hold."""

    def __init__(self, fail_at: int = -1) -> None:
        self.count, self.fail_at, self.there = 0, fail_at, []

    def __call__(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if self.count == self.fail_at:
            raise torch.OutOfMemoryError("no room")
        self.count += 1
        copy = tensor.clone()
        self.there.append(copy.data_ptr())
        return copy


def encoders(moves: Moves) -> tuple[TextEncoder, TextEncoder]:
    """The same weights at home and visiting."""
    torch.manual_seed(0)
    module, words = build_encoder(SIZES).eval(), ByteTokeniser(64)
    visitor = Visitor(module, torch.device("cpu"), moves)
    return TextEncoder(words, module, 16), TextEncoder(words, visitor, 16)


def test_a_visiting_encoder_gives_the_same_bits_every_time():
    moves = Moves()
    at_home, visiting = encoders(moves)
    want = at_home.encode("a red circle")
    places = {p.data_ptr() for p in at_home.encoder.parameters()}
    tensors = len(places) + len(list(at_home.encoder.buffers()))
    for visit in (1, 2):
        assert torch.equal(visiting.encode("a red circle"), want)
        assert moves.count == visit * tensors  # a tensor known under two names moves once
    assert {p.data_ptr() for p in at_home.encoder.parameters()} == places


def test_a_visiting_encoder_computes_where_it_visits():
    at_home, visiting = encoders(moves := Moves())
    with visiting.encoder.present() as module:
        assert {p.data_ptr() for p in module.parameters()} <= set(moves.there)


def test_a_visit_that_fails_leaves_the_encoder_at_home():
    at_home, visiting = encoders(Moves(fail_at=3))
    want, places = at_home.encode("red"), [p.data_ptr() for p in at_home.encoder.parameters()]
    with pytest.raises(torch.OutOfMemoryError):
        visiting.encode("red")
    assert [p.data_ptr() for p in at_home.encoder.parameters()] == places
    assert torch.equal(at_home.encode("red"), want)


@pytest.mark.parametrize("weights", ["", "random"])
def test_an_offloaded_generator_encodes_to_the_same_bits(weights):
    place = "sprites", torch.device("cpu"), torch.bfloat16
    keep, offload = (
        load_generator(*place, weights=weights, offload_text=away) for away in (False, True)
    )
    assert isinstance(offload.text.encoder, Visitor)
    for got, want in zip(
        offload.encode("a red circle").keys, keep.encode("a red circle").keys, strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.gpu
def test_an_encoder_waits_in_pinned_memory_and_leaves_the_gpu_empty():
    place = "sprites", torch.device("cuda"), torch.bfloat16
    keep, offload = (load_generator(*place, offload_text=away) for away in (False, True))
    home = list(offload.text.encoder.module.parameters())
    assert all(p.device.type == "cpu" and p.is_pinned() for p in home)
    offload.encode("warm up what libraries keep for themselves")
    before = torch.cuda.memory_allocated()
    got = offload.text.encode("a red circle")
    assert torch.equal(got, keep.text.encode("a red circle")) and got.is_cuda
    del got
    assert torch.cuda.memory_allocated() <= before
    assert all(p.device.type == "cpu" and p.is_pinned() for p in home)
