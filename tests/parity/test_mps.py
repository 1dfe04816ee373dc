"""Our CLIP against transformers' CLIPModel, and MPS's cross model against its formulas written out for single heads."""

import math

import pytest
import torch
import torch.nn.functional as F

from runtime.rewards.clip import ClipTowers
from runtime.rewards.clip_h import ClipNet
from runtime.rewards.mps import CrossConfig, MPSNet
from tests.picture_folder import CLIP_SIZES, small_net
from tests.tiny import generator_of

pytest.importorskip("transformers.models.clip")
from transformers import CLIPConfig, CLIPModel

END = 259
PIXELS = torch.randn(3, 3, 28, 28, generator=generator_of(3))
IDS = torch.cat((torch.tensor([258]), torch.randint(1, 250, (8,), generator=generator_of(4)), torch.full((11,), END)))  # fmt: skip


def stock_of(ours: ClipTowers, **changes) -> CLIPModel:
    """transformers' model with our weights under its names; strict, so every name must match."""
    sizes = {
        **CLIP_SIZES,
        "text_config": {**CLIP_SIZES["text_config"], "eos_token_id": END, **changes},
        "vision_config": {**CLIP_SIZES["vision_config"], **changes},
    }
    model = CLIPModel(CLIPConfig(**sizes)).eval()
    model.load_state_dict(ours.state_dict())
    return model


@pytest.fixture(scope="module")
def ours() -> ClipTowers:
    return small_net("clip-h")


@pytest.fixture(scope="module")
def stock(ours):
    return stock_of(ours)


@torch.no_grad()
def test_the_score_is_that_of_transformers_clip(ours, stock):
    net = ClipNet(ours)
    want = stock(input_ids=IDS[None], pixel_values=PIXELS).logits_per_image[:, 0]
    got = net(PIXELS, *net.read(IDS, torch.ones_like(IDS)))
    assert want.std() > 1e-2
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_quick_gelu_of_other_clips_is_known():
    table = {
        **CLIP_SIZES,
        "text_config": {**CLIP_SIZES["text_config"], "hidden_act": "quick_gelu"},
        "vision_config": {**CLIP_SIZES["vision_config"], "hidden_act": "quick_gelu"},
    }
    quick = small_net("clip-h", table)
    net, model = ClipNet(quick), stock_of(quick, hidden_act="quick_gelu")
    want = model(input_ids=IDS[None], pixel_values=PIXELS).logits_per_image[:, 0]
    assert torch.allclose(net(PIXELS, *net.read(IDS, IDS)), want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_token_is_that_of_transformers_clip(ours, stock):
    """MPS reads them all: texts behind the last norm, pictures before it."""
    tokens, ends = ours.texts(IDS[None])
    text = stock.text_model(IDS[None])
    assert torch.allclose(tokens, stock.text_projection(text.last_hidden_state), atol=1e-5)
    assert torch.allclose(ends, stock.text_projection(text.pooler_output), atol=1e-5)
    seen = stock.vision_model(PIXELS).last_hidden_state
    assert torch.allclose(ours.vision_model(PIXELS), seen, atol=1e-5)


def plain_cross(state, x, text, kept, layers, heads):
    """The cross model for one picture x [S, E] and one text [L, E], head by head, in float64."""

    def norm(y, weight):
        y = y - y.mean(-1, keepdim=True)
        return y / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * weight

    def attend(q, k, v, seen):
        weights = (q @ k.T / math.sqrt(64)).masked_fill(~seen, -math.inf).softmax(-1)
        return weights @ v

    def gated(y):
        return y[:, : y.shape[1] // 2] * F.silu(y[:, y.shape[1] // 2 :])

    def turned(y):
        """Channel i with channel i + 32, by the position times 10000^(-i / 32)."""
        angle = torch.arange(len(y)).double()[:, None] * 10_000.0 ** (-torch.arange(32).double() / 32)  # fmt: skip
        a, b = y[:, :32], y[:, 32:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), 1)

    for layer in range(layers):
        at = f"cross_model.layers.{layer}.0.fn."
        y = norm(x, state[at + "norm.weight"])
        q = (y @ state[at + "to_q.weight"].T).split(64, 1)
        k, v = (text @ state[at + "to_kv.weight"].T).split(64, 1)
        read = torch.cat([attend(q[h], k, v, kept) for h in range(heads)], 1)
        wide = gated(y @ state[at + "ff.0.weight"].T) @ state[at + "ff.2.weight"].T
        x = x + read @ state[at + "to_out.weight"].T + wide
        at = f"cross_model.layers.{layer}.1.fn."
        fused = norm(x, state[at + "norm.weight"]) @ state[at + "fused_attn_ff_proj.weight"].T
        q, k, v, wide = fused.split((64 * heads, 64, 64, fused.shape[1] - 64 * heads - 128), 1)
        all_seen = torch.ones(len(x), dtype=torch.bool)
        own = [attend(turned(part), turned(k), v, all_seen) for part in q.split(64, 1)]
        x = x + torch.cat(own, 1) @ state[at + "attn_out.weight"].T
        x = x + gated(wide) @ state[at + "ff_out.1.weight"].T
    return x


@torch.no_grad()
def test_the_score_is_that_of_the_formulas_in_float64():
    net: MPSNet = small_net("mps")
    net.condition = torch.cat((torch.tensor([258, 5, 90, 17]), torch.full((16,), END)))
    state = {name: value.double() for name, value in net.state_dict().items()}
    stock = stock_of(net.model).double()
    said = stock.text_projection(stock.text_model(IDS[None]).last_hidden_state)[0]
    asked = stock.text_projection(stock.text_model(net.condition[None]).last_hidden_state)[0]
    fit = (said @ asked.T).max(1).values
    share = (fit / fit.max()).sort().values
    halfway = (share[7] + share[8]).item() / 2
    net.cross = CrossConfig(layers=2, heads=2, threshold=halfway)
    tokens, kept, text = net.read(IDS, torch.ones_like(IDS))
    want_kept = fit / fit.max() > halfway
    assert want_kept.sum() == 12  # some words are dropped and some are not
    assert torch.equal(kept.flatten() == 0, want_kept)
    end = stock.text_projection(stock.text_model(IDS[None]).pooler_output)[0]
    want = []
    for picture in PIXELS.double():
        seen = stock.visual_projection(stock.vision_model(picture[None]).last_hidden_state)[0]
        first = plain_cross(state, seen, said, want_kept, 2, 2)[0]
        want.append(state["model.logit_scale"].exp() * F.cosine_similarity(first, end, dim=0))
    want = torch.stack(want)
    assert want.std() > 1e-3
    got = net(PIXELS, tokens, kept, text)
    assert torch.allclose(got.double(), want, rtol=1e-5, atol=2e-5)
