"""Give rows the columns that VBench measures: ask it for what it has not scored yet, read its files, say what is missing.

Results lie in ``vbench/5s/stream-t1/<dimension>/`` of the run's folder, or where ``--vbench-results`` says: in folders called the
same way, or, for one method of one length, right there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from runtime.bench.quality import naming, vbench_tool
from runtime.bench.quality.prompt_files import PromptList
from runtime.bench.quality.prompts import FIRST_SEED, SEED_STEP
from runtime.bench.quality.row import Cost, Key, Row
from runtime.bench.quality.vbench_results import COLUMN_OF, DIMENSIONS, Results, read_results
from runtime.bench.quality.vbench_tool import Folder

RESULTS = "vbench"  # folder of the run's folder
Names = Mapping[str, Row]  # a video's file name -> its row


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a run's videos are called, and who scores them."""

    folder: Path  # of the run
    listed: PromptList
    given: Path | None  # results that are there already; VBench is not called then
    python: str  # of the environment that VBench is installed in
    always_long: bool = False  # its long mode for short videos, too
    look_only: bool = False  # VBench is not called at all

    def place(self, seconds: float, method: str) -> Folder:
        """Where the videos of a method lie, and where VBench's results go."""
        videos = naming.video_folder(self.folder, seconds, method)
        results = self.folder / RESULTS / videos.parent.name / videos.name
        long = self.always_long or seconds > vbench_tool.LONG_FROM_SECONDS
        return Folder(videos.absolute(), results.absolute(), long, self.listed.full_info)

    def name(self, key: Key, text: str) -> str:
        """What the video of ``key`` is called: its sample's number is that of its seed."""
        sample = (key.seed - FIRST_SEED) // SEED_STEP
        return naming.file_name(text, sample, exact=self.listed.standard)

    def complete(self, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
        """The rows with their columns, and in sentences what they lack and how to come by it."""
        groups: dict[tuple[float, str], dict[str, Row]] = {}
        for row in rows:
            name = self.name(row.key, row.text)
            groups.setdefault((row.key.seconds, row.key.method), {})[name] = row
        done: dict[Key, Row] = {}
        notes: list[str] = []
        for (seconds, method), names in groups.items():
            place = self.place(seconds, self._maker(method, seconds, groups))
            told = self._ask(place, names)
            found = read_results(self._results(place, alone=len(groups) == 1), names)
            told += [*found.notes, *self._lacking(names, found)]
            told += self._advice(place, names, found)
            notes += [f"{method}, {seconds:g} s: {note}" for note in told]
            for name, row in names.items():
                scores = {**row.scores, **found.videos.get(name, {})}
                done[row.key] = replace(row, scores=scores)
        self._write_names(groups)
        return [done[row.key] for row in rows], list(dict.fromkeys(notes))

    def _maker(self, method: str, seconds: float, groups: Mapping[tuple[float, str], Names]) -> str:
        """The method in whose folder the videos lie: one of two names of the same settings, which share their videos."""
        if self.place(seconds, method).videos.is_dir():
            return method
        costs = _costs(groups[seconds, method])
        for (length, other), names in groups.items():
            there = self.place(length, other).videos.is_dir()
            if length == seconds and there and _costs(names) == costs:
                return other
        return method

    def _ask(self, place: Folder, names: Names) -> list[str]:
        """Have VBench score the videos, where it can be called; what went wrong."""
        if self.given is not None or self.look_only:
            return []
        gone = sum(not (place.videos / name).is_file() for name in names)
        if gone:
            return [
                f"{gone} of {len(names)} videos are not in {place.videos}; VBench was not asked"
            ]
        if vbench_tool.missing(place.long, self.python):
            return []
        told = [vbench_tool.score(place, name, self.python) for name in self._asked(names)]
        return [note for note in told if note]

    def _asked(self, names: Names) -> list[str]:
        """The dimensions that any of these prompts is there to measure."""
        prompts = {row.key.prompt for row in names.values()}
        return [d for d in DIMENSIONS if any(self.listed.asks(prompt, d) for prompt in prompts)]

    def _results(self, place: Folder, *, alone: bool) -> Path:
        """The folder to read; ValueError where the one that the user named holds nothing of this method."""
        if self.given is None:
            return place.results
        length, method = place.results.parent.name, place.results.name
        for folder in (self.given / length / method, self.given / method):
            if folder.is_dir():
                return folder
        if alone and self.given.is_dir():
            return self.given
        raise ValueError(
            f"--vbench-results: want a folder {length}/{method} or {method} with VBench's results, got {self.given}"
        )

    def _lacking(self, names: Names, found: Results) -> list[str]:
        """Columns that only some videos have, and columns that no prompt is there to measure."""
        told = []
        for dimension, column in COLUMN_OF.items():
            wanted = [n for n, row in names.items() if self.listed.asks(row.key.prompt, dimension)]
            without = [n for n in wanted if column not in found.videos.get(n, {})]
            if not wanted:
                told.append(
                    f"{column} is not scored: none of these prompts is VBench's for {dimension}"
                )
            elif column in found.folder and without:
                told.append(
                    f"{column}: {len(without)} of {len(wanted)} videos have no score in VBench's results, "
                    f"the first of them {without[0]!r}"
                )
        return told

    def _advice(self, place: Folder, names: Names, found: Results) -> list[str]:
        """What is not scored at all, why, and the commands that would."""
        left = [d for d in self._asked(names) if COLUMN_OF[d] not in found.folder]
        if not left:
            return []
        columns = ", ".join(COLUMN_OF[dimension] for dimension in left)
        why = vbench_tool.missing(place.long, self.python)
        reason = (
            f": {why}. Install it ({vbench_tool.INSTALL[place.long]}), or run" if why else ". Run"
        )
        are = "is" if len(left) == 1 else "are"
        commands = vbench_tool.by_hand(place, left, self.python)
        return [
            f"{columns} {are} not scored{reason} VBench on the videos by hand:\n"
            f"```\n{commands}\n```\n"
            "and then this command again, with --tables-only; --vbench-results DIR reads results that lie elsewhere"
        ]

    def _write_names(self, groups: Mapping[tuple[float, str], Names]) -> None:
        """Beside the videos of each length: which prompt each file is of."""
        prompts: dict[Path, dict[str, str]] = {}
        for (seconds, method), names in groups.items():
            videos = self.place(seconds, method).videos.parent
            prompts.setdefault(videos, {}).update({n: row.text for n, row in names.items()})
        for videos, table in prompts.items():
            naming.write_names(videos, table)


def _costs(names: Names) -> dict[str, Cost]:
    """What each video took, to the last digit of its seconds: the same videos and no others have the same."""
    return {name: row.cost for name, row in names.items()}
