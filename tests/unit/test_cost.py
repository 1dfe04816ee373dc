"""FLOPs and bytes by formula: against a count by hand, against the published figures, against torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.bench.cost import ChunkWork, Cost, DecoderShape, DiTShape, LineCosts, Rewards
from runtime.bench.dry import dry_run
from runtime.generators.vae import WAN21, VAEConfig, WanVAE
from runtime.generators.vae_cost import decoder_flops
from runtime.generators.wan import DiTConfig
from runtime.settings import Settings
from tests.tiny import tiny_engine, tiny_vae

FULL = DiTShape(DiTConfig(), tokens=4680)
SMALL = DiTShape(DiTConfig(dim=8, heads=1, layers=1, ffn_dim=16, text_len=3, channels=4), tokens=6)


def test_one_pass_of_the_full_model_costs_what_is_published():
    nothing, three, seven = (FULL.forward([blocks]).flops for blocks in (0, 3, 7))
    # Self attention over 12 frames (the chunk and 3 blocks) is 16.15 TF, over 24 twice that.
    per_block = (three - nothing) / 3
    assert 4 * per_block == pytest.approx(16.15e12, rel=1e-3)
    assert seven - three == pytest.approx(16.15e12, rel=1e-3)
    assert FULL.forward([3]).linears == pytest.approx(11.70e12, rel=1e-3)
    cross = nothing - per_block - FULL.forward([0]).linears
    assert cross == pytest.approx(0.44e12, rel=2e-2)  # and the two patch products, 0.002
    assert three == pytest.approx((11.70 + 16.15 + 0.44) * 1e12, rel=2e-3)


def test_a_small_layer_counted_by_hand():
    # 6 tokens of width 8; q, k, v, o, cross q, cross o: 6 of 8x8; up and down: 8x16 each
    linears = 2 * 6 * (6 * 64 + 2 * 128)
    own = 2 * (2 * 6 * (6 + 12) * 8)  # scores and sums over the chunk and two blocks
    cross = 2 * (2 * 6 * 3 * 8)
    patches = 2 * (2 * 6 * 16 * 8)
    assert SMALL.forward([2]).flops == linears + own + cross + patches
    assert SMALL.forward([2]).linears == linears
    assert (
        SMALL.clean([2]).flops == 2 * 6 * 3 * 64 + patches // 2
    )  # its only layer stops at q, k, v
    weights = 2 * (6 * 64 + 2 * 128) + 2 * (2 * 16 * 8)
    values = (6 * (8 + 24) + 3 * 6 * 16 + 2 * 6 * (8 + 16)) * 2  # inputs and outputs of products
    values += 2 * (6 + 18) * 8 * 2  # q and out of the chunk, k and v of the chunk and two blocks
    values += 2 * (6 + 3) * 8 * 2  # q and out of the chunk, k and v of the text
    values += 2 * 6 * (16 + 8) * 2  # patches to tokens and back
    assert SMALL.forward([2]).bytes == weights + values


def test_rows_share_weights_and_text_and_nothing_else():
    one, two = SMALL.forward([2]), SMALL.forward([2, 2])
    shared = 2 * (6 * 64 + 2 * 128) + 2 * (2 * 16 * 8) + 2 * 3 * 8 * 2
    assert two.flops == 2 * one.flops and two.bytes == 2 * one.bytes - shared
    narrow = DiTShape(SMALL.config, 6, weight_bytes=1).forward([2])
    assert one.bytes - narrow.bytes == 6 * 64 + 2 * 128 and narrow.flops == one.flops


def test_a_block_of_the_full_model_is_823_mib():
    assert FULL.block_bytes / 2**20 == pytest.approx(823, abs=0.5)


def test_formulas_are_what_torch_counts_at_full_size():
    (chunk,) = dry_run(Settings(), contexts=[3])
    assert chunk.denoise_flops == chunk.denoise_formula == 4 * FULL.forward([3]).flops
    assert chunk.clean_flops == chunk.clean_formula == FULL.clean([3]).flops


def test_a_dry_run_fits_every_context_a_history_can_have():
    settings = Settings()
    chunks = list(dry_run(settings, DiTConfig(layers=2)))
    assert [chunk.blocks for chunk in chunks] == list(range(settings.memory.max_blocks + 1))
    for chunk in chunks:
        assert chunk.denoise_flops == chunk.denoise_formula
        assert chunk.clean_flops == chunk.clean_formula


def counted(config: VAEConfig, rows: int, latents: int, height: int, width: int) -> list[int]:
    """FLOPs of the first piece of a video and of the next one, as torch counts them."""
    vae = WanVAE(config).to("meta")
    size = (rows, latents, config.latent_channels, height, width)
    state, found = None, []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            _, state = vae.decode_next(torch.empty(size, device="meta"), state)
        found.append(counter.get_total_flops())
    return found


ODD = VAEConfig(
    latent_channels=4,
    base_dim=8,
    dim_mult=(1, 2, 2),
    res_blocks=1,
    space_downsample=(True, False),
    time_downsample=(True, True),
    mid_attention=False,
    patch=2,
)


@pytest.mark.parametrize(
    ("config", "size"), [(WAN21, (60, 104)), (ODD, (3, 5))], ids=["full", "odd"]
)
def test_decoding_costs_what_torch_counts(config, size):
    shape = DecoderShape(config, *size)
    got = [shape.decode(2, 3, fresh).flops for fresh in (True, False)]
    assert got == counted(config, 2, 3, *size)


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize(("config", "size"), [(WAN21, (60, 104)), (ODD, (3, 5))], ids=str)
def test_two_formulas_of_the_decoder_agree(config, size, folded):
    """This one also knows bytes and how a video begins; the decoder's own also knows what memory it takes."""
    shape = DecoderShape(config, *size, folded=folded)
    assert shape.decode(2, 3, False).flops == decoder_flops(config, 2, *size, fold=folded)


