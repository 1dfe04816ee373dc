"""A world without ground truth for tests of what runs around it: judges by the mean of the frames."""

from runtime.bench.quality.row import RIGHT
from runtime.bench.quality.worlds import Judged


class MeanWorld:
    """Prompt ``index`` is as bright as its frames are."""

    name = "mean"
    version = "1"
    changes = {"run.generator": "sprites"}

    def __init__(self, texts=("a red circle", "a blue square", "a green star")):
        self.known = texts
        self.judged = []

    @staticmethod
    def load(wishes):
        return MeanWorld()

    def texts(self, count):
        return [
            f"{self.known[i % len(self.known)]} {'left ' * (i // len(self.known))}".strip()
            for i in range(count)
        ]

    def judge(self, frames, index, fps):
        self.judged.append((index, tuple(frames.shape), frames.dtype, fps))
        bright = frames.double().mean().item() / 255
        return Judged({"Imaging": bright, RIGHT: float(bright > 0.5)}, {"shape": True}, {}, {})
