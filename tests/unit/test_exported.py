"""export.json: what is written is read back, and whatever else somebody wrote there is named."""

import json

import pytest

from runtime.exported import FILE, Port, read_export, weights_sha256
from tests.export_folder import PROFILE, write_export


def damaged(folder, *path, value):
    """Change one entry of the file, deep down."""
    table = json.loads((folder / FILE).read_text())
    part = table
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (folder / FILE).write_text(json.dumps(table))


def test_what_was_written_is_read_back(tmp_path):
    exported = read_export(write_export(tmp_path))
    graph = exported.graphs["whole"]
    assert graph.inputs == {"frames": Port("float32", ("rows", 2))}
    assert graph.profiles == (PROFILE,)
    assert list(graph.files) == ["whole.onnx", "whole.onnx.data"]
    assert json.loads(exported.to_json())["constants"] == {"words": ["red"]}
    exported.verify()
    (exported.folder / FILE).write_text(exported.to_json())
    assert read_export(exported.folder) == exported


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["format"], 2, "format: want 1, got 2"),
        (["precision"], "int4", "precision: want one of fp32"),
        (["weights_sha256"], "abc", "weights_sha256: want 64"),
        (["graphs"], {}, "graphs: want at least one"),
        (["graphs"], [], "graphs: want an object, got list"),
        (["graphs", "whole", "file"], "../whole.onnx", "plain file name, got '../whole.onnx'"),
        (["graphs", "whole", "file"], ".hidden", "plain file name"),
        (["graphs", "whole", "data"], {"/etc/passwd": "0" * 64}, "plain file name"),
        (["graphs", "whole", "data"], {"a.data": "0"}, "want the sha256 of a.data"),
        (["graphs", "whole", "inputs"], {}, "want inputs and outputs"),
        (["graphs", "whole", "inputs", "frames", "dtype"], "float8", "frames.dtype: want one of"),
        (["graphs", "whole", "inputs", "frames", "shape"], ["rows", 0], "frames.shape: want at most"),
        (["graphs", "whole", "inputs", "frames", "shape"], ["no name", 2], "frames.shape"),
        (["graphs", "whole", "profiles", 0], {"x": []}, "want ranges of ['frames'], got ['x']"),
        (["graphs", "whole", "profiles", 0, "frames"], [[4, 2], [1, 2], [8, 2]], "three rising"),
        (["graphs", "whole", "profiles", 0, "frames"], [[1, 3], [1, 3], [8, 3]], "three rising"),
        (["graphs", "whole", "profiles", 0, "frames"], [[1], [1], [8]], "three rising shapes"),
        (["graphs", "whole", "profiles", 0, "frames"], 7, "three rising shapes"),
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_makes_no_sense_is_named_with_its_file(tmp_path, path, value, sentence):
    folder = write_export(tmp_path)
    damaged(folder, *path, value=value)
    with pytest.raises(ValueError) as caught:
        read_export(folder)
    assert sentence in str(caught.value) and str(folder / FILE) in str(caught.value)


def test_no_file_is_an_error_with_the_command(tmp_path):
    with pytest.raises(ValueError, match="no such file; `python -m runtime.export"):
        read_export(tmp_path)


def test_weights_are_known_by_their_bytes_in_one_file_or_in_shards(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        weights_sha256(path)
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    sharded = weights_sha256(path)
    (tmp_path / names[1]).write_bytes(b"else")
    assert weights_sha256(path) != sharded
    path.write_bytes(b"one file")
    one = weights_sha256(path)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"files": {path.name: {"sha256": "a" * 64}}})
    )
    assert weights_sha256(path) == "a" * 64 != one
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {path.name: {"sha256": "?"}}}))
    assert weights_sha256(path) == one
