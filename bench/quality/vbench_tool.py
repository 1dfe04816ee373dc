"""Call the public VBench, if it is installed here or anywhere else on this machine, one dimension a command.

Videos up to five seconds go to ``vbench evaluate``, longer ones to ``vbench2_beta_long``. VBench pins old versions of torch and
transformers, so it usually lives in an environment of its own: ``--vbench-python`` names that environment's Python. Every command
runs in a folder of its own, into which VBench writes; a dimension whose result is there already, for the very same videos, is not
asked again. Nothing is downloaded by us; VBench itself fetches its networks when it first needs them.

Source   VBench, README.md "Usage", vbench2_beta_long/README.md "Usage"; the options as its issue 116 shows them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.bench.quality.naming import SUFFIX
from runtime.bench.quality.vbench_results import PATTERN

LONG_FROM_SECONDS = 5.0  # longer videos than these are long mode's
LONG_MODULE = "vbench2_beta_long"
LOG = "vbench.log"
STAMP = "videos.sha256"
PROBE = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({LONG_MODULE!r}) is None)"
# Long mode reads VBench's list in every mode, and looks for it where the package on PyPI has none.
FIND_LIST = (
    "import importlib.util, pathlib; found = importlib.util.find_spec('vbench'); "
    "found and print(pathlib.Path(found.origin).with_name('VBench_full_info.json'))"
)
INSTALL = {  # long mode or not -> what to do where it is missing
    False: "pip install vbench",
    True: "pip install vbench 'scenedetect[opencv]' and put VBench's checkout on PYTHONPATH",
}


@dataclass(frozen=True, slots=True)
class Folder:
    """Videos of one method and length, and how VBench is to look at them."""

    videos: Path
    results: Path  # a folder; each dimension gets one in it
    long: bool
    full_info: (
        Path | None
    )  # VBench's list of prompts: score by its standard suite; None: as anybody's videos

    @property
    def mode(self) -> str:
        mode = "vbench_standard" if self.full_info else "custom_input"
        return f"long_{mode}" if self.long else mode


def command(folder: Folder, dimension: str, python: str) -> list[str]:
    """What scores one dimension of a folder; run it anywhere, and ``evaluation_results/`` appears there."""
    if folder.long:
        words = [python, "-m", f"{LONG_MODULE}.eval_long"]
    else:
        words = [script(python) or "vbench", "evaluate"]
    words += ["--videos_path", str(folder.videos), "--dimension", dimension, "--mode", folder.mode]
    full_info = folder.full_info or (packaged_list(python) if folder.long else None)
    if full_info:
        words += ["--full_json_dir", str(full_info)]
    return words


def packaged_list(python: str) -> Path | None:
    """The list of prompts that lies in VBench's package; None where there is no such file."""
    try:
        asked = subprocess.run([python, "-c", FIND_LIST], capture_output=True, check=False)
    except OSError:
        return None
    path = Path(asked.stdout.decode(errors="replace").strip() or "/none")
    return path if path.is_file() else None


def by_hand(folder: Folder, dimensions: Sequence[str], python: str) -> str:
    """A line for a shell that runs each command in the folder in which its result is looked for."""
    results = shlex.quote(str(folder.results))
    words = shlex.join(command(folder, "$d", python)).replace("'$d'", "$d")
    if folder.long and "--full_json_dir" not in words:  # found once VBench is there
        words += f' --full_json_dir "$({shlex.quote(python)} -c {shlex.quote(FIND_LIST)})"'
    return f"for d in {' '.join(dimensions)}; do mkdir -p {results}/$d && (cd {results}/$d && {words}); done"


def script(python: str) -> str | None:
    """The ``vbench`` command: beside the Python that was named, else on the path."""
    beside = Path(python).parent / "vbench"
    if beside.is_file() and os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which("vbench")


def missing(long: bool, python: str) -> str:
    """Why VBench cannot be called, in words that end a sentence; "" where it can."""
    if not long:
        return "" if script(python) else "there is no `vbench` command"
    try:
        asked = subprocess.run([python, "-c", PROBE], capture_output=True, check=False)
    except OSError as error:
        return f"{python} cannot be run ({error.strerror})"
    return "" if asked.returncode == 0 else f"{python} has no module {LONG_MODULE}"


def score(folder: Folder, dimension: str, python: str = sys.executable) -> str:
    """Let VBench score one dimension, unless it has. Says in a sentence what went wrong, "" for nothing."""
    target = folder.results / dimension
    stamp, digest = target / STAMP, _digest(folder)
    if stamp.is_file() and stamp.read_text() == digest and any(target.rglob(PATTERN)):
        return ""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    log = target / LOG
    with log.open("wb") as file:
        try:
            ended = subprocess.run(
                command(folder, dimension, python),
                cwd=target,
                stdout=file,
                stderr=file,
                check=False,
            )
        except OSError as error:
            return f"{dimension}: VBench cannot be run: {error.strerror}"
    if ended.returncode:
        return f"{dimension}: VBench ended with {ended.returncode}: {_last_line(log)} (all of it in {log})"
    if not any(target.rglob(PATTERN)):
        return f"{dimension}: VBench wrote no {PATTERN}; what it said is in {log}"
    stamp.write_text(digest)
    return ""


def _digest(folder: Folder) -> str:
    """Of which videos there are, and how they are looked at."""
    parts = [folder.mode, str(folder.full_info)]
    for path in sorted(folder.videos.glob(f"*{SUFFIX}")):
        facts = path.stat()
        parts.append(f"{path.name}\t{facts.st_size}\t{facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"
