"""Checkpoints in the shapes that HPSv3's and VideoAlign's authors publish, converted, against the stock model with merged weights."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime.rewards import load_reward
from runtime.rewards.published import CONVERSIONS
from runtime.rewards.videoalign import MEANS, STDS
from runtime.shards import FolderWriter
from runtime.types import Clip
from tests.reward_folder import KINDS, RUBRICS, SIZES, byte_tokeniser, random_net
from tests.tiny import generator_of

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")

RANK, ALPHA = 4, 8
TUNED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PADDING = 7  # rows of a backbone's embedding that no token has
PROMPT = "a cat"


def build_stock(rows: int):
    """A small random model of the stock library; its config is the tests' own."""
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"  # fmt: skip
    section = SIZES["hidden_size"] // SIZES["num_attention_heads"] // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [section - 2, 1, 1]}
    text = {name: SIZES[name] for name in names.split()}
    text |= {"vocab_size": rows, "rope_parameters": rope, "rms_norm_eps": 1e-6}
    vision = {**SIZES["vision_config"], "hidden_size": SIZES["hidden_size"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rows)
        stock = modeling.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(
                text_config=text,
                vision_config=vision,
                image_token_id=0,
            )
        ).eval()
        for value in stock.parameters():
            value.data += 0.05 * torch.randn(value.shape)
    return stock


def keys_of(stock, layout: str) -> dict[str, torch.Tensor]:
    """Its tensors under the names of transformers 4.45 or of the releases since 4.52."""
    state = {name: value.detach().clone() for name, value in stock.state_dict().items()}
    assert "model.language_model.norm.weight" in state  # the newer names are those of the module
    if layout == "new":
        return state
    old = {"model.visual.": "visual.", "model.language_model.": "model."}
    renamed = {}
    for name, value in state.items():
        start = next((new for new in old if name.startswith(new)), "")
        renamed[old.get(start, "") + name.removeprefix(start)] = value
    return renamed


def write_backbone(folder: Path, rows: int) -> None:
    """What comes with the backbone: its sizes and its tokeniser, which knows no read-out token."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SIZES | {"vocab_size": rows}))
    byte_tokeniser(()).save(str(folder / "tokenizer.json"))


def rows_of(name: str) -> int:
    return byte_tokeniser(KINDS[name].marks).get_vocab_size()


def convert(name: str, source: Path, home: Path):
    """Convert and load with our loader, the rubric being there."""
    with FolderWriter(home / name) as out:
        CONVERSIONS[name](source, out)
    return load_reward(name, "cpu", str(home))


def stock_scores(reward, stock, head, clip: Clip) -> torch.Tensor:
    """The head's outputs [N, R, O] at the stock model's hidden states, for what the reward reads."""
    questions = reward.prepare(clip)
    words, patches = questions.words, questions.patches
    N, G = patches.shape[:2]
    grids = torch.tensor([[1, *questions.grid]]).expand(N * G, -1)
    visual = stock.model.visual(patches.flatten(0, 2), grid_thw=grids).pooler_output.unflatten(0, (N, -1))  # fmt: skip
    before, after = (
        stock.get_input_embeddings()(ids).expand(N, -1, -1) for ids in (words.before, words.after)
    )
    embedded = torch.cat((before, visual, after), 1)
    positions = torch.arange(embedded.shape[1]).expand(3, N, -1)
    hidden = stock.model.language_model(inputs_embeds=embedded, position_ids=positions)
    at = words.at + before.shape[1] + visual.shape[1]
    return head(hidden.last_hidden_state[:, at])


@pytest.mark.parametrize("container", ["safetensors", "prefixed safetensors", "pth under model"])
@pytest.mark.parametrize("layout", ["old", "new"])
@torch.no_grad()
def test_hpsv3_scores_as_the_stock_model_it_was_saved_from(tmp_path, layout, container):
    rows = rows_of("hpsv3")
    stock = build_stock(rows)
    head = random_net(KINDS["hpsv3"], SIZES | {"vocab_size": rows}).rm_head
    state = keys_of(stock, layout) | {f"rm_head.{k}": v for k, v in head.state_dict().items()}
    source = tmp_path / "published"
    write_backbone(source / "Qwen2-VL-7B-Instruct", rows)
    (source / "rubric.txt").write_text(RUBRICS["hpsv3"])
    if container == "pth under model":
        torch.save({"model": state}, source / "HPSv3.pth")
    else:
        prefix = "model." if container.startswith("prefixed") else ""
        save_file({prefix + name: value for name, value in state.items()}, source / "HPSv3.safetensors")  # fmt: skip
    reward = convert("hpsv3", source, tmp_path / "home")
    clip = Clip(torch.rand(2, 3, 3, 60, 90, generator=generator_of(3)), PROMPT, 16, 0)
    want = stock_scores(reward, stock, head, clip)[:, 0, 0].view(2, 3).mean(1)
    assert (reward.score(clip) - want).abs().max() < 1e-5 * want.abs().max()


def adapter_of(stock) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random sides of every linear of the decoder, by the newer name of its weight."""
    source = generator_of(5)
    return {
        name: (
            torch.randn(RANK, value.shape[1], generator=source) * 0.1,
            torch.randn(value.shape[0], RANK, generator=source) * 0.1,
        )
        for name, value in stock.state_dict().items()
        if "visual" not in name and name.split(".")[-2] in TUNED and name.endswith("weight")
    }


def merged(stock, adapter):
    """The stock model with every product added, in float64, rounded once."""
    model = copy.deepcopy(stock)
    state = model.state_dict()
    for name, (down, up) in adapter.items():
        exact = state[name].double() + ALPHA / RANK * up.double() @ down.double()
        state[name].copy_(exact.float())
    return model


