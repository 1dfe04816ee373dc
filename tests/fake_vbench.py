"""A stand-in for VBench: its options, how it finds videos by their names, and the files it writes; scores are made up of the bytes.

``vbench evaluate`` and ``python -m vbench2_beta_long.eval_long`` run this file, with nothing but the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import stat
import sys
from pathlib import Path

SAMPLES = 5
MODES = ("custom_input", "vbench_standard", "vbench_category")
LONG_MODES = ("long_custom_input", "long_vbench_standard")
CLIPS = 3  # that long mode cuts a video into


def install(folder: Path, *, long: bool = True) -> tuple[Path, Path]:
    """Put a ``vbench`` command and a module ``vbench2_beta_long`` into ``folder``: what belongs on PATH and on PYTHONPATH."""
    programs, modules = folder / "bin", folder / "modules"
    programs.mkdir(parents=True)
    modules.mkdir()
    run = f"import runpy, sys\nsys.exit(runpy.run_path({__file__!r})['main'](sys.argv[1:], long={{}}))\n"
    command = programs / "vbench"
    command.write_text(f"#!{sys.executable} -S\n{run.format(False)}")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    if long:
        package = modules / "vbench2_beta_long"
        package.mkdir()
        (modules / "vbench").mkdir()
        (modules / "vbench" / "__init__.py").touch()
        (modules / "vbench" / "VBench_full_info.json").write_text("[]")
        (package / "__init__.py").touch()
        (package / "eval_long.py").write_text(run.format(True))
    return programs, modules


def score(dimension: str, video: Path, clip: int = 0) -> float:
    """In (0.5, 1): another one for every video, clip of it and dimension."""
    digest = hashlib.sha256(f"{dimension}/{clip}/".encode() + video.read_bytes()).digest()
    return 0.5 + int.from_bytes(digest[:4], "big") / 2**33


def main(words: list[str], long: bool) -> int:
    if not long:
        assert words.pop(0) == "evaluate"
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--videos_path", type=Path, required=True)
    parser.add_argument("--dimension", nargs="+", required=True)
    parser.add_argument("--full_json_dir", type=Path)
    default = LONG_MODES[1] if long else MODES[1]
    parser.add_argument("--mode", choices=LONG_MODES if long else MODES, default=default)
    args = parser.parse_args(words)
    if long:  # the real one reads its list in every mode, and has none where it looks by itself
        assert args.full_json_dir is not None and args.full_json_dir.is_file()
    with open("calls.log", "a") as calls:
        calls.write(f"{args.mode} {' '.join(args.dimension)}\n")
    table = {}
    for dimension in args.dimension:
        videos = _videos(args, dimension)
        if not videos:
            raise ZeroDivisionError("division by zero")  # as the real one ends
        table[dimension] = _result(dimension, videos, long)
    results = Path("evaluation_results")
    results.mkdir(exist_ok=True)
    (results / "results_2026-11-23_eval_results.json").write_text(json.dumps(table))
    return 0


def _videos(args: argparse.Namespace, dimension: str) -> list[Path]:
    found = sorted(path for path in args.videos_path.iterdir() if path.is_file())
    assert all(path.suffix == ".mp4" and path.stat().st_size for path in found)
    if "custom_input" in args.mode:
        return found
    names = {path.name: path for path in found}
    wanted = [
        f"{entry['prompt_en']}-{sample}.mp4"
        for entry in json.loads(args.full_json_dir.read_text())
        if dimension in entry["dimension"]
        for sample in range(SAMPLES)
    ]
    for name in wanted:
        if name not in names:
            print(f"WARNING!!! This required video is not found! Missing benchmark videos: {name}")
    return [names[name] for name in wanted if name in names]


def _result(dimension: str, videos: list[Path], long: bool) -> list:
    entries = []
    for video in videos:
        for clip in range(CLIPS if long else 1):
            name = f"{video.stem}_{clip:03d}.mp4"
            path = video.parent / "split_clip" / video.stem / name if long else video
            entries.append((path, score(dimension, video, clip)))
    whole = sum(value for _, value in entries) / len(entries)
    factor = 100 if dimension == "imaging_quality" else 1  # its videos are in percent
    listed = [{"video_path": str(path), "video_results": factor * v} for path, v in entries]
    return [whole, listed]
