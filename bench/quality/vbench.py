"""``--world vbench``: the prompts of VBench's suite, five seconds each, as in the paper's first table."""

from __future__ import annotations

from runtime.bench.quality.real_world import RealWorld


class VBench(RealWorld):
    """All 946 prompts, or the first of them.

    From ``VBench_full_info.json`` they are scored by VBench's standard suite, in which every column has prompts of its own
    and five samples of each; from a text file every video is scored in every column, as anybody's videos are.
    """

    name = "vbench"
    seconds = (5.0,)  # unless the user says otherwise
    count = 946

    @staticmethod
    def where_prompts_are() -> str:
        return "VBench_full_info.json comes with VBench (github.com/Vchitect/VBench, vbench/), or one prompt a line"
