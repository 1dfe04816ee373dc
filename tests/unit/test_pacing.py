"""Budget mode on a running engine: recipes follow the pace, and nothing else about the video changes."""

import torch

from runtime import AsyncEngine, Request, resuming
from runtime.budget import Choice
from runtime.costs import Costs
from runtime.pacing import Pacing
from runtime.scenes import scenes_of
from tests.tiny import tiny_engine

CHUNKS = 10


class Told:
    """A budget that chooses from a list."""

    def __init__(self, choices):
        self.choices, self.seen = list(choices), []

    def choose(self, index, histories_now):
        return Choice(*self.choices[index], 1.0, True)

    def observe(self, choice, rows, kept, frames, stage_ms, share=1.0):
        self.seen.append((choice.histories, rows, kept, frames, share, stage_ms["wall"] > 0))


def test_every_chunk_is_drawn_and_kept_as_it_was_chosen():
    engine = tiny_engine(5, {"search.histories": 3, "search.expansions": 3})
    pacing = Pacing(engine, engine.recipe, 1e-3, Costs())
    pacing.budget = Told([(3, 3, 1), (1, 2, 2), (2, 3, 4), (2, 1, 1), (3, 2, 1)])
    drawn = []
    with engine.pool.lease() as lease:
        watch = lambda r: drawn.append((len(r.candidates), len(r.kept)))  # noqa: E731
        line = engine.begin(engine.recipe, scenes_of("words", 5), lease, watch)
        while not line.done:
            line = pacing.chosen(line)
            assert pacing.chosen(line) is line
            assert line.video.recipe.blocks == engine.recipe.blocks
            after = engine.turn(engine.ready([line]))
            (line,) = after.lines
            pacing.made(*drawn[-1], 6, after.stage_ms, 1.0)
        packed = resuming.pack(line, engine.pool)
    # histories before x expansions, at most K kept
    assert drawn == [(9, 3), (6, 1), (3, 2), (2, 2), (4, 3)]
    assert [seen[:3] for seen in pacing.budget.seen] == [
        (3, 9, 3), (1, 6, 1), (2, 3, 2), (2, 2, 2), (3, 4, 3)
    ]  # fmt: skip
    assert resuming.facts(packed).settings.search.histories == 3, "a snapshot is of what was asked"


def test_a_pace_that_nobody_can_keep_ends_at_one_candidate_and_says_so():
    engine = tiny_engine(CHUNKS, {"run.prompts": 2, "search.histories": 4, "search.expansions": 4})
    with AsyncEngine(engine) as many:
        job = many.submit(Request(prompts="words", budget_fps=1e9, backlog=99))
        assert len(list(job)) == CHUNKS
        spent = job.budget.history
        assert spent[0].rows == 16 and spent[-1].rows == 1 and not spent[-1].choice.fits
        assert "cannot be kept" in job.budget.report()


def test_a_pace_that_is_easy_to_keep_changes_nothing():
    def one():
        return tiny_engine(CHUNKS, {"run.prompts": 2, "run.batch_rows": 1})

    with AsyncEngine(one()) as many:
        job = many.submit(Request(prompts="words", budget_fps=1e-3, backlog=99))
        got = list(job)
        assert {(s.choice.histories, s.choice.expansions) for s in job.budget.history} == {(2, 2)}
    want = list(one().stream("words"))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(got, want, strict=True))
