"""Our ImageReward against the same thing put together from transformers' BLIP, from one checkpoint under the published names."""

import re

import pytest
import torch
from torch import nn

from runtime.rewards.blip import MEAN, STD, ImageRewardNet
from tests.picture_folder import BLIP_SIZES, small_net
from tests.tiny import generator_of

pytest.importorskip("transformers.models.blip")
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

VISION_NAMES = (  # published -> transformers
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)
PIXELS = torch.randn(3, 3, 32, 32, generator=generator_of(3))
IDS = torch.randint(1, 260, (35,), generator=generator_of(4))
MASK = torch.cat((torch.ones(9), torch.zeros(26))).long()


@pytest.fixture(scope="module")
def ours() -> ImageRewardNet:
    return small_net("imagereward")


@pytest.fixture(scope="module")
def stock(ours):
    """transformers' two towers, filled strictly, so that every published name must have a place."""
    sizes = BLIP_SIZES
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=sizes["vision_width"],
            intermediate_size=4 * sizes["vision_width"],
            num_hidden_layers=sizes["vision_layers"],
            num_attention_heads=sizes["vision_heads"],
            image_size=sizes["image_size"],
            patch_size=16,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
        )
    )
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            encoder_hidden_size=sizes["vision_width"],
            intermediate_size=sizes["intermediate_size"],
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=sizes["num_attention_heads"],
            max_position_embeddings=sizes["max_position_embeddings"],
            layer_norm_eps=1e-12,
            hidden_act="gelu",
            is_decoder=True,  # gives the layers their cross attention; no mask is causal below
        ),
        add_pooling_layer=False,
    )
    state = ours.state_dict()
    seen = {n.removeprefix("blip.visual_encoder."): v for n, v in state.items() if ".visual_" in n}
    for pattern, name in VISION_NAMES:
        seen = {re.sub(pattern, name, key): value for key, value in seen.items()}
    vision.load_state_dict(seen)
    prefix = "blip.text_encoder."
    text.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if prefix in n})
    return vision.eval(), text.eval()


def stock_score(ours, stock, pixels, ids, mask):
    """As the code published with ImageReward does it, one picture after the other."""
    vision, text = stock
    scores = []
    for picture in pixels:
        seen = vision(pixel_values=picture[None]).last_hidden_state
        said = text(
            input_ids=ids[None],
            attention_mask=mask[None],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long),
            is_decoder=False,
        ).last_hidden_state[:, 0]
        for layer in ours.mlp.layers:
            if isinstance(layer, nn.Linear):
                said = said @ layer.weight.T + layer.bias
        scores.append((said[0, 0] - MEAN) / STD)
    return torch.stack(scores)


@torch.no_grad()
def test_the_network_is_transformers_blip_with_the_published_head(ours, stock):
    want = stock_score(ours, stock, PIXELS, IDS, MASK)
    got = ours(PIXELS, *ours.read(IDS, MASK))
    assert want.std() > 1e-2  # or nothing would tell one picture from another
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_is_padding_is_not_seen_and_what_is_a_word_is(ours):
    other = IDS.clone()
    other[20] += 1
    score = ours(PIXELS, *ours.read(IDS, MASK))
    assert torch.equal(score, ours(PIXELS, *ours.read(other, MASK)))
    other[3] += 1
    assert not torch.allclose(score, ours(PIXELS, *ours.read(other, MASK)), atol=1e-4)


@torch.no_grad()
def test_the_head_is_five_products_in_a_row_worked_out_by_hand(ours):
    x = torch.randn(2, BLIP_SIZES["hidden_size"], generator=generator_of(5)).double()
    want = x
    for place in (0, 2, 4, 6, 7):  # 1, 3 and 5 are dropouts in the published checkpoint
        weight, bias = (ours.state_dict()[f"mlp.layers.{place}.{k}"] for k in ("weight", "bias"))
        want = want @ weight.double().T + bias.double()
    assert torch.allclose(ours.mlp(x.float()).double(), want, rtol=1e-5, atol=1e-6)
