"""A file that is corrupt, cut short or somebody else's is named, and the module is left as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runtime.generators import load_generator
from runtime.weights import (
    MAX_CONFIG_BYTES,
    fill_random_,
    load_weights_,
    quote,
    read_config,
    read_shapes,
)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5), nn.LayerNorm(5))


def tensors(module: nn.Module | None = None) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    state = (module or network()).state_dict()
    return {name: torch.randn(value.shape, generator=source) for name, value in state.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file(tensors(), path)
    return path


def refused(path: Path, message: str) -> None:
    """Loading fails with the file's name and ``message``, and the module's tensors are the same ones as before."""
    module = network()
    before = {
        name: (value.data_ptr(), value.clone()) for name, value in module.state_dict().items()
    }
    with pytest.raises(ValueError, match=message) as caught:
        load_weights_(module, path)
    assert str(path.parent) in str(caught.value)
    for name, value in module.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_a_whole_file_fills_the_module_in_its_own_dtype(path, dtype, device):
    want = {name: value.to(dtype) for name, value in tensors().items()}
    save_file(want, path)
    with torch.device(device):
        module = network()
    load_weights_(module, path)
    for name, value in module.state_dict().items():
        assert (
            value.dtype == dtype and value.device.type == "cpu" and torch.equal(value, want[name])
        )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 3, bias=False)
        self.b = nn.Linear(2, 3, bias=False)
        self.b.weight = self.a.weight


def test_one_tensor_under_two_names_is_read_once(tmp_path):
    save_file({"a.weight": torch.ones(3, 2)}, tmp_path / "tied.safetensors")
    module = Tied()
    load_weights_(module, tmp_path / "tied.safetensors", {"b.weight": "a.weight"})
    assert torch.equal(module.b.weight, torch.ones(3, 2))
    assert module.a.weight is module.b.weight
    module.bfloat16()  # moving it moves it once
    assert module.a.weight.data_ptr() == module.b.weight.data_ptr()


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "nowhere.safetensors", "no such file")


def test_a_folder_is_not_a_file(tmp_path):
    refused(tmp_path, "not a whole safetensors file")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1])
def test_a_file_cut_short_is_named(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "not a whole safetensors file .*; fetch or copy it again")


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        b"\x10" + b"\0" * 7 + b"x" * 16,
        b"\0" * 64,
        b"<html>404</html>",
        b"PK\x03\x04" * 9,
    ],
    ids=["huge-header", "no-json", "zeros", "web-page", "zip"],
)
def test_garbage_is_named(path, header):
    path.write_bytes(header)
    refused(path, "not a whole safetensors file")


def test_bytes_after_the_end_are_named(path):
    path.write_bytes(path.read_bytes() + b"more")
    refused(path, "not a whole safetensors file")


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("1.weight"), r"not a checkpoint of this model: missing 1\.weight$"),
        (lambda t: t.update(x=torch.ones(1)), r"unknown x$"),
        (
            lambda t: t.update({"0.bias": torch.ones(4)}),
            r"mis-shaped 0\.bias \(want \[3\], got \[4\]\)$",
        ),
        (lambda t: t.update({"0.bias": torch.ones(3, 1)}), r"got \[3, 1\]"),
        (
            lambda t: t.update({"1.bias": t.pop("0.bias"), "b": torch.ones(1)}),
            r"missing 0\.bias; unknown b; mis-shaped 1\.bias",
        ),
        (lambda t: t.clear(), r"missing 0\.bias, 0\.weight, 1\.bias, 1\.weight and 2 more$"),
    ],
    ids=["missing", "unknown", "mis-shaped", "another-rank", "all-three", "empty"],
)
def test_keys_that_differ_are_named_by_kind(path, change, message):
    table = tensors()
    change(table)
    save_file(table, path)
    refused(path, message)


def test_names_that_a_module_has_no_use_for_are_left_in_the_file(path):
    save_file({**tensors(), "extra": torch.ones(2), "other": torch.ones(2)}, path)
    module = network()
    load_weights_(module, path, unused=("extra", "other", "not there"))
    assert all(torch.equal(value, tensors()[name]) for name, value in module.state_dict().items())
    with pytest.raises(ValueError, match="unknown other$"):
        load_weights_(network(), path, unused=("extra",))


def test_keys_are_compared_before_any_tensor_is_read(path, monkeypatch):
    """A stranger's file of the right keys and one wrong shape costs no memory."""
    save_file({**tensors(), "0.bias": torch.full((4,), float("nan"))}, path)
    refused(path, "mis-shaped")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_weights_that_are_not_finite_are_named(path, bad):
    table = tensors()
    table["1.weight"][2, 1] = bad
    table["2.bias"][0] = bad
    save_file(table, path)
    refused(path, r"1\.weight, 2\.bias not finite; the file is damaged, fetch or copy it again")


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn], ids=str
)
def test_weights_of_a_foreign_dtype_are_named(path, dtype):
    table = tensors()
    table["1.weight"] = table["1.weight"].to(dtype)
    save_file(table, path)
    refused(path, r"want weights of F64, F32, F16, BF16, got 1\.weight \(\w+\)$")


