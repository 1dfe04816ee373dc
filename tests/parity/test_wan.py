"""The denoiser against diffusers' independent implementation, with one set of random weights."""

import pytest
import torch
from torch import Tensor

from runtime.generators.dit_keys import from_diffusers_keys, to_diffusers_keys
from runtime.generators.wan import DiTConfig, WanDiT
from runtime.generators.wan_layers import dense_attention
from runtime.kernels import native, triton_lang
from runtime.kernels.qk_norm_rope_store import Destination
from runtime.kernels.rotary import rope_split
from tests.tiny import generator_of, scrambled

diffusers = pytest.importorskip("diffusers")

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(native.find()[0] is None, reason="not built")
)
CONFIGS = {
    "as-wan": DiTConfig(
        dim=48, heads=4, layers=2, ffn_dim=40, freq_dim=16, text_dim=10, text_len=6, channels=4
    ),
    "odd-split": DiTConfig(  # 8 rotary pairs: 4 for time, 2 and 2 for rows and columns
        dim=32, heads=2, layers=1, ffn_dim=64, freq_dim=32, text_dim=7, text_len=3, channels=3
    ),
}


@pytest.fixture(params=["torch", NATIVE])
def ops(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=CONFIGS)
def ours(request: pytest.FixtureRequest, ops: str) -> WanDiT:
    torch.manual_seed(0)
    return scrambled(WanDiT(CONFIGS[request.param], ops))


@pytest.fixture
def theirs(ours: WanDiT) -> torch.nn.Module:
    c = ours.config
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=c.heads,
        attention_head_dim=c.head_dim,
        in_channels=c.channels,
        out_channels=c.channels,
        text_dim=c.text_dim,
        freq_dim=c.freq_dim,
        ffn_dim=c.ffn_dim,
        num_layers=c.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
    ).eval()
    model.load_state_dict(to_diffusers_keys(ours.state_dict()))
    return model


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator_of(seed))


@pytest.mark.parametrize("timestep", [0.0, 8.0, 625.0, 1000.0])
@pytest.mark.parametrize("size", [(2, 2), (6, 4)], ids=str)
@torch.no_grad()
def test_one_chunk_without_a_context_matches_diffusers(ours, theirs, size, timestep):
    """Two different rows, all frames at one timestep; a prompt shorter than the text is padded with zeros by both."""
    c = ours.config
    x = normal(2, 3, c.channels, *size, seed=1)
    prompt = normal(2, c.text_len - 1, c.text_dim, seed=2)
    rope = ours.rope(torch.tensor([[0, 1, 2]]), *size)
    times = torch.full((2, 3), timestep, dtype=torch.float64)
    got = ours(
        x, times, ours.text_context(prompt), rope, lambda layer, q, k, v: dense_attention(q, k, v)
    )
    rows = torch.cat([prompt, torch.zeros(2, 1, c.text_dim)], dim=1)
    want = theirs(x.transpose(1, 2), torch.full((2,), timestep), rows).sample.transpose(1, 2)
    assert got.shape == want.shape and want.abs().max() > 0.1
    assert (got - want).abs().max() < 1e-5 * max(1.0, want.abs().max())


@torch.no_grad()
def test_five_frames_at_once_match_diffusers(ours, theirs):
    c = ours.config
    x, prompt = normal(1, 5, c.channels, 4, 6, seed=1), normal(1, c.text_len, c.text_dim, seed=2)
    times = torch.full((1, 5), 16.0, dtype=torch.float64)
    rope = ours.rope(torch.arange(5)[None], 4, 6)
    got = ours(
        x, times, ours.text_context(prompt), rope, lambda layer, q, k, v: dense_attention(q, k, v)
    )
    want = theirs(x.transpose(1, 2), torch.tensor([16.0]), prompt).sample.transpose(1, 2)
    assert (got - want).abs().max() < 1e-5 * max(1.0, want.abs().max())


