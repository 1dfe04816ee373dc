"""Our prompt embeddings against a plain padded forward of transformers' UMT5, and what the model makes of padding."""

from dataclasses import replace

import pytest
import torch

from runtime.generators.folder import SHARED
from runtime.generators.text import TextConfig, TextEncoder, build_encoder, word_tokeniser
from runtime.generators.text_keys import from_wan_keys, to_wan_keys
from tests.tiny import generator_of, scrambled, tiny_dit

transformers = pytest.importorskip("transformers")

WORDS = ["a", "red", "circle", "moving", "left"]
TEXT_LEN = 9
PROMPTS = ["", "red", "a red circle", "a red circle moving left a red circle moving left"]


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    sizes = {"d_model": 6, "d_kv": 5, "d_ff": 12, "num_layers": 2, "num_heads": 3}
    encoder = build_encoder(TextConfig(vocab_size=3 + len(WORDS), **sizes))
    return TextEncoder(word_tokeniser(WORDS), scrambled(encoder), TEXT_LEN)


@torch.no_grad()
def padded(text: TextEncoder, prompt: str) -> torch.Tensor:
    """As Wan does it: pad ids to the full length, mask the padding, zero its rows."""
    ids = text.token_ids(prompt)
    row = torch.tensor([ids + [0] * (TEXT_LEN - len(ids))])
    mask = torch.arange(TEXT_LEN)[None] < len(ids)
    return (
        text.encoder(input_ids=row, attention_mask=mask.long()).last_hidden_state * mask[..., None]
    )


@pytest.mark.parametrize("prompt", PROMPTS, ids=["empty", "word", "words", "cut"])
def test_a_prompt_encodes_as_in_a_padded_batch(text, prompt):
    got, want = text.encode(prompt), padded(text, prompt)
    assert got.shape[1] == len(text.token_ids(prompt)) <= TEXT_LEN
    assert (got - want[:, : got.shape[1]]).abs().max() < 1e-5
    assert (want[:, got.shape[1] :] == 0).all()


@pytest.mark.parametrize("prompt", PROMPTS, ids=["empty", "word", "words", "cut"])
@torch.no_grad()
def test_the_model_sees_zero_rows_beyond_the_prompt(text, prompt):
    """Cross-attention keys and values of a short prompt are those of its zero-padded rows, none of them left out."""
    dit = tiny_dit(2, torch.float32)
    dit.config = replace(dit.config, text_len=TEXT_LEN)
    context = dit.text_context(text.encode(prompt))
    embedded = dit.text_embedding(padded(text, prompt))
    for block, keys, values in zip(dit.blocks, context.keys, context.values, strict=True):
        assert keys.shape == (1, TEXT_LEN, 2, 12)
        want_keys, want_values = block.cross_kv(embedded)
        assert (keys - want_keys).abs().max() < 1e-5
        assert (values - want_values).abs().max() < 1e-5


def test_a_prompt_longer_than_the_model_reads_is_an_error():
    dit = tiny_dit()
    rows = torch.randn(1, 5, 6, generator=generator_of(0), dtype=torch.float64)
    with pytest.raises(ValueError, match="prompt: want at most 4 tokens, got 5"):
        dit.text_context(rows)


def test_word_order_matters(text):
    one, other = text.encode("red circle"), text.encode("circle red")
    assert (one[:, -1] - other[:, -1]).abs().max() > 1e-4


def test_the_classes_are_those_that_published_weights_name(text):
    names = set(text.encoder.state_dict())
    assert (
        {
            "shared.weight",
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",  # UMT5: in every layer
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_1.weight",
            "encoder.final_layer_norm.weight",
        }
        <= names
    )


def test_wan_s_names_of_the_same_weights(text):
    """Written out as its checkpoint has them, for two layers."""
    state = {k: v for k, v in text.encoder.state_dict().items() if k not in SHARED}
    wan = {"token_embedding.weight": state["shared.weight"]}
    wan["norm.weight"] = state["encoder.final_layer_norm.weight"]
    for layer in (0, 1):
        attention, feed = (f"encoder.block.{layer}.layer.{half}." for half in (0, 1))
        parts = {
            "norm1": f"{attention}layer_norm",
            "attn.q": f"{attention}SelfAttention.q",
            "attn.k": f"{attention}SelfAttention.k",
            "attn.v": f"{attention}SelfAttention.v",
            "attn.o": f"{attention}SelfAttention.o",
            "pos_embedding.embedding": f"{attention}SelfAttention.relative_attention_bias",
            "norm2": f"{feed}layer_norm",
            "ffn.gate.0": f"{feed}DenseReluDense.wi_0",
            "ffn.fc1": f"{feed}DenseReluDense.wi_1",
            "ffn.fc2": f"{feed}DenseReluDense.wo",
        }
        for mine, theirs in parts.items():
            wan[f"blocks.{layer}.{mine}.weight"] = state[f"{theirs}.weight"]
    got = from_wan_keys(wan)
    assert got.keys() == state.keys() and all(got[k] is v for k, v in state.items())
    assert to_wan_keys(state).keys() == wan.keys()
    assert list(
        from_wan_keys({"blocks.0.ffn.fc3.weight": wan["norm.weight"], "x": wan["norm.weight"]})
    ) == [
        "blocks.0.ffn.fc3.weight",
        "x",
    ]
