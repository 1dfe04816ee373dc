"""What a command line asks for: settings, prompts and files, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import runtime
from runtime.output import OutputFile
from runtime.presets import PRESETS, preset
from runtime.settings import MAX_PROMPTS, PROMPT_CHARACTERS, Settings, setting_names

PROMPTS_FILE_BYTES = 4 * 2**20
MAX_SCALE = 16
SUFFIXES = ("", ".mp4", ".m4v")
DASH = "a prompt that begins with '-' goes last, after '--'"

FLAGS = {  # option -> the setting it changes, what its value is called, what it means
    "generator": (
        "run.generator",
        "NAME",
        "sprites, longlive, self-forcing, causvid, wan-1.3b or a converted folder; a preset's name is also its preset",
    ),
    "seconds": ("seconds", "S", "length of the video (default: 5)"),
    "policy": (
        "search.policy",
        "NAME",
        "single, best-of-n, beam, stream-t1 or halving (default: stream-t1)",
    ),
    "histories": ("search.histories", "K", "histories kept after each chunk (default: 2)"),
    "expansions": ("search.expansions", "M", "candidates drawn per history (default: 2)"),
    "seed": ("search.seed", "N", "of every random number (default: 42)"),
    "fidelity": ("fidelity", "NAME", "paper, or released for what its code does (default: paper)"),
    "schedule": ("run.schedule", "NAME", "survivors, or released for its order of work"),
    "attention": ("run.attention", "NAME", "auto, sdpa, triton, varlen, fa2, fa3, fa4, reference"),
    "reward_backend": (
        "reward.backend",
        "NAME",
        "auto, torch, compiled, captured, onnxruntime, tensorrt or tensorrt-rtx",
    ),
    "device": ("run.device", "NAME", "cpu, cuda or cuda:N (default: cpu)"),
    "batch": (
        "run.prompts",
        "N",
        "prompts that share every batch; 0: all that memory holds (default: 1)",
    ),
    "reward_stride": (
        "reward.stride",
        "N",
        "the image reward sees every N-th frame of a chunk, its last one among them (default: 1)",
    ),
    "rope": ("memory.rope", "NAME", "absolute, or relative for videos beyond a minute"),
}
SWITCHES = {  # option that turns its setting off
    "no_propagation": "search.propagation",
    "no_sinking": "memory.sinking",
    "no_pruning": "search.pruning",
}
BOOLEANS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


@dataclass(frozen=True, slots=True)
class Job:
    """What one video shows, and where it and its trace go."""

    scenes: tuple[tuple[int, str], ...]  # (chunk, prompt), the first at 0
    output: Path
    trace: Path | None


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and leaves the exit to ``main``."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m runtime",
        description="Turn a prompt into a video by searching over the chunks of a streaming model.",
        epilog=f"{DASH[0].upper()}{DASH[1:]}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="what the video shows, in quotes")
    add("-o", "--output", default="out.mp4", metavar="MP4", help="the video (default: %(default)s)")
    add("--prompts-file", metavar="FILE", help="UTF-8, one prompt a line: out_000.mp4, ...")
    text = "another prompt from chunk CHUNK on; may be repeated, in order"
    add("--then", action="append", default=[], metavar="CHUNK=PROMPT", help=text)
    for option, (_, metavar, text) in FLAGS.items():
        add(f"--{option.replace('_', '-')}", metavar=metavar, help=text)
    for option, name in SWITCHES.items():
        add(f"--{option.replace('_', '-')}", action="store_true", help=f"turn {name} off")
    known = ", ".join(PRESETS)
    add("--preset", metavar="NAME", help=f"{known} (default: the generator's, else sprites)")
    text = "any setting of runtime/settings.py, as in search.horizon_chunks=20; wins over flags"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--trace", metavar="JSON", help="write every candidate, its scores and its picture")
    text = "repeat every pixel N times each way (default: 1, more for videos under 256 pixels)"
    add("--scale", type=int, default=0, metavar="N", help=text)
    text = "under torchrun: give the others up after so long without a word (default: %(default)g)"
    add("--rank-timeout", type=float, default=600.0, metavar="SECONDS", help=text)
    text = "keep this pace: K, M and reward stride of each chunk are what its time allows, up to those asked for"
    add("--budget-fps", type=float, metavar="N", help=text)
    add("--quiet", action="store_true", help="no progress and no report")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--version", action="version", version=f"stream-t1-runtime {runtime.__version__}")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; scale 0 means an easy size. Raises ValueError, with a guess for an option that does not exist."""
    parser = build_parser()
    options, extra = parser.parse_known_args(list(arguments))
    if not 0 <= options.scale <= MAX_SCALE:
        raise ValueError(f"--scale: want 1 to {MAX_SCALE}, got {options.scale}")
    if not options.rank_timeout > 0:
        raise ValueError(f"--rank-timeout: want more than 0, got {options.rank_timeout}")
    if options.budget_fps is not None and not 0 < options.budget_fps < float("inf"):
        raise ValueError(f"--budget-fps: want a pace above 0, got {options.budget_fps}")
    if not extra:
        return options
    if options.prompt is not None and not extra[0].startswith("-"):
        raise ValueError(f"unexpected {extra[0]!r}; put the whole prompt in quotes")
    known = re.findall(r"--[a-z-]+", parser.format_help())
    name = extra[0].partition("=")[0]
    guess = difflib.get_close_matches(name, known, n=1) if name.startswith("--") else []
    hint = f"did you mean {guess[0]}?" if guess else DASH
    raise ValueError(f"{extra[0]}: no such option; {hint}")


