"""The end of a turn: who survives, what they remember and what can be shown. Values in, values out, line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from runtime.grow import grow, grow_candidates
from runtime.judging import Verdicts
from runtime.lines import Ahead, Choice, Drawn, Line, Round, Turn, Video
from runtime.search import within_horizon
from runtime.types import ChunkEvent, Memory, Shown, Trajectory


def chosen(lines: Sequence[Line], drawn: Drawn, verdicts: Sequence[Verdicts]) -> list[Choice]:
    """Of every line the candidates that its policy keeps."""
    return [
        _choice(line, drawn, span, verdict)
        for line, span, verdict in zip(lines, drawn.spans, verdicts, strict=True)
    ]


def _choice(line: Line, drawn: Drawn, span: slice, verdicts: Verdicts) -> Choice:
    if isinstance(verdicts, RuntimeError):
        return Choice(error=verdicts)
    candidates = grow_candidates(
        drawn.branches[span], drawn.noise[span], drawn.latents[span], verdicts
    )
    try:
        return Choice(candidates, line.video.recipe.policy.select(candidates))
    except RuntimeError as error:  # no candidate can be chosen
        return Choice(candidates, error=error)


def settled(
    lines: Sequence[Line],
    spans: Sequence[slice],
    choices: Sequence[Choice],
    memories: Mapping[int, Memory],
    shown: Sequence[Shown],
) -> list[Turn]:
    """What became of every line. ``memories`` are by rows of the batch, ``shown`` in the order of the kept rows."""
    rest = iter(shown)
    return [
        _turn(line, span, choice, memories, [next(rest) for _ in choice.kept])
        for line, span, choice in zip(lines, spans, choices, strict=True)
    ]


def _turn(
    line: Line,
    span: slice,
    choice: Choice,
    memories: Mapping[int, Memory],
    shown: Sequence[Shown],
) -> Turn:
    """The histories that end with the kept candidates, and what they all share."""
    video, index = line.video, line.index
    if choice.error is not None:
        return Turn(video, index, span, choice.candidates, error=choice.error)
    window = video.recipe.window_chunks
    grown = tuple(
        grow(choice.candidates[row], index, memories[span.start + row], one, window)
        for row, one in zip(choice.kept, shown, strict=True)
    )
    alive = _within_horizon(video, grown)
    rest, events = video.emitter.settled(alive)
    kept = tuple(
        row for row, one in zip(choice.kept, grown, strict=True) if any(one is a for a in alive)
    )
    return Turn(video, index, span, choice.candidates, kept, alive, rest, tuple(events))


def _within_horizon(video: Video, grown: tuple[Trajectory, ...]) -> tuple[Trajectory, ...]:
    """Without the histories that disagree with the best one about something too old to reconsider."""
    if not video.recipe.policy.prunes:
        return grown
    alive = within_horizon(grown, video.recipe.settings.search.horizon_chunks)
    for history in grown:
        if not any(history is other for other in alive):
            video.lease.drop(history.memory.slots)
    return alive


def round_of(turns: Sequence[Turn], ahead: Ahead | None, spent: Mapping[str, float]) -> Round:
    """The lines after their turns; ``ahead`` is what the only one of them has begun, ``spent`` the time by stage."""
    on = [turn for turn in turns if turn.error is None]
    return Round(
        tuple(Line(turn.video, turn.rest, turn.index + 1, ahead) for turn in on),
        tuple(
            pair
            for turn in on
            for pair in numbered_events(
                turn.video, [replace(event, timings=spent) for event in turn.settled]
            )
        ),
        tuple((turn.video, turn.error) for turn in turns if turn.error is not None),
        spent,
    )


def numbered_events(video: Video, events: Sequence[ChunkEvent]) -> list[tuple[int, ChunkEvent]]:
    """Events with the number of their video."""
    return [(video.number, event) for event in events]
