"""Beginning the next chunk early changes when work is done, never what comes out."""

import pytest
import torch

from runtime.engine import Engine
from runtime.settings import Settings
from runtime.types import Route
from tests.tiny import ByRow, tiny_dit, tiny_engine, tiny_vae

ROUTES = {
    "memory.quality_threshold": -0.3,
    "memory.transition_threshold": 0.0,
    "memory.max_sink_frames": 9,
}
QUIET = {"image": ByRow(lambda chunk, rows: [0.0] * rows)}  # every guess is right
LOUD = {"image": ByRow(lambda chunk, rows: [9.0 * row for row in range(rows)])}


def engine_of(speculate: bool, changes: dict | None = None, chunks: int = 12, **parts) -> Engine:
    named = {**ROUTES, "run.speculate": speculate, **(changes or {})}
    return tiny_engine(chunks, named, dit=tiny_dit(dtype=torch.float32), **parts)


def made(engine: Engine) -> tuple[list, torch.Tensor, torch.Tensor]:
    records: list = []
    events = list(engine.stream("x", watch=records.append))
    decisions = [
        (r.kept, [(c.branch.seed, c.route, c.scores) for c in r.candidates], r.survivors[0].memory)
        for r in records
    ]
    engine.pool.check([])
    assert not engine.pool.shadows
    return decisions, *(
        torch.cat([getattr(event, what) for event in events]) for what in ("latents", "frames")
    )


def plain(decisions: list) -> list:
    """Without block ids, which depend on what else was held."""
    return [
        (kept, rows, [(s.start_frame, s.route) for s in memory.slots])
        for kept, rows, memory in decisions
    ]


@pytest.mark.parametrize("parts", [{}, QUIET, LOUD], ids=["some right", "all right", "wrong"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fidelity": "released"},
        {"memory.rope": "relative"},
        {"search.histories": 3},
        {"search.policy": "halving", "search.draft_passes": 1},
        {"search.horizon_chunks": 2},
        {"memory.ema_storage": "fp32_shadow"},
        {"run.batch_rows": 1},
    ],
    ids=str,
)
def test_a_video_does_not_depend_on_guesses(changes, parts):
    want = made(engine_of(False, changes, **parts))
    engine = engine_of(True, changes, **parts)
    got = made(engine)
    assert plain(got[0]) == plain(want[0])
    assert (got[1] - want[1]).abs().max() < 1e-4 and (got[2] - want[2]).abs().max() < 1e-4
    assert engine.speculation.tried == 11
    assert len({route for _, rows, _ in got[0] for _, route, _ in rows}) > 1


def test_guesses_are_counted():
    always, never = engine_of(True, **QUIET), engine_of(True, **LOUD)
    for engine in (always, never):
        made(engine)
    assert always.speculation.right == always.speculation.tried == 11
    # At chunk 0 the image reward has no weight, and at chunk 1 little.
    assert never.speculation.right <= 2


def test_a_right_guess_spares_the_next_chunk_its_passes():
    """The same forwards in all, one chunk earlier each; a wrong one costs its passes again."""
    counts = []
    for parts in (QUIET, LOUD):
        for speculate in (False, True):
            engine, rows = engine_of(speculate, **parts), []
            forward = engine.denoiser.dit.forward
            engine.denoiser.dit.forward = lambda x, *a, f=forward, r=rows: (
                r.append(len(x)) or f(x, *a)
            )
            made(engine)
            counts.append(len(rows))
    assert counts[0] == counts[1] == counts[2] < counts[3]


def test_shadows_survive_a_wrong_guess():
    """Bfloat16 with float32 shadows: a merge on trial must not take the shadow that the next merge needs."""
    changes = {"memory.transition_threshold": 9.0, "search.horizon_chunks": 4}
    videos = []
    for speculate in (False, True):
        engine = tiny_engine(
            14,
            {**ROUTES, **changes, "run.speculate": speculate},
            dit=tiny_dit(dtype=torch.bfloat16),
            **LOUD,
        )
        decisions, latents, _ = made(engine)
        videos.append(latents)
        assert Route.EMA in {route for _, rows, _ in decisions for _, route, _ in rows}
    assert torch.equal(*videos)


def test_a_real_decoder_goes_on_from_the_real_history():
    one, other = (
        made(engine_of(on, chunks=5, decoder=tiny_vae(), **QUIET)) for on in (False, True)
    )
    assert torch.equal(one[2], other[2])


def test_closing_and_failing_early_leave_nothing_held():
    engine = engine_of(True)
    stream = engine.stream("x")
    next(stream)
    stream.close()
    engine.pool.check([])

    def watch(record) -> None:
        if record.index == 7:
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        list(engine.stream("x", watch=watch))
    engine.pool.check([])


@pytest.mark.parametrize("changes", [{"run.schedule": "released"}, {"run.prompts": 2}], ids=str)
def test_what_it_does_not_go_with_is_refused(changes):
    with pytest.raises(ValueError, match="run.speculate: wants run.schedule='survivors' and run.p"):
        Settings().with_changes({"run.speculate": True, **changes})
