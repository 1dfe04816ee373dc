"""Settings that belong together, by name: what a generator was trained for, and what its size asks of a machine."""

from __future__ import annotations

from typing import Any

from runtime.settings import Settings, one_of

# 832 x 480 on one GPU; search, noise and memory are the released ones
_FULL_SIZE: dict[str, Any] = {
    "run.device": "cuda",
    "run.dtype": "bfloat16",
    "reward.image": "hpsv3",
    "reward.video": "videoalign",
    "run.offload_text": True,  # 11 GB that only the prompt needs
    "run.decoder_rows": 1,  # a picture of this size fills the GPU by itself
}
# Seven chunks and no more sinks: all of the five seconds these were trained on. What leaves them is dropped; the first
# chunk stays, which only a longer video can tell from a window that rolls over everything.
_ALL_FRAMES = {"memory.window_frames": 21, "memory.max_sink_frames": 3, "memory.sinking": False}
# A preset is a set of changes to the defaults, and what its generator was trained for.
PRESETS: dict[str, dict[str, Any]] = {
    # The embedded video reward falls by hundredths where the released one falls by tenths: at 0.2 the gate never opens.
    # Chosen on the tuning captions (docs/quality.md).
    "sprites": {"memory.transition_threshold": 0.03},
    "sprites-256": {"run.generator": "sprites-256"},  # random weights, for timing
    "wan-1.3b": _FULL_SIZE | {"run.generator": "wan-1.3b"},
    "longlive": _FULL_SIZE | {"run.generator": "longlive"},
    "self-forcing": _FULL_SIZE | _ALL_FRAMES | {"run.generator": "self-forcing"},
    "causvid": _FULL_SIZE | _ALL_FRAMES | {"run.generator": "causvid"},
    # time for precision: 8-bit products, a small decoder and fewer frames for the rewards
    "realtime": _FULL_SIZE
    | {
        "run.generator": "wan-1.3b",
        "run.linears": "fp8-row",
        "reward.decoder": "tiny",
        "reward.stride": 4,
    },
}


def preset(name: str) -> Settings:
    """The settings of a preset by name; ValueError lists the known ones."""
    one_of("preset", name, tuple(PRESETS))
    return Settings().with_changes(PRESETS[name])
