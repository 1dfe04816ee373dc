"""The embedded rewards as ONNX graphs: equal to torch at sizes that were not traced, with a manifest that says what they are."""

from __future__ import annotations

import hashlib
import json

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from runtime.export.__main__ import GRAPHS, TOLERANCE, export


@pytest.mark.parametrize("name", GRAPHS)
def test_an_exported_reward_equals_torch_and_its_manifest_names_it(name, tmp_path):
    manifest = export(name, tmp_path)
    assert manifest["max_difference"] <= TOLERANCE
    graph = tmp_path / f"{name}.onnx"
    assert manifest["onnx_sha256"] == hashlib.sha256(graph.read_bytes()).hexdigest()
    assert json.loads(graph.with_suffix(".json").read_text()) == manifest
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{name}.json", f"{name}.onnx"]


def test_an_unknown_reward_is_named(tmp_path):
    with pytest.raises(ValueError, match="want one of sprites-image, sprites-video, got 'stub'"):
        export("stub", tmp_path)
