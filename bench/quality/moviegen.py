"""``--world moviegen``: the first 128 prompts of Movie Gen Video Bench, thirty seconds each, as in the paper's other tables."""

from __future__ import annotations

from runtime.bench.quality.real_world import RealWorld


class MovieGen(RealWorld):
    """Prompts one a line; VBench scores every video in every column, in its long mode."""

    name = "moviegen"
    seconds = (30.0,)  # unless the user says otherwise
    count = 128

    @staticmethod
    def where_prompts_are() -> str:
        return (
            "MovieGenVideoBench.txt comes with Movie Gen Bench (github.com/facebookresearch/MovieGenBench, "
            "benchmark/), one prompt a line"
        )
