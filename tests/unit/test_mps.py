"""MPS and CLIP come out of what their publishers wrote, and the condition is part of MPS's score."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from runtime.rewards import load_reward, published_mps
from runtime.shards import FolderWriter
from runtime.types import Clip
from tests.picture_folder import CLIP_SIZES, CONDITION, clip_words, small_net, write_pictures
from tests.tiny import generator_of

CLIP = Clip(torch.rand(3, 2, 3, 40, 64, generator=generator_of(7)), "a red circle", 16, 0)


class Released(nn.Module):
    """What the authors pickled has: the network under its names, and buffers that follow from its sizes."""

    def __init__(self):
        super().__init__()
        net = small_net("mps")
        self.model, self.cross_model = net.model, net.cross_model
        embeddings = self.model.text_model.embeddings
        embeddings.register_buffer("position_ids", torch.arange(20).expand(1, -1))
        for pair in self.cross_model.layers:
            for layer in pair:
                layer.fn.norm.register_buffer("bias", torch.zeros(24))
            pair[1].fn.register_buffer("inv_freq", torch.ones(32))


def write_source(folder: Path, sizes=CLIP_SIZES) -> Path:
    folder.mkdir()
    torch.save(Released(), folder / published_mps.CHECKPOINT)
    (folder / "config.json").write_text(json.dumps(sizes))
    (folder / "condition.txt").write_text(CONDITION)
    clip_words().save(str(folder / "tokenizer.json"))
    return folder


def test_the_published_module_becomes_a_folder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(published_mps, "CrossConfig", small_cross)
    with FolderWriter(tmp_path / "home" / "mps") as out:
        published_mps.convert(write_source(tmp_path / "source"), out)
    config = tmp_path / "home" / "mps" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "cross_layers": 2, "cross_heads": 2}))  # fmt: skip
    got = load_reward("mps", "cpu", str(tmp_path / "home")).score(CLIP)
    want = load_reward("mps", "cpu", str(write_pictures(tmp_path / "own", "mps"))).score(CLIP)
    assert torch.allclose(got, want, rtol=1e-5)


def small_cross():
    from runtime.rewards.mps import CrossConfig

    return CrossConfig(layers=2, heads=2)


def test_a_norm_with_a_bias_is_not_mps(tmp_path):
    tensors = {"cross_model.layers.0.0.fn.norm.bias": torch.ones(2), "model.x": torch.ones(1)}
    with pytest.raises(ValueError, match=r"norm\.bias: want zeros"):
        published_mps.used(tmp_path, tensors)


def test_the_condition_is_part_of_the_score_and_has_to_be_there(tmp_path):
    root = write_pictures(tmp_path, "mps", mask_threshold=0.9)
    reward = load_reward("mps", "cpu", str(root))
    (root / "mps" / "condition.txt").write_text("zzz qqq")
    other = load_reward("mps", "cpu", str(root))
    prompts = ("a red circle", "two bluish squares", "hands", "Zoo")
    kept, also = (torch.cat([r.words(text)[1] for text in prompts]) for r in (reward, other))
    # What hides a token is not 0.
    assert (kept == 0).any(-1).all() and (also == 0).any(-1).all() and not torch.equal(kept, also)
    for content, sentence in ((b" \n", "is empty"), (b"\xff\xfe", "not a text"), (b"x" * 5000, "want at most 4096")):  # fmt: skip
        (root / "mps" / "condition.txt").write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            load_reward("mps", "cpu", str(root))
    (root / "mps" / "condition.txt").unlink()
    with pytest.raises(ValueError, match="condition.txt: no such file"):
        load_reward("mps", "cpu", str(root))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_clip_of_transformers_becomes_a_folder_that_loads(tmp_path, file):
    source = write_pictures(tmp_path, "clip-h") / "clip-h"
    state = small_net("clip-h").state_dict() | {"text_model.embeddings.position_ids": torch.arange(20)}  # fmt: skip
    (source / "model.safetensors").unlink()
    save_file(state, source / file) if file.endswith("s") else torch.save(state, source / file)
    with FolderWriter(tmp_path / "home" / "clip-h") as out:
        published_mps.convert_clip(source, out)
    assert load_reward("clip-h", "cpu", str(tmp_path / "home")).score(CLIP).isfinite().all()
