"""A folder like that of VideoLLaMA3 in transformers' layout, with a network small enough for a test and questions of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from runtime.rewards.videollama3 import empty_model
from runtime.weights import fill_random_

MARKS = ("<|im_start|>", "<|im_end|>", "<|video_pad|>", "Yes", "No")
VIDEO_ID = 256 + MARKS.index("<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'video' %}<|video_pad|>\n{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = [
    {"text": "Sharp?", "weight": 0.5},
    {"text": "Does it show {prompt}?", "weight": 2.0},
    {"text": "Odd?", "weight": -1},
]
SIZES: dict[str, Any] = {
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 280,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 14,
    },
    "image_token_id": 270,
    "video_token_id": VIDEO_ID,
}
PREPROCESSING = {"min_pixels": 4 * 784, "max_pixels": 36 * 784, "fps": 2}


def small_model() -> nn.Module:
    model = empty_model(SIZES)
    fill_random_(model, "cpu", torch.float32)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape, generator=source)
    return model.eval()


def write_video_folder(root: Path) -> Path:
    """Write ``root/videollama3`` and return ``root``, as ``reward.weights`` wants it."""
    folder = root / "videollama3"
    folder.mkdir(parents=True)
    small_model().save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({sign: index for index, sign in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(list(MARKS))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, chat_template=TEMPLATE)
    fast.save_pretrained(folder)
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    return root
