"""Settings refuse what cannot be, say what they want, and guess what was meant."""

import dataclasses
import json
import math

import pytest

from runtime.presets import PRESETS, preset
from runtime.settings import (
    MemorySettings,
    NoiseSettings,
    RewardSettings,
    RunSettings,
    SearchSettings,
    Settings,
    setting_names,
)

REFUSED = [
    ("seconds", 0.0, r"seconds: want a length in \(0, 86400\], got 0.0"),
    ("seconds", -1, "got -1.0"),
    ("seconds", 86401, "got 86401.0"),
    ("seconds", math.nan, "got nan"),
    ("seconds", math.inf, "got inf"),
    (
        "fidelity",
        "papre",
        r"fidelity: want one of paper, released, got 'papre'; did you mean 'paper'",
    ),
    (
        "search.policy",
        "greedy",
        "want one of single, best-of-n, beam, stream-t1, halving, got 'greedy'",
    ),
    ("search.policy", "stream_t1", "did you mean 'stream-t1'"),
    ("search.histories", 0, "search.histories: want at least 1, got 0"),
    ("search.expansions", 0, "search.expansions: want at least 1, got 0"),
    ("search.expansions", 101, "search.expansions: want at most 100, got 101"),
    ("search.horizon_chunks", 0, "search.horizon_chunks: want at least 1, got 0"),
    ("search.seed", -1, r"search.seed: want a value in 0..2\^63-1, got -1"),
    ("search.seed", 2**63, "got 9223372036854775808"),
    ("noise.beta", 1.01, r"noise.beta: want a value in \[-1, 1\], got 1.01"),
    ("noise.beta", -1.01, "got -1.01"),
    ("noise.beta", math.nan, "got nan"),
    (
        "noise.mode",
        "lerp",
        "noise.mode: want one of blend, slerp, got 'lerp'; did you mean 'slerp'",
    ),
    ("memory.window_frames", 0, "want a positive multiple of the chunk"),
    (
        "memory.window_frames",
        10,
        r"memory.window_frames: want a positive multiple of the chunk \(3\)",
    ),
    (
        "memory.window_frames",
        6,
        r"memory.window_frames: want at least sink_frames \+ 2 chunks \(9\), got 6",
    ),
    ("memory.sink_frames", 0, "memory.sink_frames: want a positive multiple"),
    ("memory.sink_frames", 4, "memory.sink_frames: want a positive multiple"),
    (
        "memory.sink_frames",
        9,
        r"memory.window_frames: want at least sink_frames \+ 2 chunks \(15\), got 12",
    ),
    ("memory.max_sink_frames", -3, "memory.max_sink_frames: want a positive multiple"),
    ("memory.max_sink_frames", 16, "memory.max_sink_frames: want a positive multiple"),
    ("memory.ema_alpha", 1.5, r"memory.ema_alpha: want a value in \[0, 1\], got 1.5"),
    ("memory.ema_alpha", math.nan, "got nan"),
    ("memory.quality_threshold", math.nan, "memory.quality_threshold: want a number, got nan"),
    (
        "memory.transition_threshold",
        math.nan,
        "memory.transition_threshold: want a number, got nan",
    ),
    ("memory.ema_storage", "fp32-shadow", "did you mean 'fp32_shadow'"),
    ("memory.rope", "relativ", "did you mean 'relative'"),
    ("reward.window_chunks", 0, "reward.window_chunks: want at least 1, got 0"),
    ("reward.tau", 1.1, r"reward.tau: want a value in \[0, 1\], got 1.1"),
    ("reward.tau", math.nan, "got nan"),
    ("run.schedule", "survivor", "did you mean 'survivors'"),
    ("run.dtype", "float16", "run.dtype: want one of float64, float32, bfloat16, got 'float16'"),
    ("run.ops", "cublas", "run.ops: want one of auto, native, triton, torch, got 'cublas'"),
    ("run.attention", "sdap", "want one of auto, sdpa, triton, .* got 'sdap'; did you mean 'sdpa'"),
    ("run.batch_rows", -1, "run.batch_rows: want at least 0, got -1"),
]
MISTYPED = [
    ("search.histories", 2.0, r"search.histories: want int, got float 2.0"),
    ("search.histories", True, r"search.histories: want int, got bool True"),
    ("search.histories", "2", r"search.histories: want int, got str '2'"),
    ("search.histories", None, r"want int, got NoneType None"),
    ("search.propagation", 1, r"search.propagation: want bool, got int 1"),
    ("noise.beta", "x", r"noise.beta: want float, got str 'x'"),
    ("noise.beta", False, r"noise.beta: want float, got bool False"),
    ("seconds", [5], r"seconds: want float, got list \[5\]"),
    ("fidelity", 1, r"fidelity: want str, got int 1"),
    ("seconds", 10**400, r"seconds: want float, got an int of 1329 bits"),
]
UNKNOWN = [
    ("search.history", "search.history: no such setting; did you mean search.histories?"),
    ("serach.beta", "did you mean noise.beta?"),
    ("beta", "beta: no such setting; did you mean noise.beta?"),
    ("memory.windows_frames", "did you mean memory.window_frames?"),
    ("second", "did you mean seconds?"),
    ("xyzzy", "xyzzy: no such setting$"),
    ("search", "search: no such setting"),
    ("", ": no such setting"),
    ("search.histories.extra", "no such setting; did you mean search.histories?"),
]