def test_every_key_has_its_counterpart_and_published_sizes_agree():
    with torch.device("meta"):
        assert torch.nn.Linear(1, 1).weight.is_meta  # or what follows would take gigabytes
        mine = WanDiT(DiTConfig())
        other = diffusers.WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30
        )
    want = {name: value.shape for name, value in other.state_dict().items()}
    assert {
        name: value.shape for name, value in to_diffusers_keys(mine.state_dict()).items()
    } == want
    assert sum(weight.numel() for weight in mine.parameters()) == 1_418_996_800
    back = from_diffusers_keys(other.state_dict())
    assert {n: v.shape for n, v in back.items()} == {
        n: v.shape for n, v in mine.state_dict().items()
    }


def test_names_that_diffusers_does_not_have_are_left_to_be_told():
    other = {
        "blocks.0.attn3.to_q.weight": torch.ones(1),
        "condition_embedder.image.x": torch.ones(1),
    }
    assert list(from_diffusers_keys(other)) == [
        "blocks.0.attn3.q.weight",
        "condition_embedder.image.x",
    ]


@pytest.mark.parametrize(
    ("head_dim", "pairs"), [(128, (22, 21, 21)), (12, (2, 2, 2)), (16, (4, 2, 2))]
)
def test_rotary_pairs_split_as_published(head_dim, pairs):
    assert rope_split(head_dim) == pairs


@torch.no_grad()
def test_frames_may_carry_timesteps_of_their_own(ours):
    """A frame's output depends on its own timestep; the others' reaches it through attention only."""
    c = ours.config
    x, prompt = normal(1, 3, c.channels, 2, 2, seed=1), normal(1, c.text_len, c.text_dim, seed=2)
    text, rope = ours.text_context(prompt), ours.rope(torch.tensor([[0, 1, 2]]), 2, 2)

    def alone(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v  # every token sees itself only

    flat = ours(x, torch.tensor([[625.0, 625.0, 625.0]]), text, rope, alone)
    mixed = ours(x, torch.tensor([[625.0, 0.0, 625.0]]), text, rope, alone)
    assert (flat - mixed)[:, [0, 2]].abs().max() < 1e-6
    assert (flat - mixed)[:, 1].abs().max() > 1e-3


@torch.no_grad()
def test_rows_of_different_prompts_and_places_ride_one_batch(ours):
    """Two videos at different chunks in one forward are the two forwards: nothing of a row reaches another."""
    c = ours.config
    x, prompts = normal(2, 3, c.channels, 2, 4, seed=1), normal(2, c.text_len, c.text_dim, seed=2)
    frames = torch.tensor([[0, 1, 2], [300, 301, 302]])
    moment = ours.moment(torch.full((1, 1), 625.0, dtype=torch.float64))

    def forward(rows: slice, row_prompts: Tensor, row_frames: Tensor) -> list[Tensor]:
        kept: list[Tensor] = []
        text, rope = ours.text_context(row_prompts), ours.rope(row_frames, 2, 4)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return dense_attention(q, k, v)

        flow = ours(x[rows], moment, text, rope, attend)
        ours.remember(x[rows], moment, text, rope, attend, lambda layer, k, v: kept.extend((k, v)))
        return [flow, *kept]

    both = forward(slice(0, 2), prompts, frames)
    for row in range(2):
        alone = forward(slice(row, row + 1), prompts[row : row + 1], frames[row : row + 1])
        for got, want in zip(both, alone, strict=True):
            assert (got[row] - want[0]).abs().max() < 1e-5 * max(1.0, want.abs().max())
    # Without a context the flow knows only distances in time; the keys know where they are.
    for part, other in ((0, (prompts.flip(0), frames)), (1, (prompts, frames.flip(0)))):
        moved = (forward(slice(0, 2), *other)[part] - both[part]).abs().flatten(1)
        assert moved.amax(1).min() > 1e-3


@torch.no_grad()
def test_a_layer_writes_its_keys_and_values_where_it_is_told(ours):
    """``attend`` sees the places that ``destinations`` named, and the flow is what it is without them."""
    c = ours.config
    x, prompt = normal(2, 3, c.channels, 2, 4, seed=1), normal(1, c.text_len, c.text_dim, seed=2)
    text, rope = ours.text_context(prompt), ours.rope(torch.tensor([[30, 31, 32]]), 2, 4)
    times = torch.full((2, 3), 625.0, dtype=torch.float64)
    places = torch.zeros(c.layers, 3, 2, 6, c.heads, c.head_dim)
    seen: list[tuple[Tensor, ...]] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((q, k, v))
        return dense_attention(q, k, v)

    want = ours(x, times, text, rope, attend)
    fresh = [tuple(t.clone() for t in layer) for layer in seen]
    seen.clear()
    got = ours(x, times, text, rope, attend, lambda layer: Destination(*places[layer]))
    assert torch.equal(got, want)
    for layer, (made, place) in enumerate(zip(fresh, places, strict=True)):
        assert all(t.data_ptr() == p.data_ptr() for t, p in zip(seen[layer], place, strict=True))
        assert all(torch.equal(p, t) for p, t in zip(place, made, strict=True))


@torch.no_grad()
def test_the_clean_pass_stores_what_the_forward_attends_to(ours):
    c = ours.config
    x, prompt = normal(1, 3, c.channels, 2, 2, seed=1), normal(1, c.text_len, c.text_dim, seed=2)
    text, rope = ours.text_context(prompt), ours.rope(torch.tensor([[0, 1, 2]]), 2, 2)
    times = torch.zeros(1, 3, dtype=torch.float64)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    stored: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen[layer] = k, v
        return dense_attention(q, k, v)

    ours(x, times, text, rope, attend)
    ours.remember(
        x,
        times,
        text,
        rope,
        lambda layer, q, k, v: dense_attention(q, k, v),
        lambda layer, k, v: stored.update({layer: (k, v)}),
    )
    assert stored.keys() == seen.keys() == set(range(c.layers))
    for layer, pair in stored.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, seen[layer], strict=True))


