"""Our Qwen2-VL against transformers' on small random sizes: the vision tower, the decoder and the two together."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.kernels.reward_patches import PatchFormat, reward_patches
from runtime.rewards import load_reward
from runtime.rewards.qwen2vl import Part, Qwen2VL, Qwen2VLConfig, Words
from runtime.rewards.qwen2vl_text import DecoderConfig
from runtime.rewards.qwen2vl_vision import PATCH_VALUES, VisionConfig
from runtime.types import Clip
from runtime.weights import fill_random_
from tests.reward_folder import KINDS, byte_tokeniser, random_net, write_folder
from tests.tiny import generator_of, scrambled

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")

IMAGE = 90  # id of a visual token
TEXT = DecoderConfig(
    hidden_size=48,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    vocab_size=97,
)
VISION = VisionConfig(depth=2, embed_dim=32, num_heads=2, mlp_ratio=2)
GRIDS = [(2, 2), (4, 6), (6, 4)]


@pytest.fixture(scope="module")
def ours() -> Qwen2VL:
    with torch.device("meta"):
        net = Qwen2VL(Qwen2VLConfig(TEXT, VISION), torch.nn.Linear(48, 3))
    fill_random_(net, "cpu", torch.float32)
    return scrambled(net)


@pytest.fixture(scope="module")
def stock(ours):
    """transformers' model with our weights under its names; strict, so every name must match."""
    section = TEXT.head_dim // 2
    config = transformers.Qwen2VLConfig(
        text_config={
            "hidden_size": 48,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 97,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [section - 2, 1, 1],
            },
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 48},
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
    )  # fmt: skip
    model = modeling.Qwen2VLModel(config).eval()
    state = {
        name.replace("model.", "language_model.", 1): value
        for name, value in ours.state_dict().items()
        if not name.startswith("rm_head.")
    }
    model.load_state_dict(state, strict=True)
    return model


def patches(pictures: int, grid: tuple[int, int]) -> torch.Tensor:
    return torch.randn(pictures, grid[0] * grid[1], PATCH_VALUES, generator=generator_of(1))


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() < 1e-5 * want.abs().max())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_the_vision_tower_is_the_stock_one_for_pictures_of_one_size(ours, stock, grid):
    pixels = patches(3, grid)
    want = stock.visual(pixels.flatten(0, 1), grid_thw=torch.tensor([[3, *grid]])).pooler_output
    assert close(ours.visual(pixels, grid).flatten(0, 1), want)


@pytest.mark.parametrize("at", [[12], [3, 7, 12], [0]], ids=str)
@torch.no_grad()
def test_the_decoder_reads_the_stock_hidden_states(ours, stock, at):
    ids = torch.randint(0, IMAGE, (2, 13), generator=generator_of(2))
    positions = torch.arange(13).expand(3, 2, -1)
    want = stock.language_model(input_ids=ids, position_ids=positions).last_hidden_state[:, at]
    assert close(ours.model(ours.model.embed_tokens(ids), torch.tensor(at)), want)


@torch.no_grad()
def test_rows_that_branch_off_one_another_read_the_stock_hidden_states(ours, stock):
    """Five tokens of all, three of each pair, five of each row; the stock model reads every row from its beginning."""
    draw = generator_of(2)
    ids = [
        torch.randint(0, IMAGE, (rows, length), generator=draw)
        for rows, length in ((1, 5), (2, 3), (4, 5))
    ]
    rows = torch.cat((ids[0].expand(4, -1), ids[1][[0, 1, 1, 0]], ids[2]), 1)
    positions = torch.arange(13).expand(3, 4, -1)
    want = stock.language_model(input_ids=rows, position_ids=positions).last_hidden_state[
        :, [9, 12]
    ]
    parents = (0,), (0, 0), (0, 1, 1, 0)
    parts = [Part(ours.embed(x), own) for x, own in zip(ids, parents, strict=True)]
    assert close(ours.read_parts(parts, torch.tensor([1, 4])), ours.rm_head(want))


@torch.no_grad()
def test_the_whole_network_is_the_stock_one_and_the_head_at_the_read_out_tokens(ours, stock):
    """What a chat adds behind the last read-out token changes nothing, so we do not compute it."""
    grid, pictures, rows = (4, 6), 2, 2
    pixels = patches(rows * pictures, grid).view(rows, pictures, -1, PATCH_VALUES)
    before, after, behind = [5, 6, IMAGE + 2], [IMAGE + 3, 8, 9, 10, 11], [12, 13]
    sequence = before + [IMAGE] * (pictures * 6) + after + behind
    ids = torch.tensor([sequence] * rows)
    want = stock(
        input_ids=ids,
        pixel_values=pixels.flatten(0, 2),
        image_grid_thw=torch.tensor([[1, *grid]] * rows * pictures),
        mm_token_type_ids=(ids == IMAGE).int(),
        position_ids=torch.arange(len(sequence)).expand(3, rows, -1),
    ).last_hidden_state
    at = [len(before) + pictures * 6 + place for place in (1, 4)]
    words = Words(torch.tensor(before), torch.tensor(after), torch.tensor([1, 4]))
    assert close(ours(pixels, grid, words), ours.rm_head(want[:, at]))


