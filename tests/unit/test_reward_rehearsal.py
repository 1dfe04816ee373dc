"""Published rewards at full width on a GPU that is only pretended: nothing is computed, but shapes, dtypes and devices must fit
and the host must not wait."""

import json

import pytest
import torch

from runtime.kernels import triton_lang
from runtime.rewards import load_reward
from runtime.rewards.checklist import ByteAsker
from runtime.types import Clip
from tests.pretended_gpu import PretendedGPU

pytestmark = [
    pytest.mark.skipif(not triton_lang.AVAILABLE, reason="needs Triton's launchers"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU: rehearse there"),
]
BFLOAT16 = torch.bfloat16


def clip(rows, frames):
    made = torch.empty(rows, frames, 3, 480, 832, device="cuda", dtype=BFLOAT16)
    return Clip(made, "a red circle", 16, 0)


@pytest.mark.parametrize("name", ["imagereward*0.5+mps*0.5"])
def test_a_chunk_of_candidates_is_rated_without_waiting(tmp_path, name):
    table = {part: {"mean": 0.0, "std": 1.0, "samples": 5} for part in ("imagereward", "mps")}
    (tmp_path / "statistics.json").write_text(json.dumps(table))
    with PretendedGPU() as gpu:
        reward = load_reward(name, "cuda", "random", BFLOAT16, str(tmp_path / "statistics.json"))
        scores = reward.score(clip(4, 12))
        assert (scores.shape, scores.dtype, scores.device.type) == ((4,), torch.float32, "cuda")
    assert gpu.waits == gpu.pageable == []


def test_ten_chunks_are_asked_without_waiting():
    """Twice the same: a first score brings the words up. What else is brought are transformers' empty caches, of 0 bytes."""
    pytest.importorskip("transformers.models.video_llama_3")
    from runtime.rewards.videollama3 import FULL_SIZE, Sampling, VideoLLaMA3, empty_model
    from runtime.weights import fill_random_

    with PretendedGPU() as gpu:
        shallow = {kind: {**sizes, "num_hidden_layers": 2} for kind, sizes in FULL_SIZE.items()}
        model = empty_model(shallow)
        fill_random_(model, "cuda", BFLOAT16)
        reward = VideoLLaMA3(model, ByteAsker(count=2), Sampling())
        reward.score(clip(2, 120))
        gpu.pageable.clear()
        assert reward.score(clip(2, 120)).shape == (2,)
    assert gpu.waits == [] and set(gpu.pageable) <= {"runtime/rewards/videollama3.py:_ask"}
    assert len(gpu.pageable) <= 2 * 2