@pytest.mark.skipif(not triton_lang.INTERPRETED, reason="needs TRITON_INTERPRET=1")
@torch.no_grad()
def test_interpreted_kernels_make_the_same_flow(ours):
    c = ours.config
    triton = WanDiT(c, "triton").eval()
    triton.load_state_dict(ours.state_dict())
    x, prompt = normal(1, 3, c.channels, 2, 4, seed=1), normal(1, c.text_len, c.text_dim, seed=2)
    times = torch.full((1, 3), 625.0, dtype=torch.float64)
    want, got = (
        dit(
            x,
            times,
            dit.text_context(prompt),
            dit.rope(torch.tensor([[300, 301, 302]]), 2, 4),
            lambda layer, q, k, v: dense_attention(q, k, v),
        )
        for dit in (ours, triton)
    )
    assert (got - want).abs().max() < 1e-5 * max(1.0, want.abs().max())


def test_only_the_reference_has_gradients():
    x, times = normal(1, 3, 3, 2, 2, seed=1), torch.zeros(1, 3)
    dit = WanDiT(CONFIGS["odd-split"])
    text, rope = dit.text_context(normal(1, 3, 7, seed=2)), dit.rope(torch.arange(3)[None], 2, 2)
    dit(x, times, text, rope, lambda layer, q, k, v: dense_attention(q, k, v)).sum().backward()
    assert all(weight.grad is not None for weight in dit.parameters())
    if native.find()[0] is not None:
        dit.ops = "native"
        with pytest.raises(ValueError, match="has no gradient; use impl='torch'"):
            dit(x, times, text, rope, lambda layer, q, k, v: v)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 50, "heads": 4}, r"dim: want a multiple of 2 \* heads \(8\), got 50"),
        ({"dim": 36, "heads": 4}, r"dim: want a multiple of 2 \* heads \(8\), got 36"),
        ({"dim": 16, "heads": 4}, r"head dim: want at least 6 .* got 4"),
        ({"freq_dim": 15}, "freq_dim: want an even number, got 15"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**sizes)
