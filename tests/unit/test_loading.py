"""Weights go one at a time to where they stay, in the dtype they stay in, out of one file or its shards."""

import pytest
import torch
from safetensors.torch import save_file

from runtime.weights import load_weights_, read_shapes
from tests.unit.test_weights import network, path, refused, tensors  # noqa: F401  a fixture


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_fills_the_module_in_the_dtype_that_is_asked_for(path, device):  # noqa: F811
    with torch.device(device):
        module = network()
    load_weights_(module, path, dtype=torch.bfloat16)
    for name, value in module.state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, tensors()[name].bfloat16())


def test_a_file_s_own_dtype_is_not_copied(path):  # noqa: F811
    """Weights on the CPU are the mapped file itself; what is written to them stays out of it."""
    first, second = network(), network()
    load_weights_(first, path)
    load_weights_(second, path)
    with torch.no_grad():
        first[0].weight.fill_(3)
    assert torch.equal(second[0].weight, tensors()["0.weight"])
    load_weights_(second, path)
    assert torch.equal(second[0].weight, tensors()["0.weight"])


def test_a_weight_is_edited_before_it_is_rounded(path):  # noqa: F811
    edits = {"0.weight": lambda weight: weight.double() + 1e-3}
    module = network()
    load_weights_(module, path, dtype=torch.bfloat16, edits=edits)
    want = (tensors()["0.weight"].double() + 1e-3).bfloat16()
    assert torch.equal(module[0].weight, want)
    assert torch.equal(module[1].weight, tensors()["1.weight"].bfloat16())


def test_a_number_that_the_dtype_cannot_hold_is_named(path):  # noqa: F811
    save_file({name: value.double() * 1e300 for name, value in tensors().items()}, path)
    module = network()
    with pytest.raises(ValueError, match="not finite"):
        load_weights_(module, path, dtype=torch.float32)


def test_shards_fill_a_module_as_one_file_does(path):  # noqa: F811
    table = tensors()
    names = sorted(table)
    for number, part in ((1, names[:2]), (2, names[2:])):
        shard = path.with_name(f"net-{number:05d}-of-00002.safetensors")
        save_file({name: table[name] for name in part}, shard)
    path.unlink()
    module = network()
    load_weights_(module, path)
    assert all(torch.equal(value, table[name]) for name, value in module.state_dict().items())
    assert read_shapes(path) == {name: tuple(value.shape) for name, value in table.items()}
    path.with_name("net-00002-of-00002.safetensors").unlink()
    refused(path, r"missing net-00002-of-00002\.safetensors")


@pytest.mark.gpu
def test_a_file_goes_straight_to_the_gpu(path):  # noqa: F811
    with torch.device("meta"):
        module = network()
    load_weights_(module, path, device="cuda", dtype=torch.bfloat16)
    for name, value in module.state_dict().items():
        assert value.is_cuda and torch.equal(value.cpu(), tensors()[name].bfloat16())