@torch.no_grad()
def test_in_bfloat16_it_is_no_further_from_the_truth_than_the_stock_model(ours, stock):
    """Root mean square errors over all outputs, against float64; a tenth more is one rounding more or less."""
    pixels, ids = patches(8, (6, 4)), torch.randint(0, IMAGE, (8, 40), generator=generator_of(2))
    positions = torch.arange(40).expand(3, 8, -1)
    exact, narrow, rival = (
        copy.deepcopy(net).to(dtype)
        for net, dtype in ((ours, torch.float64), (ours, torch.bfloat16), (stock, torch.bfloat16))
    )

    def read(net, dtype):
        at = torch.arange(40)
        return net.visual(pixels.to(dtype), (6, 4)), net.model(net.model.embed_tokens(ids), at)

    grids = torch.tensor([[8, 6, 4]])
    theirs = (
        rival.visual(pixels.flatten(0, 1).bfloat16(), grid_thw=grids).pooler_output.unflatten(0, (8, -1)),
        rival.language_model(input_ids=ids, position_ids=positions).last_hidden_state,
    )  # fmt: skip
    for truth, mine, other in zip(read(exact, torch.float64), read(narrow, torch.bfloat16), theirs, strict=True):  # fmt: skip
        mine_off, other_off = ((x.double() - truth).square().mean().sqrt() for x in (mine, other))
        assert 0 < mine_off < 1.1 * other_off


@torch.no_grad()
def test_a_checkpoint_that_transformers_saved_scores_as_its_hidden_states_say(tmp_path):
    """Its config.json and its tensors under their own names, the reward's head added; the vocabulary's is left."""
    folder = write_folder(tmp_path, "hpsv3") / "hpsv3"
    tokeniser = byte_tokeniser(("<|Reward|>",))
    table = json.loads((folder / "config.json").read_text())
    section = table["hidden_size"] // table["num_attention_heads"] // 2
    rope = {
        "rope_type": "default",
        "rope_theta": 5e5,  # not the default, so that it must be found
        "mrope_section": [section - 2, 1, 1],
    }
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    )
    text = {name: table[name] for name in (*names.split(), "vocab_size")} | {
        "rope_parameters": rope
    }
    vision = {**table["vision_config"], "hidden_size": table["hidden_size"]}
    vocabulary = table["vocab_size"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stock = modeling.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=0)
        ).eval()
    bounds = {name: table[name] for name in ("min_pixels", "max_pixels")}
    head = random_net(KINDS["hpsv3"], table).rm_head
    stock.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    save_file(saved | {f"rm_head.{k}": v for k, v in head.state_dict().items()}, folder / "model.safetensors")  # fmt: skip
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | bounds))
    reward = load_reward("hpsv3", "cpu", str(tmp_path))
    frames = torch.rand(1, 1, 3, 60, 90, generator=generator_of(3))
    ids = reward.judge.script.ids("a cat")
    visual = stock.model.visual(
        reward_patches(frames[0], PatchFormat(56, 84, dtype=torch.float32)),
        grid_thw=torch.tensor([[1, 4, 6]]),
    ).pooler_output
    before, after = (
        stock.get_input_embeddings()(torch.tensor(part)) for part in (ids.before, ids.after)
    )
    embedded = torch.cat((before, visual, after))[None]
    positions = torch.arange(embedded.shape[1]).expand(3, 1, -1)
    hidden = stock.model.language_model(inputs_embeds=embedded, position_ids=positions)
    want = head(hidden.last_hidden_state[:, -1])[:, 0]
    assert ids.after[-1] == tokeniser.token_to_id("<|Reward|>") == vocabulary - 1
    assert torch.allclose(reward.score(Clip(frames, "a cat", 16, 0)), want, atol=1e-5)


@torch.no_grad()
def test_three_axis_positions_would_read_something_else(ours, stock):
    """The guard of the tests above: plain positions are a choice, not what the stock model does by itself."""
    ids = torch.randint(0, IMAGE, (1, 13), generator=generator_of(2))
    positions = torch.stack((torch.arange(13), torch.arange(13) // 2, torch.arange(13) % 3))
    other = stock.language_model(input_ids=ids, position_ids=positions[:, None]).last_hidden_state
    assert not close(ours.model(ours.model.embed_tokens(ids), torch.tensor([12])), other[:, [12]])