def test_a_decoder_is_priced_as_its_weights_lie():
    decoder = tiny_vae()
    assert not DecoderShape.of(decoder, 2, 2, 4).folded
    decoder.vae.prepare_()
    assert DecoderShape.of(decoder, 2, 2, 4).folded


def test_a_streamed_chunk_of_the_full_decoder_costs_what_is_published():
    assert DecoderShape(WAN21, 60, 104).decode(1, 3, False).flops == pytest.approx(
        40.65e12, rel=5e-3
    )


LINE = LineCosts(
    dit=SMALL,
    decoder=DecoderShape(ODD, 3, 5),
    passes=4,
    batch_rows=0,
    clean_all=False,
    keep_last=False,
    cold=False,
    reward_chunks=3,
    judges=True,
    whole=True,
)


def test_a_chunk_is_its_passes_the_survivors_clean_pass_and_a_decode():
    work = ChunkWork(5, contexts=(2, 2, 3, 3), kept=(1, 2), frames=12, last=False)
    costs = LINE.chunk(work)
    assert costs["denoise"] == SMALL.forward([2, 2, 3, 3]).times(4)
    assert costs["memory"] == SMALL.clean([2, 3])
    assert costs["decode"] == DecoderShape(ODD, 3, 5).decode(4, 3, False)


def test_the_released_order_pays_for_every_row_alone_and_decodes_cold():
    work = ChunkWork(5, contexts=(2, 2, 3, 3), kept=(1, 2), frames=12, last=False)
    costs = replace(LINE, batch_rows=1, clean_all=True, cold=True).chunk(work)
    alone = sum((SMALL.forward([blocks]) for blocks in work.contexts), Cost())
    assert costs["denoise"] == alone.times(4)
    assert costs["memory"].flops == SMALL.clean(work.contexts).flops
    decoder = DecoderShape(ODD, 3, 5)
    fresh, later = decoder.decode(4, 3, True), decoder.decode(4, 3, False)
    # newest, the window of three chunks from nothing, and the survivors for the viewer
    want = fresh + fresh + later.times(2) + decoder.decode(2, 3, False)
    assert costs["decode"] == want


def test_nothing_is_remembered_after_the_last_chunk_unless_it_is_kept():
    work = ChunkWork(5, contexts=(2,), kept=(0,), frames=12, last=True)
    assert "memory" not in LINE.chunk(work)
    assert replace(LINE, keep_last=True).chunk(work)["memory"] == SMALL.clean([2])


def test_what_has_no_formula_has_no_price():
    work = ChunkWork(0, contexts=(0,), kept=(0,), frames=9, last=False)
    assert set(replace(LINE, decoder=None, whole=False).chunk(work)) == {"memory"}


def test_an_engine_is_priced_as_it_stands():
    engine = tiny_engine(2, {"search.histories": 1}, decoder=tiny_vae())
    costs = LineCosts.of(engine)
    assert (costs.passes, costs.clean_all, costs.cold, costs.dit.tokens) == (2, False, False, 3)
    assert costs.dit.element_bytes == 8 and costs.decoder is not None  # float64
    released = tiny_engine(2, {"run.schedule": "released"})
    costs = LineCosts.of(released)
    assert (costs.batch_rows, costs.clean_all, costs.cold, costs.decoder) == (1, True, True, None)


class Knows:
    """A reward that says what a clip costs: one FLOP a pixel and frame."""

    def flops(self, frames: int, height: int, width: int, fps: int) -> int:
        return frames * height * width


@pytest.mark.parametrize(
    ("index", "frames", "cold", "window"),
    [(0, 9, False, 9), (1, 12, False, 21), (5, 12, False, 36), (5, 12, True, 33)],
)
def test_rewards_that_know_their_cost_are_asked_for_what_they_see(index, frames, cold, window):
    rewards = Rewards(Knows(), Knows(), image_stride=5)
    work = ChunkWork(index, (1, 1), (0,), frames, last=False, size=(10, 20))
    costs = replace(LINE, rewards=rewards, cold=cold).chunk(work)
    seen = {9: 2, 12: 3}[frames]  # every fifth frame, the last among them
    assert costs["image reward"].flops == 2 * seen * 200
    assert costs["video reward"].flops == 2 * window * 200  # three chunks, the first with 9 frames


def test_a_policy_that_asks_no_reward_pays_for_none():
    work = ChunkWork(0, (0,), (0,), 9, last=True, size=(10, 20))
    rewards = Rewards(Knows(), Knows())
    assert "image reward" not in replace(LINE, rewards=rewards, judges=False).chunk(work)


def test_only_rewards_that_know_their_cost_are_counted():
    engine = tiny_engine(2)
    assert Rewards.of(engine).image is None
    engine.parts = replace(engine.parts, image=Knows())
    assert isinstance(Rewards.of(engine).image, Knows) and Rewards.of(engine).time_stride == 2
