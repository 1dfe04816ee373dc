"""Frozen settings and every check that spans two of them. The only place that reads the environment."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK_FRAMES = 3  # latent frames: the atom of noise, memory, window and reward
MAX_CANDIDATES = 1024
MAX_EXPANSIONS = 100  # seeds are seed + 1000 n + 100 b + i
PROMPT_CHARACTERS = 4096
MAX_PROMPTS = 1000  # asked for together
LONGEST_SECONDS = 24 * 3600.0

ON_ERROR = ("fail", "degrade")
SHOWN = 120  # characters of a wrong value
POLICIES = ("single", "best-of-n", "beam", "stream-t1", "halving")
FIDELITIES = ("paper", "released")
SCHEDULES = ("survivors", "released")
OPS = ("auto", "native", "triton", "torch")
ATTENTIONS = ("auto", "sdpa", "triton", "varlen", "fa2", "fa3", "fa4", "reference")
GRAPHS = ("auto", "off", "cuda", "rehearsal")
LINEARS = ("dense", "fp8-row", "fp8-tensor")
SCORING_DECODERS = ("full", "tiny")
BACKENDS = ("auto", "torch", "compiled", "captured", "onnxruntime", "tensorrt", "tensorrt-rtx")
EMA_STORAGES = ("auto", "fp32_shadow", "stochastic", "released")  # see kernels/ema_merge.py


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """ValueError with a guess unless ``value`` is one of ``known``."""
    if value not in known:
        guess = difflib.get_close_matches(str(value)[:SHOWN], known, n=1)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
        raise ValueError(f"{name}: want one of {', '.join(known)}, got {shown(value)}{hint}")


def shown(value: object) -> str:
    """A value in an error's sentence: as much of it as a reader wants to see."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ValueError(f"{name}: want at least {low}, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    policy: str = "stream-t1"
    histories: int = 2  # K, histories kept after each chunk
    expansions: int = 2  # M, candidates drawn per history
    seed: int = 42
    propagation: bool = True  # blend a chunk's noise with its parent's
    pruning: bool = True  # False: no selection, one history walks alone
    # how far back a search may change its mind, and what the final reward sees
    horizon_chunks: int = 40
    # policy "halving": candidates begun per history; ``expansions`` of them are finished
    drafts: int = 4
    draft_passes: int = 2  # policy "halving": passes before the choice

    def __post_init__(self) -> None:
        one_of("search.policy", self.policy, POLICIES)
        _at_least("search.histories", self.histories, 1)
        _at_least("search.expansions", self.expansions, 1)
        _at_least("search.horizon_chunks", self.horizon_chunks, 1)
        _at_least("search.draft_passes", self.draft_passes, 1)
        if self.policy == "halving":
            _at_least("search.drafts", self.drafts, self.expansions)
        drawn = "drafts" if self.policy == "halving" else "expansions"
        count = getattr(self, drawn)
        if self.histories * count > MAX_CANDIDATES:
            raise ValueError(
                f"search.histories * search.{drawn}: want at most {MAX_CANDIDATES} candidates a chunk, "
                f"got {self.histories * count}"
            )
        if count > MAX_EXPANSIONS:
            raise ValueError(f"search.{drawn}: want at most {MAX_EXPANSIONS}, got {count}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"search.seed: want a value in 0..2^63-1, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseSettings:
    beta: float = -0.1  # weight of the parent's noise
    mode: str = "blend"  # "blend": the paper's formula; "slerp": true angle, keeps the norm of correlated noise

    def __post_init__(self) -> None:
        one_of("noise.mode", self.mode, ("blend", "slerp"))
        if not -1.0 <= self.beta <= 1.0:
            raise ValueError(f"noise.beta: want a value in [-1, 1], got {self.beta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """Sizes are latent frames, as checkpoints state them; each must be a multiple of the chunk."""

    window_frames: int = 12  # L: initial sink + window + current chunk
    sink_frames: int = 3  # s: the first frames of the video, never evicted
    max_sink_frames: int = 15  # Smax: with the appended ones
    ema_alpha: float = 0.999
    ema_storage: str = "auto"  # how a merged sink is rounded; "auto": as the fidelity says
    quality_threshold: float = 0.0
    transition_threshold: float = 0.2
    sinking: bool = True  # False: what leaves the window is dropped
    # "relative": sinks are re-based next to the window, for videos beyond a minute
    rope: str = "absolute"
    # what a new prompt in mid-video writes again; see runtime/recaching.py
    recache: str = "all"
    keep_last: bool = False  # write the last chunk's keys and values too, to go on from it later

    def __post_init__(self) -> None:
        for name in ("window_frames", "sink_frames", "max_sink_frames"):
            value = getattr(self, name)
            if value < CHUNK_FRAMES or value % CHUNK_FRAMES:
                raise ValueError(
                    f"memory.{name}: want a positive multiple of the chunk ({CHUNK_FRAMES}), got {value}"
                )
        if self.window_frames < self.sink_frames + 2 * CHUNK_FRAMES:
            raise ValueError(
                f"memory.window_frames: want at least sink_frames + 2 chunks "
                f"({self.sink_frames + 2 * CHUNK_FRAMES}), got {self.window_frames}"
            )
        if self.max_sink_frames < self.sink_frames:
            raise ValueError(
                f"memory.max_sink_frames: want at least sink_frames ({self.sink_frames}), got {self.max_sink_frames}"
            )
        for name in ("quality_threshold", "transition_threshold"):
            # A gate that compares with NaN would be always shut or always open, without a word.
            if math.isnan(getattr(self, name)):
                raise ValueError(f"memory.{name}: want a number, got nan")
        if not 0.0 <= self.ema_alpha <= 1.0:
            raise ValueError(f"memory.ema_alpha: want a value in [0, 1], got {self.ema_alpha}")
        one_of("memory.ema_storage", self.ema_storage, EMA_STORAGES)
        one_of("memory.rope", self.rope, ("absolute", "relative"))
        one_of("memory.recache", self.recache, ("all", "window", "none"))

    @property
    def sink_chunks(self) -> int:
        return self.sink_frames // CHUNK_FRAMES

    @property
    def max_sink_chunks(self) -> int:
        return self.max_sink_frames // CHUNK_FRAMES

    @property
    def window_chunks(self) -> int:
        """Chunks of the rolling window, the current one included."""
        return (self.window_frames - self.sink_frames) // CHUNK_FRAMES

    @property
    def max_blocks(self) -> int:
        """Blocks one history can hold between two chunks."""
        return self.max_sink_chunks + self.window_chunks


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    image: str = "sprites-image"
    video: str = "sprites-video"
    window_chunks: int = 10
    tau: float = 0.4  # cap of the image reward's weight
    # the image reward sees every stride-th frame of a chunk, its last one among them
    stride: int = 1
    decoder: str = "full"  # of the frames that rewards see; "tiny": fast and approximate
    weights: str = ""  # "": those of the package; "random": none, for timing; else a folder
    backend: str = "auto"  # what runs the networks; all but the torch ones read exported graphs
    graphs: str = ""  # the folder that ``python -m runtime.export`` wrote
    statistics: str = ""  # of each model in an ensemble: a JSON file of means and deviations
    # a reward that judges no candidate of a chunk: "fail" ends the video, "degrade" goes on without it
    on_error: str = "fail"
    deadline_s: float = 0.0  # for one reward and chunk; what comes later is dropped; 0: none

    def __post_init__(self) -> None:
        one_of("reward.backend", self.backend, BACKENDS)
        _at_least("reward.window_chunks", self.window_chunks, 1)
        _at_least("reward.stride", self.stride, 1)
        one_of("reward.decoder", self.decoder, SCORING_DECODERS)
        one_of("reward.on_error", self.on_error, ON_ERROR)
        if not 0.0 <= self.deadline_s < math.inf:
            raise ValueError(
                f"reward.deadline_s: want seconds, or 0 for no deadline, got {self.deadline_s}"
            )
        if not 0.0 <= self.tau <= 1.0:
            raise ValueError(f"reward.tau: want a value in [0, 1], got {self.tau}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How the work is laid out. Only ``schedule="released"`` changes what the rewards see: cold decodes, in either fidelity."""

    generator: str = "sprites"
    device: str = "cpu"
    dtype: str = "float32"
    schedule: str = "survivors"  # "released": serial candidates, cold decodes, clean pass for all
    batch_rows: int = 0  # candidates per forward; 0: all at once
    litters: bool = False  # siblings share work with nobody else: the same bits in any company
    ranks: int = 1  # processes that share a video and its memory; torchrun's to say
    ops: str = "auto"  # implementation of the kernels: auto, native (C++), triton, torch
    attention: str = "auto"  # self attention; auto: triton on a GPU, sdpa on the CPU
    # captured denoising; auto: on a GPU; rehearsal: its plan and buffers, uncaptured
    graphs: str = "auto"
    # the DiT's products; fp8: 8-bit weights and activations, scaled per row or tensor
    linears: str = "dense"
    weights: str = ""  # "": those of the package; "random": none, for timing; else a folder
    verify: bool = True  # hash weight files against their folder's manifest before they are read
    prompts: int = 1  # that ride one batch; 0: as many as the free memory holds
    memory_share: float = 0.9  # of the device's free memory that may be planned for
    decoder_rows: int = 0  # candidates decoded at once; 0: as many as share a forward
    decoder_tile: int = 0  # side of what is decoded at once, in latent positions; 0: all of it
    offload_text: bool = False  # the text encoder waits in host memory between prompts
    overlap: bool = True  # rewards on streams of their own, on a GPU
    speculate: bool = False  # begin the likely next chunk before the rewards have arrived

    def __post_init__(self) -> None:
        one_of("run.schedule", self.schedule, SCHEDULES)
        one_of("run.dtype", self.dtype, ("float64", "float32", "bfloat16"))
        one_of("run.ops", self.ops, OPS)
        one_of("run.attention", self.attention, ATTENTIONS)
        one_of("run.graphs", self.graphs, GRAPHS)
        one_of("run.linears", self.linears, LINEARS)
        _at_least("run.ranks", self.ranks, 1)
        for name in ("batch_rows", "prompts", "decoder_rows", "decoder_tile"):
            _at_least(f"run.{name}", getattr(self, name), 0)
        if not 0.0 < self.memory_share <= 1.0:
            raise ValueError(f"run.memory_share: want a share in (0, 1], got {self.memory_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run of the line. A room receives its own part, never the whole."""

    seconds: float = 5.0
    fidelity: str = "paper"
    search: SearchSettings = field(default_factory=SearchSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        one_of("fidelity", self.fidelity, FIDELITIES)
        if not 0 < self.seconds <= LONGEST_SECONDS or math.isnan(self.seconds):
            raise ValueError(
                f"seconds: want a length in (0, {LONGEST_SECONDS:.0f}], got {self.seconds}"
            )
        if self.run.speculate:
            self._check_speculation()

    def _check_speculation(self) -> None:
        if self.run.schedule == "released" or self.run.prompts != 1:
            raise ValueError(
                "run.speculate: wants run.schedule='survivors' and run.prompts=1, "
                f"got {self.run.schedule!r} and {self.run.prompts}"
            )

    @property
    def released(self) -> bool:
        return self.fidelity == "released"

    def with_changes(self, changes: Mapping[str, Any]) -> Settings:
        """A copy with dotted names replaced: ``with_changes({"search.histories": 4, "seconds": 10})``.

        Raises ValueError for a name that does not exist, with a guess, or a value of the wrong type.
        """
        parts: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {}
        known = setting_names()
        for name, value in changes.items():
            if name not in known:
                raise ValueError(_unknown(name, list(known)))
            value = _typed(name, value, known[name])
            room, _, key = name.rpartition(".")
            (parts.setdefault(room, {}) if room else top)[key] = value
        rooms = {
            room: dataclasses.replace(getattr(self, room), **values)
            for room, values in parts.items()
        }
        return dataclasses.replace(self, **rooms, **top)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def setting_names() -> dict[str, type]:
    """Every dotted name and the type of its value."""
    names: dict[str, type] = {"seconds": float, "fidelity": str}
    rooms = {
        "search": SearchSettings,
        "noise": NoiseSettings,
        "memory": MemorySettings,
        "reward": RewardSettings,
        "run": RunSettings,
    }
    types = {"int": int, "float": float, "str": str, "bool": bool}
    for room, cls in rooms.items():
        names |= {f"{room}.{f.name}": types[str(f.type)] for f in dataclasses.fields(cls)}
    return names


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(
                f"{name}: want float, got an int of {value.bit_length()} bits"
            ) from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name}: want {kind.__name__}, got {type(value).__name__} {shown(value)}")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(f"{name}: want a value below 2^63, got {shown(value)}")
    return value


def _unknown(name: str, known: list[str]) -> str:
    if len(name) > SHOWN:
        return f"{shown(name)}: no such setting"
    guess = difflib.get_close_matches(name, known, n=1)
    leaf = difflib.get_close_matches(
        name.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1
    )
    if not guess and leaf:
        guess = [k for k in known if k.rpartition(".")[2] == leaf[0]]
    return f"{name}: no such setting" + (f"; did you mean {guess[0]}?" if guess else "")


def weights_home() -> Path:
    """Where weights are kept if nobody says: ``$STREAM_T1_WEIGHTS``, else ``~/.cache/stream-t1-runtime``."""
    return Path(os.environ.get("STREAM_T1_WEIGHTS") or "~/.cache/stream-t1-runtime").expanduser()


def torchrun() -> tuple[int, int, int]:
    """This process's rank, how many there are, and its rank on this machine; (0, 1, 0) by itself."""
    rank, size, local = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return int(rank or 0), int(size or 1), int(local or 0)


def api_key() -> str | None:
    """The key that a server asks its clients for: ``$STREAM_T1_API_KEY``; None without one."""
    return os.environ.get("STREAM_T1_API_KEY") or None
