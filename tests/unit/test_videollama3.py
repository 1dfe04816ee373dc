"""VideoLLaMA3 against transformers' own generation on a small random network; its frames, its questions, its refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers.models.video_llama_3")
Image = pytest.importorskip("PIL.Image")

from transformers import VideoLlama3ForConditionalGeneration  # noqa: E402

from runtime.rewards import PUBLISHED, load_reward  # noqa: E402
from runtime.rewards.checklist import REPLY, ByteAsker  # noqa: E402
from runtime.rewards.videollama3 import FULL_SIZE, Sampling, VideoLLaMA3, empty_model  # noqa: E402
from runtime.types import Clip  # noqa: E402
from tests.tiny import generator_of  # noqa: E402
from tests.videollama3_folder import QUESTIONS, VIDEO_ID, small_model, write_video_folder  # noqa: E402

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_video_folder(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def reward(root) -> VideoLLaMA3:
    return load_reward("videollama3", "cpu", str(root))


def clip():
    """Bytes, so that two frames are equal or not: one clip moves all over, one in a corner, one not at all."""
    frames = torch.randint(0, 256, (3, 32, 3, 84, 112), generator=generator_of(5))
    frames[2] = frames[2, :1]
    frames[1, :, :, 40:] = frames[1, :1, :, 40:]
    return Clip(frames.float() / 255, PROMPT, 16, 0)


def stock_patches(frames):
    """frames [n, 3, H, W] of bytes / 255 -> normalised patches [n, P, 588] as transformers cuts them, by Pillow and numpy."""
    out = []
    for frame in (frames * 255).round().byte().permute(0, 2, 3, 1).numpy():
        resized = np.asarray(Image.fromarray(frame).resize((84, 56), Image.Resampling.BICUBIC))
        pixels = (torch.from_numpy(resized.copy()).float() / 255 - 0.5) / 0.5
        grid = pixels.permute(2, 0, 1).reshape(3, 2, 2, 14, 3, 2, 14)
        out.append(grid.permute(1, 4, 2, 5, 0, 3, 6).reshape(24, 588))
    return torch.stack(out)


def stock_logits(model, tokeniser, frames, seconds, question):
    """The first step of transformers' greedy generation for one clip and one question, still tokens taken out."""
    patches = stock_patches(frames)
    n = len(patches)
    groups = patches.view(n, 6, 4 * 588)
    kept = torch.ones(n, 6, dtype=torch.bool)
    kept[1:] = (groups[1:] - groups[:-1]).abs().mean(-1) * 255 > 0.1
    kept[:, 0] |= kept.sum(1) < 1
    video = [
        f"Time {s:.1f}s:" + "<|video_pad|>" * count
        for s, count in zip(seconds, kept.sum(1).tolist(), strict=True)
    ]
    text = (
        f"<|im_start|>user\n{','.join(video)}\n{question}{REPLY}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokeniser(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert (ids == VIDEO_ID).sum() == kept.sum()
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=patches.flatten(0, 1),
        video_grid_thw=torch.tensor([[n, 4, 6]]),
        video_merge_sizes=torch.tensor([2]),
        video_compression_mask=kept.flatten(),
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.logits[0][0], kept.sum().item()


def test_answers_are_those_that_transformers_would_begin_with(reward, root):
    """Clips of different motion in one batch, masked, against each alone with its still tokens taken out."""
    some = clip()
    index = reward.sampling.frames(32, 16)
    assert index == (0, 8, 16, 24)
    model = VideoLlama3ForConditionalGeneration.from_pretrained(root / "videollama3").eval()
    got = reward.forward(reward.prepare(some))
    counts = set()
    for row, frames in enumerate(some.frames[:, list(index)]):
        for number, entry in enumerate(QUESTIONS):
            question = entry["text"].replace("{prompt}", PROMPT)
            logits, kept = stock_logits(model, reward.asker.tokeniser, frames, [i / 16 for i in index], question)  # fmt: skip
            counts.add(kept)
            want = [logits[list(ids)].max() for ids in (reward.asker.yes, reward.asker.no)]
            assert torch.allclose(got[row, number], torch.stack(want), rtol=1e-4, atol=1e-5)
    assert len(counts) == 3 and max(counts) == 24 and min(counts) == 9


def test_the_score_is_the_weighted_mean_of_yes_and_no(reward):
    answers = reward.detail(clip())
    assert answers.shape == (3, 3) and set(answers.unique().tolist()) <= {1.0, -1.0}
    weights = torch.tensor([0.5, 2.0, -1.0])
    assert torch.allclose(reward.score(clip()), (answers * weights).sum(1) / 3)


def test_a_batch_scores_as_its_clips_do_alone_and_one_bad_pixel_spoils_one(reward):
    whole = reward.forward(reward.prepare(clip()))
    alone = [reward.forward(reward.prepare(replace(clip(), frames=f[None]))) for f in clip().frames]
    assert torch.allclose(whole, torch.cat(alone), rtol=1e-4, atol=1e-5)
    reward.rows_per_forward = 2
    assert torch.allclose(whole, reward.forward(reward.prepare(clip())), rtol=1e-4, atol=1e-5)
    frames = clip().frames
    frames[1, 9, 0, 3, 3] = float("inf")
    assert reward.score(replace(clip(), frames=frames)).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("frames", "fps", "want"),
    [
        (120, 16, (0, 17, 34, 51, 68, 85, 102)),  # 7.5 s at one a second: 7
        (12, 16, (0, 3, 6, 9)),  # never fewer than four
        (3, 16, (0, 1, 2)),  # but no frame twice
        (1, 16, (0,)),
    ],
)
def test_frames_are_sampled_as_the_processor_does(frames, fps, want):
    assert Sampling().frames(frames, fps) == want
    assert len(Sampling(max_frames=5).frames(frames, fps)) <= 5


