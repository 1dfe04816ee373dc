"""Asks a video yes-or-no questions and adds up the answers: VisionReward's method on VideoLLaMA3, as transformers has it.

    score = mean over questions of weight * (1 where the answer begins with yes, -1 where with no)

The video comes first and is the same for every question, so it is read once and each question continues from its keys and
values. An answer is the first token: the likelier of its yeses against the likelier of its noes, which is what generating
would say wherever it says either. Patches that hardly differ from the frame before are left out as the model was trained
with; here they stay in place, masked and not counted, so that candidates of different motion share one batch.

Both networks are transformers' own, called with masks and positions of ours and a grid that is on the host already, so that
scoring never waits for the GPU. That takes transformers 5.17 or newer.

Weights  a folder as ``save_pretrained`` of transformers' VideoLlama3ForConditionalGeneration writes it, with questions.json.
         DAMO's own upload is in another layout and brings Python of its own: not read, nothing of it is ever run.
Source   Zhang et al., "VideoLLaMA 3", 2025; Xu et al., "VisionReward", 2024; sampling, compression and layout of the prompt
         as in transformers' processor.
Legend: B clips, n sampled frames, P patches of one, V = P / 4 tokens of one, S tokens of video and text, Q questions, E width.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.kernels.philox import upload
from runtime.kernels.reward_patches import PATCH, PatchFormat, fit_size, reward_patches
from runtime.rewards.checklist import Asker, ByteAsker, ChatAsker
from runtime.rewards.qwen2vl_judge import PixelBounds, check_clip, spoil_
from runtime.types import Clip, row_ranges
from runtime.weights import fill_random_, read_config

ROWS_PER_FORWARD = 4  # clips
HALF = (0.5, 0.5, 0.5)  # mean and deviation of its pixels
MERGE = 2  # patches a side that become one token
STILL = 0.1  # of 255: a token whose pixels moved less on average is left out
MODEL_TYPE = "video_llama_3"
FULL_SIZE: dict[str, Any] = {  # of VideoLLaMA3-7B
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": PATCH,
    },
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames are seen and how large, under the names of the published video_preprocessor_config.json."""

    fps: float = 1.0
    min_frames: int = 4
    max_frames: int = 180
    pixels: PixelBounds = PixelBounds(
        128 * 28 * 28, 768 * 28 * 28
    )  # the most is for all frames together
    compress: bool = True

    @staticmethod
    def read(path: Path) -> Sampling:
        """From a file, if it is there; entries that are not keep their defaults. ValueError names a wrong one."""
        table = read_config(path) if path.is_file() else {}
        size: dict[str, Any] = table["size"] if isinstance(table.get("size"), dict) else {}
        own = Sampling()
        least: Any = table.get("min_pixels", size.get("shortest_edge", own.pixels.least))
        most: Any = table.get("max_pixels", size.get("longest_edge", own.pixels.most))
        fewest: Any = table.get("min_frames") or own.min_frames
        many: Any = table.get("max_frames") or own.max_frames
        try:
            fps = float(table.get("fps") or own.fps)
            whole = (least, most, fewest, many)
            if any(type(value) is not int for value in whole):
                raise ValueError(f"pixels and frames: want whole numbers, got {whole}")
            if not 1 <= fewest <= many <= 4096 or not 0 < fps <= 1000:
                raise ValueError(
                    f"want 1 to max_frames frames at an fps above 0, got {fewest} to {many} at {fps}"
                )
            bounds = PixelBounds(least, most)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        return Sampling(fps, fewest, many, bounds, bool(table.get("use_token_compression", True)))

    def frames(self, frames: int, fps: int) -> tuple[int, ...]:
        """Indices of those that are seen, spread evenly from the first on."""
        if frames < 1 or fps < 1:
            raise ValueError(f"clip: want frames at 1 a second or more, got {frames} at {fps}")
        wanted = min(max(frames / fps * self.fps, self.min_frames), self.max_frames, frames)
        count = max(1, int(wanted))
        return tuple(int(index * frames / count) for index in range(count))

    def size(self, height: int, width: int, count: int) -> tuple[int, int]:
        """Height and width in pixels that each of ``count`` frames becomes."""
        most = max(self.pixels.most // count, 1)
        return fit_size(height, width, min(self.pixels.least, most), most)


@dataclass(frozen=True, slots=True)
class Viewing:
    """Everything a forward pass reads, on the model's device."""

    patches: Tensor  # [B, n, P, 588]
    kept: Tensor  # [B, n, V] bool
    grid: tuple[int, int]  # rows and columns of patches
    before: tuple[Tensor, ...]  # n of [s]
    asked: tuple[Tensor, ...]  # Q of [q]

    def rows(self, rows: range) -> Viewing:
        some = slice(rows.start, rows.stop)
        return Viewing(self.patches[some], self.kept[some], self.grid, self.before, self.asked)


class VideoLLaMA3:
    """Weighted mean of yes (1) and no (-1), over up to ten chunks."""

    horizon = 10

    def __init__(self, model: Any, asker: Asker, sampling: Sampling, rows_per_forward: int = ROWS_PER_FORWARD):  # fmt: skip
        self.model: Any = model.eval().requires_grad_(False)
        self.asker, self.sampling, self.rows_per_forward = asker, sampling, rows_per_forward
        weight: Tensor = self.model.lm_head.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.yes, self.no = (upload(ids, torch.int64, self.device) for ids in (asker.yes, asker.no))
        self.weights = upload(asker.weights, torch.float32, self.device)
        self.words = functools.lru_cache(maxsize=16)(self._words)
        self.places = functools.lru_cache(maxsize=16)(self._places)

    @classmethod
    def random(cls, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> VideoLLaMA3:  # fmt: skip
        """At full size with random weights and questions of a usual length, for timing."""
        check_version()
        model = empty_model(FULL_SIZE)
        fill_random_(model, device, dtype)
        return cls(model, ByteAsker(), Sampling())

    @classmethod
    def load(
        cls, device: str | torch.device, path: Path, dtype: torch.dtype = torch.bfloat16
    ) -> VideoLLaMA3:
        """From folder ``path``: safetensors, config.json and tokeniser of transformers' layout, and questions.json."""
        table = read_config(path / "config.json")
        if table.get("model_type") != MODEL_TYPE:
            raise ValueError(
                f"{path / 'config.json'}: want model_type {MODEL_TYPE!r}, got {table.get('model_type')!r}; only "
                "transformers' own layout is read, and no Python that comes with weights is run"
            )
        asker = ChatAsker(path, table.get("video_token_id", 151_656))
        sampling = Sampling.read(path / "video_preprocessor_config.json")
        from transformers import VideoLlama3ForConditionalGeneration as Model

        check_version()
        try:
            model, said = Model.from_pretrained(
                str(path),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: transformers cannot load it ({error})") from None
        if wrong := sorted({*said["missing_keys"], *said["unexpected_keys"]} - {"lm_head.weight"}):
            raise ValueError(f"{path}: missing or unknown {', '.join(wrong[:4])} and {max(0, len(wrong) - 4)} more")  # fmt: skip
        if model.config.vision_config.patch_size != PATCH:
            raise ValueError(f"{path}: want patches of {PATCH} pixels, got {model.config.vision_config.patch_size}")  # fmt: skip
        return cls(model.to(device), asker, sampling)

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return sum(value.numel() * value.element_size() for value in self.model.parameters())

    def flops(self, frames: int, height: int, width: int, fps: int, prompt: str = "") -> int:
        """Of one clip: two for every weight that a token meets, and attention; no token is taken for still."""
        index = self.sampling.frames(frames, fps)
        tall, wide = self.sampling.size(height, width, len(index))
        patches = tall * wide // PATCH**2
        words = self.asker.dialogue(prompt, [i / fps for i in index])
        text, vision = self.model.config.text_config, self.model.config.vision_config
        first = sum(map(len, words.before)) + len(index) * patches // MERGE**2
        rest = sum(map(len, words.asked))
        look = len(index) * patches * (2 * _numel(self.model.model.vision_model) + 4 * patches * vision.hidden_size * vision.num_hidden_layers)  # fmt: skip
        join = 2 * len(index) * patches // MERGE**2 * _numel(self.model.model.projector)
        layers = 2 * (first + rest) * _numel(self.model.model.language_model.layers)
        pairs = first**2 // 2 + rest * first
        attend = 4 * pairs * text.hidden_size * text.num_hidden_layers
        head = 2 * len(words.asked) * text.hidden_size * text.vocab_size
        return look + join + layers + attend + head

    @torch.no_grad()
    def prepare(self, clip: Clip) -> Viewing:
        """Sampled frames as patches, which of their tokens are read, and the words around them."""
        frames = check_clip(clip)
        index = self.sampling.frames(frames.shape[1], clip.fps)
        B, n, H, W = len(frames), len(index), *frames.shape[-2:]
        at = upload(index, torch.int64, frames.device)
        seen = frames.index_select(1, at).to(self.device)
        seen = seen.float() if seen.dtype == torch.float64 else seen
        form = PatchFormat(*self.sampling.size(H, W, n), False, torch.float32, HALF, HALF)
        patches = reward_patches(seen.reshape(B * n, 3, H, W), form)
        # A picture there is its own second frame; here there is one.
        patches = patches.view(B, n, -1, 3, 2, PATCH * PATCH)[..., 0, :].flatten(-2)
        kept = moved(patches) if self.sampling.compress else patches.new_ones(B, n, patches.shape[2] // MERGE**2, dtype=torch.bool)  # fmt: skip
        grid = form.height // PATCH, form.width // PATCH
        before, asked = self.words(clip.prompt, tuple(i / clip.fps for i in index))
        return Viewing(patches.to(self.dtype), kept, grid, before, asked)

    @torch.no_grad()
    def forward(self, viewing: Viewing) -> Tensor:
        """[B, Q, 2] fp32: of every question the logit of the likeliest yes and of the likeliest no."""
        parts = [
            self._ask(viewing.rows(rows))
            for rows in row_ranges(len(viewing.patches), self.rows_per_forward)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def detail(self, clip: Clip) -> Tensor:
        """[B, Q] fp32: 1 for yes, -1 for no; NaN for a clip with a pixel that is not finite."""
        yes, no = self.forward(self.prepare(clip)).unbind(-1)
        answers = (yes > no).float() * 2 - 1
        spoil_(answers, clip.frames)
        return answers

    def score(self, clip: Clip) -> Tensor:
        """[B] fp32, higher is better."""
        return (self.detail(clip) * self.weights).mean(1)

    def look(self, viewing: Viewing) -> Tensor:
        """The frames' tokens, [B, n, V, E]."""
        B, n, P, _ = viewing.patches.shape
        # The grid stays on the host, where transformers reads it; what the device needs of it is brought there.
        grid, merges = torch.tensor([(n, *viewing.grid)] * B), torch.tensor([MERGE] * B)
        places = self.places(B * n, viewing.grid)
        seen = self.model.model.vision_model(viewing.patches.flatten(0, 2), grid, merges, position_ids=places)  # fmt: skip
        return self.model.model.projector(seen.last_hidden_state).view(B, n, P // MERGE**2, -1)

    def _ask(self, viewing: Viewing) -> Tensor:
        from transformers import DynamicCache

        language, cache = self.model.model.language_model, DynamicCache()
        x, real = self._video(viewing)
        S = x.shape[1]
        behind = torch.ones(S, S, dtype=torch.bool, device=self.device).tril()
        mask = self._mask(behind & real[:, None])
        places = (real.cumsum(1) - 1).clamp(min=0)
        language(inputs_embeds=x, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)  # fmt: skip
        answers = []
        for ids in viewing.asked:
            q = len(ids)
            own = torch.ones(q, q, dtype=torch.bool, device=self.device).tril()
            old = real[:, None].expand(-1, q, -1)
            mask = self._mask(torch.cat((old, own.expand(len(x), -1, -1)), 2))
            places = real.sum(1, keepdim=True) + torch.arange(q, device=self.device)
            words = language.embed_tokens(ids).expand(len(x), -1, -1)
            said = language(inputs_embeds=words, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)  # fmt: skip
            cache.crop(-q)  # the next question follows the video, not this one
            logits = self.model.lm_head(said.last_hidden_state[:, -1]).float()
            answers.append(torch.stack([logits[:, ids].amax(1) for ids in (self.yes, self.no)], 1))
        return torch.stack(answers, 1)

    def _video(self, viewing: Viewing) -> tuple[Tensor, Tensor]:
        """Text and frames in turn, [B, S, E], and which of it is read, [B, S] bool."""
        tokens, B = self.look(viewing), len(viewing.patches)
        parts, real = [], []
        for number, ids in enumerate(viewing.before):
            words = self.model.model.language_model.embed_tokens(ids).expand(B, -1, -1)
            parts += [words, tokens[:, number].to(words.dtype)]
            real += [viewing.kept.new_ones(B, len(ids)), viewing.kept[:, number]]
        return torch.cat(parts, 1), torch.cat(real, 1)

    def _mask(self, seen: Tensor) -> Tensor:
        """seen [B, q, S] bool -> what attention adds, [B, 1, q, S]. A whole mask is taken as it is, whatever is in it."""
        worst = torch.finfo(self.dtype).min
        return torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, worst)[:, None]

    def _places(self, pictures: int, grid: tuple[int, int]) -> Tensor:
        """Row and column of every patch of ``pictures`` pictures, [pictures * P, 2], those of a token side by side."""
        rows, columns = (torch.arange(length) for length in grid)
        both = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        groups = both.view(grid[0] // MERGE, MERGE, grid[1] // MERGE, MERGE, 2)
        one = groups.transpose(1, 2).flatten(0, 3)
        host = one.repeat(pictures, 1)
        if self.device.type != "cuda":
            return host.to(self.device)
        return host.pin_memory().to(self.device, non_blocking=True)

    def _words(self, prompt: str, seconds: tuple[float, ...]) -> tuple[tuple[Tensor, ...], ...]:
        words = self.asker.dialogue(prompt, seconds)
        parts = words.before, words.asked
        return tuple(tuple(upload(ids, torch.int64, self.device) for ids in part) for part in parts)


def moved(patches: Tensor) -> Tensor:
    """patches [B, n, P, 588] -> [B, n, V] bool: tokens that are read, those of the first frame and whatever moved since.

    A frame keeps its first token where nothing moved.
    """
    groups = patches.unflatten(2, (-1, MERGE**2)).flatten(-2)  # [B, n, V, 4 * 588]
    change = groups.diff(dim=1).abs().mean(-1) * 255
    kept = torch.cat((torch.ones_like(groups[:, :1, :, 0], dtype=torch.bool), change > STILL), 1)
    kept[..., 0] |= ~kept.any(-1)
    return kept


def check_version() -> None:
    """Raises RuntimeError for a transformers whose vision tower takes no positions."""
    if importlib.util.find_spec("transformers.vision_utils") is None:
        import transformers

        raise RuntimeError(
            f"reward 'videollama3': wants transformers 5.17 or newer, got {transformers.__version__}"
        )


def empty_model(table: dict[str, Any]) -> nn.Module:
    """transformers' model of these sizes on the meta device, its constant buffers on the CPU."""
    from transformers import VideoLlama3Config
    from transformers import VideoLlama3ForConditionalGeneration as Model

    with torch.device("meta"):
        model = Model(VideoLlama3Config(**table))
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, type(module)(module.config))
    return model


def _numel(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())