def write_facts(folder: Path, outputs: int) -> None:
    facts = {
        "model_config": {"output_dim": outputs},
        "data_config": {"max_frame_pixels": SIZES["max_pixels"]},
        "peft_lora_config": {"lora_enable": True, "lora_r": RANK, "lora_alpha": ALPHA},
        "inference_config": {
            f"{name}_{kind}": value
            for kind, values in (("mean", MEANS), ("std", STDS))
            for name, value in zip(("VQ", "MQ", "TA"), values, strict=True)
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(facts))


def videoalign_scores(reward, stock, head, clip: Clip) -> torch.Tensor:
    said = stock_scores(reward, stock, head, clip)
    own = said[..., 0] if said.shape[-1] == 1 else said.diagonal(dim1=1, dim2=2)
    return ((own - torch.tensor(MEANS)) / torch.tensor(STDS)).sum(1)


def video_clip() -> Clip:
    return Clip(torch.rand(2, 9, 3, 60, 90, generator=generator_of(4)), PROMPT, 16, 0)


def wrapped(stock, adapter, head, layout: str) -> dict[str, torch.Tensor]:
    """The whole tuned model as PEFT names it: base layers, both sides, and a head that is saved twice."""
    older = {id(value): name for name, value in keys_of(stock, layout).items()}
    assert len(older) == len(stock.state_dict())
    state = {}
    for (name, _), (key, value) in zip(stock.state_dict().items(), keys_of(stock, layout).items(), strict=True):  # fmt: skip
        module, _, leaf = key.rpartition(".")
        tuned = "visual" not in name and module.split(".")[-1] in TUNED
        state[f"base_model.model.{module}.base_layer.{leaf}" if tuned else f"base_model.model.{key}"] = value  # fmt: skip
        if name in adapter:
            down, up = adapter[name]
            state[f"base_model.model.{module}.lora_A.default.weight"] = down
            state[f"base_model.model.{module}.lora_B.default.weight"] = up
    state["base_model.model.rm_head.original_module.weight"] = torch.zeros_like(head.weight)
    state["base_model.model.rm_head.modules_to_save.default.weight"] = head.weight.detach()
    return state


@pytest.mark.parametrize(("layout", "outputs"), [("old", 1), ("new", 3)])
@torch.no_grad()
def test_videoalign_scores_as_the_stock_model_with_its_adapter_merged(tmp_path, layout, outputs):
    rows = rows_of("videoalign")
    stock = build_stock(rows)
    adapter = adapter_of(stock)
    head = torch.nn.Linear(SIZES["hidden_size"], outputs, bias=False)
    source = tmp_path / "published"
    write_facts(source, outputs)
    write_backbone(source / "Qwen2-VL-2B-Instruct", rows)
    (source / "rubric.txt").write_text(RUBRICS["videoalign"])
    for step in (9, 10):  # the tenth step is the later one, though its name sorts first
        folder = source / f"checkpoint-{step}"
        folder.mkdir()
        state = wrapped(stock, adapter, head, layout)
        if step == 9:
            state = {name: value + 1 for name, value in state.items()}
        torch.save(state, folder / "model.pth")
    reward = convert("videoalign", source, tmp_path / "home")
    assert reward.judge.pixels.most == SIZES["max_pixels"]
    clip = video_clip()
    want = videoalign_scores(reward, merged(stock, adapter), head, clip)
    assert (reward.score(clip) - want).abs().max() < 1e-5 * want.abs().max()
    plain = videoalign_scores(reward, stock, head, clip)
    assert (plain - want).abs().max() > 1e-3 * want.abs().max()  # else the adapter does not matter
    named = convert("videoalign", source / "checkpoint-9", tmp_path / "other")
    assert not torch.allclose(named.score(clip), want)


@torch.no_grad()
def test_an_adapter_is_merged_into_its_backbone_and_what_was_tuned_beside_it_replaces_it(tmp_path):
    rows = rows_of("videoalign") + PADDING
    stock = build_stock(rows)
    adapter = adapter_of(stock)
    head = torch.nn.Linear(SIZES["hidden_size"], 1, bias=False)
    source = tmp_path / "published"
    write_facts(source, 1)
    backbone = source / "Qwen2-VL-2B-Instruct"
    write_backbone(backbone, rows)
    config = (backbone / "config.json").read_text()
    stock.save_pretrained(backbone, max_shard_size="100KB")
    assert len(list(backbone.glob("model-*.safetensors"))) > 1
    (backbone / "config.json").write_text(config)
    (source / "rubric.txt").write_text(RUBRICS["videoalign"])
    tuned = merged(stock, adapter)
    beside = {"base_model.model.rm_head.weight": head.weight.detach()}
    for name, value in tuned.model.visual.named_parameters():
        value.data += 0.1
        beside[f"base_model.model.visual.{name}"] = value.detach().clone()
    checkpoint = source / "checkpoint-5"
    checkpoint.mkdir()
    torch.save(beside, checkpoint / "non_lora_state_dict.pth")
    sides = {}
    for name, pair in adapter.items():
        module = name.removesuffix(".weight").replace("model.language_model.", "model.")
        sides |= {f"base_model.model.{module}.lora_{side}.weight": value for side, value in zip("AB", pair, strict=True)}  # fmt: skip
    save_file(sides, checkpoint / "adapter_model.safetensors")
    table = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": False}
    (checkpoint / "adapter_config.json").write_text(json.dumps(table))
    reward = convert("videoalign", source, tmp_path / "home")
    clip = video_clip()
    want = videoalign_scores(reward, tuned, head, clip)
    assert (reward.score(clip) - want).abs().max() < 1e-5 * want.abs().max()