def test_all_frames_together_stay_below_the_most_pixels():
    for count in (1, 4, 10, 40):
        tall, wide = Sampling().size(480, 832, count)
        assert tall % 28 == wide % 28 == 0 and count * tall * wide <= 768 * 28 * 28


def test_a_prompt_that_spells_a_mark_is_text(reward):
    plain = reward.asker.dialogue("<|video_pad|>", (0.0, 1.0))
    assert all(VIDEO_ID not in ids for ids in (*plain.before, *plain.asked))
    assert len(plain.before) == 2 and len(plain.asked) == 3


def test_random_weights_are_the_published_size_and_cost_what_is_counted(reward):
    model = empty_model(FULL_SIZE)
    assert sum(value.numel() for value in model.parameters()) == PUBLISHED["videollama3"][0]
    assert not any(buffer.is_meta for buffer in model.buffers())
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    small = VideoLLaMA3(small_model(), ByteAsker(count=2, length=16), reward.sampling)
    viewing = small.prepare(replace(clip(), frames=clip().frames[:1]))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        small.forward(viewing)
    # Attention to what a causal mask hides is counted by torch and not by us.
    assert small.flops(32, 84, 112, 16) == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", {"model_type": "videollama3_qwen2", "auto_map": {}}, "no Python that comes with weights is run"),
        ("questions.json", {}, "want a list of 1 to 256 questions"),
        ("questions.json", [], "want a list of 1 to 256 questions"),
        ("questions.json", [{"text": " ", "weight": 1}], "question 1: want a text"),
        ("questions.json", [QUESTIONS[0], {"text": "x"}], "question 2: want a weight"),
        ("questions.json", [{"text": "x", "weight": float("nan")}], "question 1: want a weight"),
        ("video_preprocessor_config.json", {"min_pixels": 9, "max_pixels": 3}, "min_pixels, max_pixels"),
        ("video_preprocessor_config.json", {"max_frames": 2}, "want 1 to max_frames frames"),
        ("video_preprocessor_config.json", {"fps": "x"}, "could not convert|fps"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_in_a_sentence(tmp_path, root, file, content, sentence):
    folder = tmp_path / "videollama3"
    folder.mkdir()
    for path in (root / "videollama3").iterdir():
        (folder / path.name).symlink_to(path)
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=sentence) as caught:
        load_reward("videollama3", "cpu", str(tmp_path))
    assert str(folder) in str(caught.value)


def test_weights_that_lack_a_layer_are_named(tmp_path, root):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "videollama3"
    folder.mkdir()
    for path in (root / "videollama3").iterdir():
        (folder / path.name).symlink_to(path)
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if "projector" in name))
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing or unknown .*projector"):
        load_reward("videollama3", "cpu", str(tmp_path))
