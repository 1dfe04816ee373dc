"""Several prompts ride one batch: each video is the one it would be alone."""

import pytest
import torch

from runtime.engine import Engine
from runtime.settings import MAX_PROMPTS
from tests.tiny import generator_of, tiny_engine

ROUTES = {"memory.quality_threshold": -0.3, "memory.transition_threshold": 0.0}
PROMPTS = ["one", "two", "three"]


def engine_of(prompts: int, changes: dict | None = None, chunks: int = 6) -> Engine:
    engine = tiny_engine(chunks, {**ROUTES, "run.prompts": prompts, **(changes or {})})
    texts = {
        word: torch.randn(1, 3, 6, generator=generator_of(i)) for i, word in enumerate(PROMPTS)
    }
    engine.parts.generator.text.encode = texts.__getitem__
    return engine


def alone(prompt: str, changes: dict | None = None) -> tuple[list, torch.Tensor]:
    engine, records = engine_of(1, changes), []
    events = list(engine.stream(prompt, watch=records.append))
    return decisions(records), torch.cat([event.latents for event in events])


def decisions(records: list) -> list:
    return [
        (r.index, r.kept, [(c.row, c.branch.rank, c.branch.seed, c.route) for c in r.candidates])
        for r in records
    ]


@pytest.mark.parametrize("prompts", [1, 2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"search.policy": "single"},
        {"search.policy": "best-of-n"},
        {"search.policy": "halving", "search.draft_passes": 1},
        {"run.batch_rows": 3},
        {"fidelity": "released"},
        {"run.graphs": "rehearsal", "run.attention": "reference"},
    ],
    ids=str,
)
def test_a_video_does_not_know_its_company(prompts, changes):
    engine, records, latents = engine_of(prompts, changes), [], {}
    for number, event in engine.stream_many(PROMPTS, watch=records.append):
        latents.setdefault(number, []).append(event.latents)
    for number, prompt in enumerate(PROMPTS):
        want = alone(prompt, changes)
        mine = [record for record in records if record.prompt == number]
        assert decisions(mine) == want[0]
        assert (torch.cat(latents[number]) - want[1]).abs().max() < 1e-12
        assert all(len(record.frames) == len(record.candidates) for record in mine)
    engine.pool.check([])


def test_prompts_of_a_batch_take_turns_and_groups_follow_each_other():
    engine, order = engine_of(2, {"search.policy": "single"}, chunks=3), []
    for number, event in engine.stream_many(PROMPTS):
        order.append((number, event.index))
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_times_of_a_batch_are_told_once():
    engine, told = engine_of(3, chunks=2), []
    list(engine.stream_many(PROMPTS, watch=lambda record: told.append(bool(record.stage_ms))))
    assert told == [False, False, True] * 2


def test_closing_the_stream_gives_all_blocks_back():
    engine = engine_of(3)
    stream = engine.stream_many(PROMPTS)
    next(stream)
    assert engine.pool.used > 3
    stream.close()
    engine.pool.check([])
    one = engine.stream("one")
    next(one)
    one.close()
    engine.pool.check([])


def test_a_watcher_that_fails_in_one_video_leaves_nothing_held():
    def watch(record) -> None:
        if record.prompt == 1 and record.index == 2:
            raise ArithmeticError

    engine = engine_of(3)
    with pytest.raises(ArithmeticError):
        list(engine.stream_many(PROMPTS, watch=watch))
    engine.pool.check([])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], f"prompts: want 1 to {MAX_PROMPTS}, got 0"),
        (["x"] * (MAX_PROMPTS + 1), f"got {MAX_PROMPTS + 1}"),
        (["fine", " "], "prompt: want some words"),
    ],
    ids=["none", "many", "blank"],
)
def test_bad_prompts_are_refused_before_anything_is_made(prompts, message):
    engine = engine_of(2)
    with pytest.raises(ValueError, match=message):
        engine.stream_many(prompts)
    engine.pool.check([])


def test_pool_blocks_grow_with_the_prompts_of_a_batch():
    assert engine_of(3).pool.blocks == 3 * engine_of(1).pool.blocks


def test_the_denoiser_takes_a_prompt_per_row():
    """Rows of two prompts in one forward are two forwards."""
    engine = engine_of(2, chunks=2)
    seen = []
    run = engine.denoiser.run
    engine.denoiser.run = lambda plan, x, texts, passes: (
        seen.append(len({id(text) for text in texts})) or run(plan, x, texts, passes)
    )
    list(engine.stream_many(PROMPTS[:2]))
    assert seen == [2, 2]


def test_as_many_prompts_as_fit_are_counted_before_anything_is_loaded(monkeypatch):
    from runtime import sizing
    from runtime.settings import Settings

    with pytest.raises(ValueError, match="run.prompts=0: what fits is counted before weights are"):
        engine_of(0)
    asked = Settings().with_changes({"run.prompts": 0, "seconds": 1.0})
    one = sizing.plan_memory(asked.with_changes({"run.prompts": 1}), 1 << 40)
    monkeypatch.setattr(sizing, "free_memory", lambda run: int(4 * one.total / run.memory_share))
    engine = Engine(asked)
    assert engine.batch_prompts > 1 and engine.pool.blocks == 17 * engine.batch_prompts
    monkeypatch.setattr(sizing, "free_memory", lambda run: one.total // 2)
    with pytest.raises(RuntimeError, match="not even one prompt fits into"):
        Engine(asked)
