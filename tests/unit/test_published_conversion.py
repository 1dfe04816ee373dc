"""Conversions of HPSv3 and VideoAlign: which keys are which, and what is refused before anything is written."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from runtime.manifest import verify
from runtime.pickles import read_checkpoint
from runtime.rewards import load_reward
from runtime.rewards.peft_keys import own_name, sort_keys
from runtime.rewards.published import CONVERSIONS, find_checkpoint
from runtime.shards import FolderWriter
from runtime.weights import read_config
from tests.reward_folder import KINDS, RUBRICS, SIZES, byte_tokeniser, random_net

RANK, ALPHA = 2, 3
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "own", "side"),
    [
        ("visual.merger.mlp.0.weight", "visual.merger.mlp.0.weight", ""),
        ("model.visual.blocks.1.norm1.bias", "visual.blocks.1.norm1.bias", ""),
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight", ""),
        ("model.language_model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight", ""),
        ("model.model.embed_tokens.weight", "model.embed_tokens.weight", ""),
        ("language_model.norm.weight", "model.norm.weight", ""),
        ("model.model.visual.patch_embed.proj.weight", "visual.patch_embed.proj.weight", ""),
        ("rm_head.0.weight", "rm_head.0.weight", ""),
        ("model.rm_head.weight", "rm_head.weight", ""),
        ("lm_head.weight", "", ""),
        ("base_model.model.lm_head.weight", "", ""),
        ("visual.rotary_pos_emb.inv_freq", "", ""),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", f"{Q}.weight", ""),
        ("base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias", f"{Q}.bias", ""),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", f"{Q}.weight", "A"),
        ("base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight", f"{Q}.weight", "B"),
        ("base_model.model.rm_head.modules_to_save.default.weight", "rm_head.weight", ""),
        ("base_model.model.visual.modules_to_save.default.merger.ln_q.weight", "visual.merger.ln_q.weight", ""),
        ("base_model.model.rm_head.original_module.weight", "", ""),
        ("base_model.model.visual.original_module.merger.ln_q.weight", "", ""),
        ("something.else", "something.else", ""),
    ],
)  # fmt: skip
def test_names_of_every_library_become_ours(key, own, side):
    assert own_name(key) == (own, side)


def test_a_later_file_replaces_and_one_file_may_not_say_a_thing_twice(tmp_path):
    one, two = torch.zeros(1), torch.ones(1)
    names = sort_keys({tmp_path / "a": {"visual.x": one}, tmp_path / "b": {"model.visual.x": two}})
    assert names.weights["visual.x"].tensor is two and names.path == tmp_path / "b"
    with pytest.raises(ValueError, match="visual.x and model.visual.x are one tensor"):
        sort_keys({tmp_path / "a": {"visual.x": one, "model.visual.x": two}})


def test_the_latest_checkpoint_is_taken_by_number_and_a_named_one_is_taken(tmp_path):
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-99").write_text("no folder")
    (tmp_path / "checkpoint-last").mkdir()
    assert find_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-2" / "model.pth").touch()
    assert find_checkpoint(tmp_path / "checkpoint-2").name == "checkpoint-2"
    with pytest.raises(ValueError, match="want checkpoint-<step> folders"):
        find_checkpoint(tmp_path / "checkpoint-9")


def published(name: str) -> dict[str, torch.Tensor]:
    rows = byte_tokeniser(KINDS[name].marks).get_vocab_size()
    return dict(random_net(KINDS[name], SIZES | {"vocab_size": rows}).state_dict())


def hpsv3_source(folder, state, tokeniser=None):
    folder.mkdir()
    save_file(state, folder / "HPSv3.safetensors")
    (folder / "config.json").write_text(json.dumps(SIZES | {"vocab_size": 999}))
    (tokeniser or byte_tokeniser(())).save(str(folder / "tokenizer.json"))
    return folder


def videoalign_source(folder, state, **facts):
    checkpoint = folder / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    torch.save(state, checkpoint / "model.pth")
    (folder / "config.json").write_text(json.dumps(SIZES | {"vocab_size": 999}))
    table = {"model_config": {"output_dim": 1}, "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA}}  # fmt: skip
    (folder / "model_config.json").write_text(json.dumps(table | facts))
    byte_tokeniser(()).save(str(folder / "tokenizer.json"))
    return folder


def convert(name, source, target):
    with FolderWriter(target) as out:
        CONVERSIONS[name](source, out)
    return target


def test_without_a_rubric_it_goes_on_and_says_the_command(tmp_path, caplog):
    source = hpsv3_source(tmp_path / "in", published("hpsv3"))
    with caplog.at_level(logging.WARNING):
        target = convert("hpsv3", source, tmp_path / "hpsv3")
    command = f"python -m runtime.rewards.rubric hpsv3 --from PATH_OF_ITS_AUTHORS_CODE -o {target}"
    assert command in caplog.text
    verify(target)
    with pytest.raises(ValueError, match="python -m runtime.rewards.rubric hpsv3"):
        load_reward("hpsv3", "cpu", str(tmp_path))


def test_a_rubric_beside_it_is_taken_along_and_a_wrong_one_is_refused(tmp_path):
    source = hpsv3_source(tmp_path / "in", published("hpsv3"))
    (source / "rubric.txt").write_text("How good?")
    with pytest.raises(ValueError, match=r"rubric.txt: want \{prompt\} once"):
        convert("hpsv3", source, tmp_path / "hpsv3")
    (source / "rubric.txt").write_text(RUBRICS["hpsv3"])
    target = convert("hpsv3", source, tmp_path / "hpsv3")
    assert (target / "rubric.txt").read_text() == RUBRICS["hpsv3"]
    assert load_reward("hpsv3", "cpu", str(tmp_path)).judge.script.mark_ids == (260,)


def test_the_file_itself_may_be_named(tmp_path):
    source = hpsv3_source(tmp_path / "in", published("hpsv3"))
    target = convert("hpsv3", source / "HPSv3.safetensors", tmp_path / "hpsv3")
    config = read_config(target / "config.json")
    facts = read_config(target / "manifest.json")["facts"]
    assert facts == {"source": "MizzenAI/HPSv3, HPSv3.safetensors", "licence": "MIT"}
    assert config["vocab_size"] == 261 and config["max_pixels"] == config["min_pixels"] == 200_704


def test_weights_in_several_files_load_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.shards.SHARD_BYTES", 50_000)
    source = hpsv3_source(tmp_path / "in", published("hpsv3"))
    (source / "rubric.txt").write_text(RUBRICS["hpsv3"])
    target = convert("hpsv3", source, tmp_path / "hpsv3")
    assert len(list(target.glob("model-*-of-*.safetensors"))) > 2
    state = load_reward("hpsv3", "cpu", str(tmp_path)).judge.net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in published("hpsv3").items())


def changed(name, **changes):
    """The published tensors, some replaced, and without those that are None."""
    state = {**published(name), **changes}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rm_head.3.bias": None}, "missing rm_head.3.bias"),
        ({"rm_head.1.bias": torch.zeros(3)}, "unknown rm_head.1.bias"),
        ({"visual.merger.ln_q.weight": torch.zeros(3)}, r"mis-shaped visual.merger.ln_q.weight \(want \[32\], got \[3\]\)"),
        ({"optimizer": torch.zeros(3)}, "unknown optimizer"),
        ({"model.embed_tokens.weight": None}, "no embed_tokens.weight"),
        ({f"{Q}.lora_A.weight": torch.zeros(2, 32)}, "unknown model.layers.0.self_attn.q_proj.lora_A.weight"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_named_and_nothing_is_written(tmp_path, changes, message):
    source = hpsv3_source(tmp_path / "in", changed("hpsv3", **changes))
    with pytest.raises(ValueError, match=message):
        convert("hpsv3", source, tmp_path / "hpsv3")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def lora(down=(RANK, 32), up=(32, RANK)):
    start = f"base_model.model.{Q}"
    return {f"{start}.lora_A.default.weight": torch.ones(down), f"{start}.lora_B.default.weight": torch.ones(up)}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "facts", "message"),
    [
        (lora(down=(RANK, 31)), {}, "unknown .*lora_A.default.weight"),
        (lora(up=(32, RANK + 1)), {}, "unknown .*lora_A.default.weight.*lora_B"),
        (lora(), {"peft_lora_config": {}}, "an adapter of rank 2, but what lies beside it speaks of 0"),
        (lora(), {"peft_lora_config": {"lora_r": RANK, "lora_alpha": 0}}, "lora_alpha above 0"),
        (lora(), {"peft_lora_config": {"lora_r": 4, "lora_alpha": 1}}, "of rank 2, but what lies beside it speaks of 4"),
        (lora(), {"peft_lora_config": {"lora_enable": False, "lora_r": RANK, "lora_alpha": 1}}, "of rank 2, but what lies beside it speaks of 0"),
        (lora(), {"peft_lora_config": [RANK]}, "peft_lora_config: want an object, got list"),
        (lora(), {"peft_lora_config": {"lora_r": RANK, "lora_alpha": 1, "use_dora": True}}, "use_dora is not supported"),
        ({}, {"model_config": {"output_dim": 2}}, "output_dim: want 1 or 3"),
        ({}, {"inference_config": {"VQ_mean": 3.6757, "VQ_std": 1.0}}, "VQ_std: want 2.2476, as the reward scores, got 1.0"),
        ({}, {"data_config": {"max_frame_pixels": "many"}}, "max_frame_pixels: want a whole number"),
    ],
)  # fmt: skip
def test_an_adapter_or_a_configuration_that_does_not_fit_is_named(tmp_path, state, facts, message):
    source = videoalign_source(tmp_path / "in", published("videoalign") | state, **facts)
    with pytest.raises(ValueError, match=message):
        convert("videoalign", source, tmp_path / "videoalign")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)], ids=["plain", "rs"]
)
def test_a_merge_is_rounded_once_to_the_weights_dtype(tmp_path, rslora, scale):
    state = {key: value.bfloat16() for key, value in published("videoalign").items()}
    facts = {"lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": rslora}
    sides = {key: torch.randn(value.shape).bfloat16() for key, value in lora().items()}
    source = videoalign_source(tmp_path / "in", state | sides, peft_lora_config=facts)
    target = convert("videoalign", source, tmp_path / "videoalign")
    got = read_checkpoint(target / "model.safetensors")
    down, up = (value.double() for value in sides.values())
    want = (state[f"{Q}.weight"].double() + scale * up @ down).bfloat16()
    assert got[f"{Q}.weight"].dtype == torch.bfloat16
    # Rounding in float32 first may turn a tie of bfloat16 the other way, nothing else.
    assert (got[f"{Q}.weight"] != want).sum() <= 1
    untouched = [key for key in state if key != f"{Q}.weight"]
    assert all(torch.equal(got[key], state[key]) for key in untouched)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("<|x|>",), "knows 262 tokens .* 261 rows; the tokeniser belongs to other weights"),
        (("<|Reward|>", "<|x|>"), "knows 262 tokens"),
    ],
)
def test_a_tokeniser_of_other_weights_is_refused(tmp_path, tokens, message):
    source = hpsv3_source(tmp_path / "in", published("hpsv3"), byte_tokeniser(tokens))
    with pytest.raises(ValueError, match=message):
        convert("hpsv3", source, tmp_path / "hpsv3")


@pytest.mark.parametrize(("rows", "fits"), [(260, False), (262, False), (998, False), (999, True)])
def test_rows_without_a_token_are_those_that_the_backbone_is_padded_with_or_an_error(tmp_path, rows, fits):  # fmt: skip
    state = published("hpsv3") | {"model.embed_tokens.weight": torch.zeros(rows, 32)}
    source = hpsv3_source(tmp_path / "in", state)  # its config.json says 999
    if fits:
        target = convert("hpsv3", source, tmp_path / "hpsv3")
        assert read_config(target / "config.json")["vocab_size"] == 999
    else:
        with pytest.raises(ValueError, match=f"knows 261 tokens .* has {rows} rows"):
            convert("hpsv3", source, tmp_path / "hpsv3")


def test_a_token_that_is_not_the_last_is_refused(tmp_path):
    state = published("hpsv3")
    state["model.embed_tokens.weight"] = torch.zeros(262, 32)
    tokeniser = byte_tokeniser(("<|Reward|>", "<|x|>"))
    source = hpsv3_source(tmp_path / "in", state, tokeniser)
    with pytest.raises(ValueError, match=r"want <\|Reward\|> as its last tokens, got the ids \[260\]"):  # fmt: skip
        convert("hpsv3", source, tmp_path / "hpsv3")


def test_a_tokeniser_that_has_the_tokens_already_is_taken_as_it_is(tmp_path):
    marks = KINDS["hpsv3"].marks
    source = hpsv3_source(tmp_path / "in", published("hpsv3"), byte_tokeniser(marks))
    target = convert("hpsv3", source, tmp_path / "hpsv3")
    assert json.loads((target / "tokenizer.json").read_text()) == json.loads(byte_tokeniser(marks).to_str())  # fmt: skip


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("tokenizer.json", "want the backbone's tokenizer.json .* Qwen2-VL-7B-Instruct"),
        ("HPSv3.safetensors", "want one of HPSv3.safetensors"),
        ("config.json", "this is not a checkpoint of this model"),  # then the published sizes
    ],
)
def test_a_file_that_is_missing_is_named(tmp_path, missing, message):
    source = hpsv3_source(tmp_path / "in", published("hpsv3"))
    (source / missing).unlink()
    with pytest.raises(ValueError, match=message):
        convert("hpsv3", source, tmp_path / "hpsv3")


def test_an_adapter_without_its_backbone_says_what_it_needs(tmp_path):
    source = videoalign_source(tmp_path / "in", {"x": torch.zeros(1)})
    checkpoint = source / "checkpoint-1"
    (checkpoint / "model.pth").unlink()
    save_file({"x": torch.zeros(1)}, checkpoint / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="needs the weights of Qwen2-VL-2B-Instruct; put their folder"):  # fmt: skip
        convert("videoalign", source, tmp_path / "videoalign")


def test_a_weight_that_is_not_finite_leaves_nothing_behind(tmp_path):
    state = published("hpsv3")
    state["model.norm.weight"][3] = float("nan")
    source = hpsv3_source(tmp_path / "in", state)
    with pytest.raises(ValueError, match="model.norm.weight is not finite"):
        convert("hpsv3", source, tmp_path / "hpsv3")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
