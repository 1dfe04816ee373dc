"""Prompts become ids: words the tokeniser lacks are told, long prompts keep their end."""

import pytest
import torch
from torch import nn

from runtime.generators.text import END, PAD, UNKNOWN, TextConfig, TextEncoder, word_tokeniser

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