@pytest.mark.parametrize(
    ("name", "value", "message"), REFUSED + MISTYPED, ids=lambda value: str(value)[:24]
)
def test_what_cannot_be_is_refused_with_what_is_wanted(name, value, message):
    with pytest.raises(ValueError, match=message):
        Settings().with_changes({name: value})


@pytest.mark.parametrize(("name", "message"), UNKNOWN, ids=lambda value: value or "empty")
def test_a_name_that_does_not_exist_gets_a_guess(name, message):
    with pytest.raises(ValueError, match=message):
        Settings().with_changes({name: 1})


def test_more_candidates_than_a_chunk_can_have_are_refused():
    sizes = {"search.histories": 21, "search.expansions": 50}
    with pytest.raises(ValueError, match="want at most 1024 candidates a chunk, got 1050"):
        Settings().with_changes(sizes)


def test_sinks_that_cannot_hold_the_initial_ones_are_refused():
    sizes = {"memory.sink_frames": 6, "memory.max_sink_frames": 3}
    with pytest.raises(
        ValueError, match=r"max_sink_frames: want at least sink_frames \(6\), got 3"
    ):
        Settings().with_changes(sizes)


@pytest.mark.parametrize(
    "changes",
    [
        {"search.expansions": 100, "search.histories": 10, "search.seed": 2**63 - 1},
        {"noise.beta": 1, "reward.tau": 0, "memory.ema_alpha": 1},
        {"noise.beta": -1.0, "reward.tau": 1.0, "memory.ema_alpha": 0.0},
        {"memory.window_frames": 9, "memory.sink_frames": 3, "memory.max_sink_frames": 3},
        {"memory.window_frames": 300, "memory.sink_frames": 60, "memory.max_sink_frames": 600},
        {"memory.quality_threshold": math.inf, "memory.transition_threshold": -math.inf},
        {"seconds": 86400, "search.horizon_chunks": 1, "reward.window_chunks": 1},
        {"seconds": 0.001},
    ],
    ids=str,
)
def test_the_edges_of_what_can_be_are_accepted(changes):
    settings = Settings().with_changes(changes)
    for name, value in changes.items():
        room, _, key = name.rpartition(".")
        assert getattr(getattr(settings, room) if room else settings, key) == value


def test_changes_leave_the_original_alone():
    before = Settings()
    after = before.with_changes({"search.histories": 4, "seconds": 10})
    assert (before.search.histories, before.seconds) == (2, 5.0)
    assert (after.search.histories, after.seconds) == (4, 10.0)
    assert type(after.seconds) is float
    assert after.memory is before.memory


@pytest.mark.parametrize(
    "cls", [Settings, SearchSettings, NoiseSettings, MemorySettings, RewardSettings, RunSettings]
)
def test_settings_are_frozen_and_closed(cls):
    first = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), first, None)
    with pytest.raises(TypeError):
        cls(surprise=1)


def test_every_name_can_be_set_to_its_own_default():
    defaults = dataclasses.asdict(Settings())
    for name, kind in setting_names().items():
        room, _, key = name.rpartition(".")
        value = (defaults[room] if room else defaults)[key]
        assert type(value) is kind
        assert Settings().with_changes({name: value}) == Settings()


def test_defaults_are_the_released_ones():
    search, memory, reward = Settings().search, Settings().memory, Settings().reward
    assert (search.histories, search.expansions, search.seed) == (2, 2, 42)
    assert (memory.window_frames, memory.sink_frames, memory.max_sink_frames) == (12, 3, 15)
    assert (memory.ema_alpha, memory.quality_threshold, memory.transition_threshold) == (
        0.999,
        0.0,
        0.2,
    )
    assert (reward.window_chunks, reward.tau, Settings().noise.beta) == (10, 0.4, -0.1)
    assert Settings().fidelity == "paper" and not Settings().released


@pytest.mark.parametrize(
    ("window", "sink", "limit", "want"), [(12, 3, 15, (1, 5, 3, 8)), (18, 6, 9, (2, 3, 4, 7))]
)
def test_sizes_in_chunks_follow_from_sizes_in_frames(window, sink, limit, want):
    m = MemorySettings(window_frames=window, sink_frames=sink, max_sink_frames=limit)
    assert (m.sink_chunks, m.max_sink_chunks, m.window_chunks, m.max_blocks) == want


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_valid_set_of_changes(name):
    assert isinstance(preset(name), Settings)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"preset: want one of .*sprites.*did you mean 'sprites'"):
        preset("sprite")


def test_json_holds_every_setting():
    written = json.loads(Settings().to_json())
    names = {
        f"{room}.{key}" if isinstance(values, dict) else room
        for room, values in written.items()
        for key in (values if isinstance(values, dict) else [room])
    }
    assert names == set(setting_names())
