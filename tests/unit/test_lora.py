"""An adapter merged at load is the arithmetic of an adapter at run time; a foreign one changes nothing."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runtime.generators import load_generator
from runtime.generators.lora import merge_lora_, read_alpha
from tests.tiny import generator_of, tiny_dit
from tests.unit.test_checkpoint_folder import folder  # noqa: F401  a fixture

RANK = 3
TARGETS = ("blocks.0.self_attn.q", "blocks.0.ffn.2", "head.head")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator_of(seed))


def adapter(module: nn.Module, targets=TARGETS, name: str = "") -> dict[str, torch.Tensor]:
    """Keys as PEFT writes them."""
    table = {}
    for seed, target in enumerate(targets):
        linear = module.get_submodule(target)
        key = f"base_model.model.{target}.lora_"
        table[f"{key}A{name}.weight"] = normal(RANK, linear.in_features, seed=2 * seed)
        table[f"{key}B{name}.weight"] = normal(linear.out_features, RANK, seed=2 * seed + 1)
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lora.safetensors"


@pytest.mark.parametrize("name", ["", ".default"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_merged_weights_are_the_unmerged_arithmetic(path, name, dtype):
    dit = tiny_dit(dtype=dtype)
    before = {key: value.clone() for key, value in dit.state_dict().items()}
    table = adapter(dit, name=name)
    save_file(table, path)
    merge_lora_(dit, path, alpha=6.0)
    for target in TARGETS:
        a, b = (table[f"base_model.model.{target}.lora_{half}{name}.weight"] for half in "AB")
        linear, x = dit.get_submodule(target), normal(5, a.shape[1], seed=9).double()
        old = before.pop(f"{target}.weight").double()
        unmerged = x @ old.t() + 6.0 / RANK * (x @ a.t().double()) @ b.t().double()
        exact = old + 6.0 / RANK * b.double() @ a.double()
        assert linear.weight.dtype == dtype
        eps = torch.finfo(dtype if dtype != torch.float64 else torch.float64).eps
        wide = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        error = (linear.weight.double() - exact).abs()
        assert (error <= 0.5 * eps * exact.abs() + wide * (1 + exact.abs())).all()  # rounded once
        if dtype == torch.float64:
            assert (x @ linear.weight.t() - unmerged).abs().max() < 1e-12
    after = dit.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_alpha_over_rank_is_the_scale(path):
    dits = [tiny_dit(dtype=torch.float64) for _ in range(3)]
    save_file(adapter(dits[0]), path)
    for dit, alpha in zip(dits[1:], (RANK, 2 * RANK), strict=True):
        merge_lora_(dit, path, alpha)
    plain, once, twice = (dit.blocks[0].ffn[2].weight for dit in dits)
    assert ((twice - plain) - 2 * (once - plain)).abs().max() < 1e-12
    assert (once - plain).abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, k: t.pop(f"{k}A.weight"), r"missing .*head\.head\.lora_A\.weight$"),
        (lambda t, k: t.pop(f"{k}B.weight"), r"missing .*head\.head\.lora_B\.weight$"),
        (lambda t, k: t.update(other=torch.ones(2)), r"unknown other$"),
        (
            lambda t, k: t.update(
                {"base_model.model.blocks.7.ffn.0.lora_A.weight": torch.ones(3, 3)}
            ),
            r"unknown blocks\.7\.ffn\.0\.lora_A\.weight$",
        ),
        (
            lambda t, k: t.update(
                {"base_model.model.patch_embedding.lora_A.weight": torch.ones(3, 3)}
            ),
            r"unknown .*patch_embedding",
        ),
        (
            lambda t, k: t.update({f"{k}A.weight": torch.ones(RANK, 23)}),
            r"mis-shaped .*want \[3, 24\]",
        ),
        (
            lambda t, k: t.update({f"{k}B.weight": torch.ones(16, 4)}),
            r"mis-shaped .*want \[16, 3\]",
        ),
        (lambda t, k: t.update({f"{k}B.weight": torch.ones(3)}), r"mis-shaped .*got \[3\]"),
        (lambda t, k: t.update({f"{k}A.weight": torch.ones(())}), "mis-shaped"),
        (lambda t, k: t.update({f"{k}A.weight": torch.full((RANK, 24), torch.nan)}), "not finite"),
        (lambda t, k: t.clear(), "want LoRA keys, got an empty file"),
    ],
)
def test_a_foreign_adapter_is_named_before_anything_changes(path, change, words):
    dit = tiny_dit(dtype=torch.float32)
    before = {key: value.clone() for key, value in dit.state_dict().items()}
    table = adapter(dit)
    change(table, "base_model.model.head.head.lora_")
    save_file(table, path)
    with pytest.raises(ValueError, match=words) as caught:
        merge_lora_(dit, path, 3.0)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in dit.state_dict().items())


@pytest.mark.parametrize(
    "text", ["{}", '{"alpha": 0}', '{"alpha": "3"}', '{"alpha": true}', '{"alpha": NaN}']
)
def test_an_alpha_that_is_no_scale_is_named(tmp_path, text):
    (tmp_path / "lora.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"lora\.json: want a positive number under the key 'alpha'"
    ):
        read_alpha(tmp_path / "lora.json")


def test_a_folder_s_adapter_is_merged_when_it_is_loaded(folder):  # noqa: F811
    place = torch.device("cpu"), torch.float32
    plain = load_generator("sprites", *place, weights=str(folder)).dit
    target = "blocks.0.cross_attn.v"
    save_file(adapter(plain, [target]), folder / "lora.safetensors")
    with pytest.raises(ValueError, match=r"lora\.json: no such file"):
        load_generator("sprites", *place, weights=str(folder))
    (folder / "lora.json").write_text(json.dumps({"alpha": 256}))
    merged = load_generator("sprites", *place, weights=str(folder)).dit
    changed = {
        name
        for name, value in merged.state_dict().items()
        if not torch.equal(value, plain.state_dict()[name])
    }
    assert changed == {f"{target}.weight"}


@pytest.mark.parametrize("name", ["", ".default"])
@pytest.mark.parametrize(
    "prefix", ["", "model.", "_fsdp_wrapped_module.", "model._orig_mod._fsdp_wrapped_module."]
)
def test_an_adapter_in_a_pt_file_is_the_same_adapter(tmp_path, path, name, prefix):
    """As training saves it: nested, beside other things, with the names of the wrappers it ran in."""
    dits = [tiny_dit(dtype=torch.float32) for _ in range(2)]
    table = adapter(dits[0], name=name)
    save_file(table, path)
    wrapped = {key.replace("model.", f"model.{prefix}", 1): value for key, value in table.items()}
    torch.save({"generator_lora": wrapped, "critic_lora": {}, "step": 3}, tmp_path / "lora.pt")
    merge_lora_(dits[0], path, 6.0)
    merge_lora_(dits[1], tmp_path / "lora.pt", 6.0)
    want = dits[0].state_dict()
    assert all(torch.equal(value, want[key]) for key, value in dits[1].state_dict().items())
    assert not torch.equal(want["head.head.weight"], tiny_dit(dtype=torch.float32).head.head.weight)


def test_a_folder_s_adapter_is_rounded_once(folder):  # noqa: F811
    """Loaded in bfloat16, a merged weight is the rounded float32 sum, not the sum of rounded halves."""
    wide = load_generator("sprites", torch.device("cpu"), torch.float32, weights=str(folder)).dit
    target = "blocks.0.ffn.0"
    save_file(adapter(wide, [target]), folder / "lora.safetensors")
    (folder / "lora.json").write_text(json.dumps({"alpha": 2}))
    got = load_generator("sprites", torch.device("cpu"), torch.bfloat16, weights=str(folder)).dit
    merge_lora_(wide, folder / "lora.safetensors", 2.0)
    assert torch.equal(got.get_parameter(f"{target}.weight"), wide.get_parameter(f"{target}.weight").bfloat16())  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
def test_peft_s_own_files_merge_to_what_peft_merges(tmp_path):
    from peft import LoraConfig, get_peft_model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = {"model_type": "custom"}
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(x))

    base = Net()
    mine = Net()
    mine.load_state_dict(base.state_dict())
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["up", "down"], init_lora_weights=False)
    theirs = get_peft_model(base, config)
    theirs.save_pretrained(tmp_path)
    merge_lora_(mine, tmp_path / "adapter_model.safetensors", 12)
    want = theirs.merge_and_unload()
    assert (mine.up.weight - want.up.weight).abs().max() < 1e-6
    assert (mine.down.weight - want.down.weight).abs().max() < 1e-6