def build_settings(options: argparse.Namespace) -> Settings:
    """Preset, then flags, then ``--set``. Raises ValueError that names the setting."""
    changes: dict[str, Any] = {}
    for option, (name, _, _) in FLAGS.items():
        if (text := getattr(options, option)) is not None:
            changes[name] = typed(name, text)
    changes |= {name: False for option, name in SWITCHES.items() if getattr(options, option)}
    for pair in options.set:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: want NAME=VALUE, got {pair!r}")
        changes[name.strip()] = typed(name.strip(), text.strip())
    generator = options.generator if options.generator in PRESETS else "sprites"
    return preset(options.preset or generator).with_changes(changes)


def typed(name: str, text: str) -> Any:
    """``text`` as a value of the setting ``name``; as it is when there is no such setting."""
    kind = setting_names().get(name, str)
    try:
        return BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name}: want {wanted}, got {text[:40]!r}") from None


def build_jobs(options: argparse.Namespace) -> list[Job]:
    """The prompts and their files. Raises ValueError for a prompt that no model could take."""
    output, trace = Path(options.output), Path(options.trace) if options.trace else None
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--output: want a name that ends in .mp4, got {output}")
    if trace and output.resolve() == trace.resolve():
        raise ValueError(f"--trace: {trace} is where the video goes; give it another name")
    if options.prompts_file is None:
        if options.prompt is None:
            raise ValueError(f"no prompt: say in quotes what the video shows ({DASH})")
        first = 0, checked(options.prompt, "prompt")
        return [Job((first, *map(parse_scene, options.then)), output, trace)]
    if options.prompt is not None:
        raise ValueError("want a prompt or --prompts-file, not both")
    if options.then:
        raise ValueError("--then: goes with a prompt, not with --prompts-file")
    prompts = read_prompts(Path(options.prompts_file))
    return [
        Job(((0, prompt),), numbered(output, index), numbered(trace, index) if trace else None)
        for index, prompt in enumerate(prompts)
    ]


def parse_scene(text: str) -> tuple[int, str]:
    """(chunk, prompt) of CHUNK=PROMPT. Raises ValueError for anything else; the engine checks the order."""
    chunk, equals, prompt = text.partition("=")
    if not equals or not chunk.strip().isdecimal() or len(chunk) > 9:
        raise ValueError(f"--then: want CHUNK=PROMPT, as in 8='a blue star', got {text[:40]!r}")
    return int(chunk), checked(prompt.strip(), "--then")


def check_files(jobs: Sequence[Job]) -> None:
    """Raises ValueError unless every video and trace can be written. Leaves no file behind and changes none."""
    for job in jobs:
        OutputFile(job.output, "--output").close()
        if job.trace:
            OutputFile(job.trace, "--trace").close()


def numbered(path: Path, index: int) -> Path:
    return path.with_name(f"{path.stem}_{index:03d}{path.suffix}")


def checked(prompt: str, name: str) -> str:
    """``prompt`` as it came. Raises ValueError when it is empty, too long or not text."""
    if not prompt.strip():
        raise ValueError(f"{name}: is empty; say what the video shows")
    if len(prompt) > PROMPT_CHARACTERS:
        raise ValueError(f"{name}: want at most {PROMPT_CHARACTERS} characters, got {len(prompt)}")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError(f"{name}: is not valid UTF-8")
    return prompt


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not blank. Raises ValueError that names file and line."""
    try:
        with path.open("rb") as file:
            content = file.read(PROMPTS_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"--prompts-file: cannot read {path}: {error.strerror}") from None
    if len(content) > PROMPTS_FILE_BYTES:
        raise ValueError(f"--prompts-file: want at most {PROMPTS_FILE_BYTES // 2**20} MiB: {path}")
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"--prompts-file: {path}: line {line} is not valid UTF-8") from None
    prompts = [
        checked(text.strip(), f"--prompts-file: {path}: line {number}")
        for number, text in enumerate(lines, 1)
        if text.strip()
    ]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(
            f"--prompts-file: want 1 to {MAX_PROMPTS} prompts, got {len(prompts)}: {path}"
        )
    return prompts