def test_long_lists_of_keys_are_cut():
    assert quote(["a", "b"]) == "a, b"
    assert quote(list("abcdefg")) == "a, b, c, d and 3 more"


# Configurations.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a JSON file"),
        (b"{", "not a JSON file"),
        (b"{'a': 1}", "not a JSON file"),
        (b"\xff\xfe{}", "not a JSON file"),
        (b"\xef\xbb\xbf{}", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"[1]", "want a JSON object, got list"),
        (b"null", "want a JSON object, got NoneType"),
        (b" " * (MAX_CONFIG_BYTES + 1), rf"want at most {MAX_CONFIG_BYTES} bytes of JSON, got"),
    ],
    ids=["empty", "cut", "python", "utf-16", "bom", "deep", "list", "null", "large"],
)
def test_a_config_that_is_no_json_object_is_named(tmp_path, text, message):
    path = tmp_path / "net.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_a_config_that_is_missing_says_what_belongs_together(tmp_path):
    with pytest.raises(
        ValueError, match=r"no such file; the JSON with a model's sizes lies beside its weights"
    ):
        read_config(tmp_path / "net.json")


def test_a_config_is_its_object(tmp_path):
    (tmp_path / "net.json").write_text('{"config": {"dim": 3}}', encoding="utf-8")
    assert read_config(tmp_path / "net.json") == {"config": {"dim": 3}}


def test_an_unknown_generator_lists_the_known_ones():
    message = "unknown generator 'sprite'; known: .*sprites.*; did you mean 'sprites'?"
    with pytest.raises(ValueError, match=message):
        load_generator("sprite", torch.device("cpu"), torch.float32)


# Tables of tensors that are no module's.


def test_shapes_are_read_without_the_tensors(path):
    want = {name: tuple(value.shape) for name, value in tensors().items()}
    assert read_shapes(path) == want
    with pytest.raises(ValueError, match="no such file"):
        read_shapes(path.with_name("nowhere"))


# Random weights.


class Mixed(nn.Module):
    """A matrix, a convolution, a norm, a gain shaped like a convolution's and a buffer with values."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(400, 300)
        self.conv = nn.Conv3d(8, 64, 3)
        self.norm = nn.LayerNorm(6)
        self.gamma = nn.Parameter(torch.empty(7, 1, 1, 1))
        self.register_buffer("mean", torch.arange(3.0, device="cpu"), persistent=False)


def filled(seed: int = 0, dtype=torch.float32, kind=Mixed) -> nn.Module:
    with torch.device("meta"):
        module = kind()
    fill_random_(module, "cpu", dtype, seed)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_matrices_keep_the_size_of_what_passes_through(dtype):
    module = filled(dtype=dtype)
    for weight, fan_in in ((module.wide.weight, 400), (module.conv.weight, 8 * 27)):
        assert weight.dtype == dtype and not weight.requires_grad
        deviation = weight.float().std() * fan_in**0.5
        assert abs(deviation - 1) < 5 / (2 * weight.numel()) ** 0.5  # five standard errors
        assert weight.float().mean().abs() * fan_in**0.5 < 5 / weight.numel() ** 0.5


def test_random_gains_are_ones_and_offsets_zeros():
    module = filled()
    assert (module.norm.weight == 1).all() and (module.gamma == 1).all()
    assert not module.norm.bias.any() and not module.wide.bias.any()
    assert torch.equal(module.mean, torch.arange(3.0))


def test_a_seed_is_its_weights():
    one, same, other = filled(), filled(), filled(1)
    assert torch.equal(one.wide.weight, same.wide.weight)
    assert not torch.equal(one.wide.weight, other.wide.weight)


def test_a_tensor_under_two_names_is_drawn_once():
    module = filled(kind=Tied)
    assert module.a.weight is module.b.weight


def test_a_buffer_without_values_is_named():
    class Lost(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(3))

    with pytest.raises(ValueError, match="buffers table have no values"):
        filled(kind=Lost)
