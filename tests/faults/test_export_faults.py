"""Damaged exports are found before a runtime opens them, and the first wrong file is named."""

import pytest
import torch

from runtime.backends import Place, load_backed, weights_hash
from runtime.exported import FILE, read_export
from runtime.settings import RewardSettings
from tests.export_folder import write_export

CPU = Place(torch.device("cpu"))


@pytest.fixture
def folder(tmp_path):
    return write_export(tmp_path, weights_sha256=weights_hash("sprites-image", ""))


def load(folder, place=CPU):
    return load_backed("sprites-image", RewardSettings(backend="onnxruntime", graphs=str(folder.parent)), place)  # fmt: skip


@pytest.mark.parametrize("name", ["whole.onnx", "whole.onnx.data"])
@pytest.mark.parametrize("where", [0, 50, -1])
def test_a_flipped_bit_is_found_in_the_graph_and_in_its_weights(folder, name, where):
    content = bytearray((folder / name).read_bytes())
    content[where] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: want sha256 .*damaged or was replaced"):
        load(folder)


@pytest.mark.parametrize("name", ["whole.onnx", "whole.onnx.data"])
def test_a_file_that_is_cut_or_gone_is_named(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name}: want sha256"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: cannot be read"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 9999])
def test_an_export_json_that_is_none_is_one_line(folder, content):
    (folder / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=FILE) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_endless_export_json_is_not_read(folder):
    (folder / FILE).write_bytes(b" " * (2 << 20))
    with pytest.raises(ValueError, match="want at most"):
        read_export(folder)


def test_an_export_of_another_reward_is_refused(folder):
    folder.rename(folder.with_name("sprites-video"))
    settings = RewardSettings(backend="onnxruntime", graphs=str(folder.parent))
    with pytest.raises(ValueError, match="is an export of sprites-image"):
        load_backed("sprites-video", settings, CPU)


def test_a_graph_that_onnxruntime_cannot_read_is_one_line_and_no_fallback(folder):
    pytest.importorskip("onnxruntime")
    with pytest.raises(RuntimeError, match="onnxruntime: cannot open") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_graph_is_named(folder):
    pytest.importorskip("onnxruntime")
    table = (folder / FILE).read_text().replace('"whole": {', '"other": {')
    (folder / FILE).write_text(table)
    from tests.export_folder import write_sum

    spec = write_sum(folder)
    (folder / FILE).write_text(table.replace(read_export(folder).graphs["other"].sha256, spec.sha256))  # fmt: skip
    (folder / "whole.onnx.data").write_bytes(b"weights" * 20)
    with pytest.raises((ValueError, RuntimeError), match="has no graph 'whole'|want inputs"):
        load(folder)
