"""Real generators on the user's prompts: videos kept as VBench wants them, scored by VideoAlign one by one and by VBench at the end.

VQ, MQ and TA are VideoAlign's, over two frames a second of the whole video. The search is steered by the same model, over windows
of ten chunks: so it is in the paper, and so those three columns favour whatever searches. VBench's five come from networks that
neither reward uses.

Legend: T frames of a video, H x W pixels.
"""

from __future__ import annotations

import gc
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from runtime.bench.quality.naming import file_name
from runtime.bench.quality.prompt_files import OPTION, PromptList, read_prompt_file
from runtime.bench.quality.published_rows import beside_the_paper
from runtime.bench.quality.row import MEASURED, REWARDED, SPAN, Key, Row
from runtime.bench.quality.vbench_scores import Scoring
from runtime.bench.quality.video_file import write_video
from runtime.bench.quality.worlds import Judged, Wishes, source_version
from runtime.parts import DTYPES
from runtime.presets import PRESETS, preset
from runtime.rewards import load_reward
from runtime.rewards.videoalign import VideoAlign, sampled_frames
from runtime.settings import Settings
from runtime.types import Clip

PRESET = "longlive"  # what the paper's rows were made with
LEAST_FRAMES = 2  # that VideoAlign looks at


@dataclass
class RealWorld:
    """The part that VBench's prompts and MovieGen's share; they differ in prompts, length and in how VBench is asked."""

    name: ClassVar[str]
    wishes: Wishes
    listed: PromptList
    settings: Settings  # the preset's, with what the user changed: where VideoAlign's weights are, and how it runs
    notes: tuple[str, ...] = ()  # of ``finish``: what VBench has not scored, and why

    @classmethod
    def load(cls, wishes: Wishes) -> RealWorld:
        """ValueError without the user's prompts, for none come with the package."""
        if wishes.prompts_file is None:
            raise ValueError(f"{OPTION}: want the file of your prompts; {cls.where_prompts_are()}")
        settings = preset(wishes.preset or PRESET).with_changes(wishes.changes)
        return cls(wishes, read_prompt_file(wishes.prompts_file), settings)

    @staticmethod
    def where_prompts_are() -> str:
        """Where a user gets them, to end a sentence."""
        raise NotImplementedError

    @property
    def changes(self) -> Mapping[str, Any]:
        return PRESETS[self.wishes.preset or PRESET]

    @property
    def version(self) -> str:
        """Another one for other prompts, and for a VideoAlign that is asked in another way."""
        asked = source_version(__name__, "runtime.rewards.videoalign")
        told = "\n".join(self.listed.texts).encode()
        return f"{asked}-{hashlib.sha256(told).hexdigest()[:12]}"

    def texts(self, count: int) -> list[str]:
        texts = self.listed.first(count)
        if self.listed.standard:
            for text in texts:  # before anything is made
                file_name(text, 0, exact=True)
        return texts

    @cached_property
    def videoalign(self) -> VideoAlign:
        run, weights = self.settings.run, self.settings.reward.weights
        model = load_reward("videoalign", run.device, weights, DTYPES[run.dtype])
        assert isinstance(model, VideoAlign)
        return model

    @property
    def scoring(self) -> Scoring:
        wishes = self.wishes
        python = wishes.vbench_python or sys.executable
        always_long, look_only = wishes.vbench_long, wishes.look_only
        return Scoring(
            wishes.folder, self.listed, wishes.vbench_results, python, always_long, look_only
        )

    def file(self, frames: Tensor, key: Key, text: str, fps: int) -> None:
        """Keep the video under the name that VBench looks it up by."""
        scoring = self.scoring
        path = scoring.place(key.seconds, key.method).videos / scoring.name(key, text)
        write_video(path, frames, fps)

    def judge(self, frames: Tensor, index: int, fps: int) -> Judged:
        """VQ, MQ and TA of the video and of its spans; the measured columns are NaN until ``finish``."""
        text = self.listed.texts[index]
        whole = self._detail(frames, text, fps)
        spans = [self._detail(span, text, fps) for span in frames.split(SPAN)]
        unknown = dict.fromkeys(MEASURED, math.nan)
        return Judged(
            scores=unknown | dict(zip(REWARDED, whole, strict=True)),
            over_time=dict(zip(REWARDED, zip(*spans, strict=True), strict=True)),
        )

    def _detail(self, frames: Tensor, text: str, fps: int) -> list[float]:
        """VQ, MQ and TA of frames [T, 3, H, W] uint8; only those that the model looks at are copied."""
        if len(frames) < LEAST_FRAMES:
            return [math.nan] * len(REWARDED)
        seen = frames[list(sampled_frames(len(frames), fps))].to(self.settings.run.device)
        clip = Clip(seen[None].float() / 255, text, fps, 0, picked=True)
        return self.videoalign.detail(clip)[0].double().cpu().tolist()

    def finish(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with VBench's columns, as far as VBench has scored; ``notes`` say what is missing and how to get it."""
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # VBench is another process, and wants memory of the same GPU
        complete, notes = self.scoring.complete(rows)
        self.notes = tuple(notes)
        return complete

    def remarks(self, rows: Sequence[Row], made_by: str) -> str:
        """Our rows beside the paper's, and what is missing."""
        table = beside_the_paper(rows, made_by)
        told = "\n".join(f"* {note}" for note in self.notes)
        return "\n\n".join(part.strip() for part in (table, told) if part.strip())
