"""Prompts that change in mid-video: what is remembered, who judges what, and that nothing else changes."""

import pytest
import torch

from runtime.engine import Engine
from runtime.generators.wan import WanDiT
from runtime.scenes import MAX_SCENES, scenes_of
from runtime.settings import CHUNK_FRAMES
from tests.tiny import Likes, generator_of, motion, prettiness, tiny_dit, tiny_engine

ROUTES = {"memory.quality_threshold": -0.3, "memory.transition_threshold": 0.0}
ONE_TWO = [(0, "one"), (6, "two")]
TEXTS = {
    word: torch.randn(1, 3, 6, generator=generator_of(i))
    for i, word in enumerate(["one", "two", "three"])
}


def engine_of(changes: dict | None = None, chunks: int = 9, **parts) -> Engine:
    parts.setdefault("dit", tiny_dit(layers=2))
    engine = tiny_engine(chunks, {**ROUTES, **(changes or {})}, **parts)
    engine.parts.generator.text.encode = TEXTS.__getitem__
    return engine


def latents_of(events) -> torch.Tensor:
    return torch.stack([event.latents for event in events])


def keys_and_values_from_nothing(
    dit: WanDiT, chunks: list[torch.Tensor], places: list[int], prompt: str
) -> list[torch.Tensor]:
    """What a model that never heard another prompt stores of these chunks, one after the other: each [P, S, H, D]."""
    text = dit.text_context(TEXTS[prompt].double())
    moment = dit.moment(torch.zeros(1, 1, dtype=torch.float64))
    made: list[torch.Tensor] = []
    for latents, start in zip(chunks, places, strict=True):
        layers = dit.config.layers
        fresh: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def attend(layer, q, k, v, layers=layers):
            keys = torch.cat([*(block[layer][None] for block in made), k], 1)
            values = torch.cat([*(block[layers + layer][None] for block in made), v], 1)
            weights = torch.einsum("bqhd,bkhd->bhqk", q, keys) * q.shape[-1] ** -0.5
            return torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), values)

        def store(layer, k, v, fresh=fresh):
            fresh[layer] = k[0].clone(), v[0].clone()

        frames = torch.arange(start, start + CHUNK_FRAMES)[None]
        rope = dit.rope(frames, *latents.shape[-2:])
        dit.remember(latents[None], moment, text, rope, attend, store)
        columns = zip(*(fresh[layer] for layer in range(layers)), strict=True)
        made.append(torch.stack([part for column in columns for part in column]))
    return made


def watch_turns(engine: Engine, seen: list) -> None:
    """Collect (memory, its blocks' contents) of every history right after a scene has begun."""
    turn = engine.recaching.turn

    def watched(lines):
        after, index = turn(lines), lines[0].index
        if index and any(x.video.scene.chunk == index for x in after):
            for line in after:
                for history in line.survivors:
                    slots = history.memory.slots
                    seen.append((history, [engine.pool.kv[:, s.block].clone() for s in slots]))
        return after

    engine.recaching.turn = watched


@pytest.mark.parametrize(
    "changes",
    [
        {"search.policy": "single"},
        {"search.policy": "stream-t1"},
        {"search.policy": "stream-t1", "search.histories": 3, "run.graphs": "rehearsal"},
        {"search.policy": "stream-t1", "run.batch_rows": 1},
        {"memory.sink_frames": 6, "memory.window_frames": 15},
    ],
    ids=str,
)
def test_the_memory_is_what_a_model_that_never_heard_the_old_prompt_would_have(changes):
    if "run.graphs" in changes:
        changes = {**changes, "run.attention": "reference"}
    seen: list = []
    engine = engine_of(changes)
    watch_turns(engine, seen)
    list(engine.stream(ONE_TWO))
    dit = engine.parts.generator.dit
    assert len(seen) == engine.policy.histories
    for history, blocks in seen:
        slots = history.memory.slots
        want = keys_and_values_from_nothing(
            dit, [slot.latents for slot in slots], [slot.start_frame for slot in slots], "two"
        )
        worst = [(a - b).abs().max().item() for a, b in zip(blocks, want, strict=True)]
        assert len(worst) >= 3 and max(worst) < 1e-12, worst
    engine.pool.check([])


def test_histories_with_sinks_and_blocks_of_their_own_are_each_right():
    """Three histories that share some blocks and not others; some have appended sinks, some merged."""
    seen: list = []
    engine = engine_of({"search.histories": 3, "search.expansions": 3}, chunks=12)
    watch_turns(engine, seen)
    list(engine.stream([(0, "one"), (8, "two")]))
    memories = [history.memory for history, _ in seen]
    held = [block for memory in memories for block in (slot.block for slot in memory.slots)]
    assert len(set(held)) < len(held), "nothing is shared, so the case proves too little"
    assert len({tuple(s.block for s in memory.slots) for memory in memories}) > 1
    assert any(len(memory.sinks) > 1 for memory in memories)
    for history, blocks in seen:
        slots = history.memory.slots
        chunks, places = [s.latents for s in slots], [s.start_frame for s in slots]
        want = keys_and_values_from_nothing(engine.parts.generator.dit, chunks, places, "two")
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(blocks, want, strict=True))


@pytest.mark.parametrize("changes", [{}, {"search.histories": 3}, {"search.policy": "best-of-n"}])
def test_blocks_know_the_chunks_they_were_made_from(changes):
    engine, chunks = engine_of(changes), {}

    def watch(record):
        for history in record.survivors:
            chunks.update({id(c): c for c in history.unsettled})
            known = {(c.index, c.latents.sum().item()) for c in chunks.values()}
            for slot in history.memory.slots:
                place = slot.start_frame // CHUNK_FRAMES
                assert (place, slot.latents.sum().item()) in known

    list(engine.stream("one", watch=watch))


@pytest.mark.parametrize("recache", ["all", "window", "none"])
def test_the_setting_says_which_blocks_are_written_again(recache):
    engine = engine_of({"memory.recache": recache, "search.policy": "single"})
    refresh, changed = engine.recaching.refresh, {}

    def watched(lines):
        slots = lines[0].survivors[0].memory
        before = engine.pool.kv.clone()
        after = refresh(lines)
        for name in ("sinks", "window"):
            blocks = [slot.block for slot in getattr(slots, name)]
            changed[name] = bool((engine.pool.kv[:, blocks] != before[:, blocks]).any())
        return after

    engine.recaching.refresh = watched
    list(engine.stream(ONE_TWO))
    assert changed == {"sinks": recache == "all", "window": recache != "none"}


def test_a_switch_to_the_same_prompt_without_recaching_is_no_switch():
    changes = {"memory.recache": "none", "search.policy": "single"}
    plain = latents_of(engine_of(changes).stream("one"))
    same = latents_of(engine_of(changes).stream([(0, "one"), (3, "one"), (6, "one")]))
    assert torch.equal(plain, same)


def test_only_what_follows_a_switch_is_different():
    changes = {"search.policy": "single"}
    plain = latents_of(engine_of(changes).stream("one"))
    switched = latents_of(engine_of(changes).stream(ONE_TWO))
    late = latents_of(engine_of(changes).stream([(0, "one"), (7, "three")]))
    assert torch.equal(plain[:6], switched[:6]) and torch.equal(plain[:7], late[:7])
    assert all((plain[n] - switched[n]).abs().max() > 1e-3 for n in (6, 7, 8))


def test_sinks_merged_after_a_switch_begin_at_the_new_values():
    """A shadow of a sink's old values would bring the old prompt back at the next merge."""
    dit = tiny_dit().to(torch.bfloat16)
    engine = engine_of({"run.dtype": "bfloat16", "memory.transition_threshold": 9.0}, dit=dit)
    engine.parts.generator.text.encode = lambda prompt: TEXTS[prompt].bfloat16()
    refresh, shadows = engine.recaching.refresh, []

    def watched(lines):
        shadows.append(len(engine.pool.shadows))
        after = refresh(lines)
        shadows.append(len(engine.pool.shadows))
        return after

    engine.recaching.refresh = watched
    list(engine.stream(ONE_TWO))
    assert shadows[0] > 0 and shadows[1] == 0


@pytest.mark.parametrize(
    "changes", [{}, {"fidelity": "released"}, {"run.schedule": "released"}, {"memory.rope": "relative"}]
)  # fmt: skip
def test_videos_that_switch_at_different_chunks_share_a_batch(changes):
    told = [ONE_TWO, [(0, "three"), (4, "one"), (5, "two")], "two"]
    alone = [latents_of(engine_of(changes).stream(one)) for one in told]
    together: dict[int, list] = {0: [], 1: [], 2: []}
    engine = engine_of({**changes, "run.prompts": 3})
    for number, event in engine.stream_many(told):
        together[number].append(event)
    for number, want in enumerate(alone):
        assert (latents_of(together[number]) - want).abs().max() < 1e-11
    engine.pool.check([])


def test_a_guess_does_not_reach_over_a_switch():
    want = latents_of(engine_of().stream(ONE_TWO))
    engine = engine_of({"run.speculate": True})
    got = latents_of(engine.stream(ONE_TWO))
    assert (got - want).abs().max() < 1e-12
    assert engine.speculation.tried == 9 - 1 - 1  # neither before the switch nor after the end


class Notes(Likes):
    """A reward that notes what it was shown."""

    def __init__(self, judge, horizon: int = 1) -> None:
        super().__init__(judge, horizon)
        self.seen: list[tuple[str, int, int]] = []

    def score(self, clip):
        self.seen.append((clip.prompt, clip.chunk, clip.frames.shape[1]))
        return super().score(clip)


@pytest.mark.parametrize("changes", [{}, {"fidelity": "released"}], ids=str)
def test_rewards_judge_a_scene_by_its_own_prompt_and_frames(changes):
    image, video = Notes(prettiness), Notes(motion, 10)
    engine = engine_of(changes, image=image, video=video)
    list(engine.stream(ONE_TWO))
    assert [(p, c) for p, c, _ in image.seen] == [("one" if c < 6 else "two", c) for c in range(9)]
    *chunks, final = video.seen
    per_chunk = {c: frames for _, c, frames in chunks}
    assert [p for p, c, _ in chunks] == ["one"] * 6 + ["two"] * 3
    assert per_chunk[5] > per_chunk[6] and per_chunk[8] > per_chunk[7] > per_chunk[6]
    streamed = 6 if not changes else 5  # a cold decode begins with a frame that stands alone
    assert per_chunk[6] == streamed and final == ("two", 8, 3 * 6)


def test_closing_right_after_a_switch_gives_all_blocks_back():
    engine = engine_of({"search.histories": 3})
    stream = engine.stream([(0, "one"), (1, "two"), (2, "three")])
    next(stream)
    stream.close()
    engine.pool.check([])
    assert not engine.pool.shadows


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], f"prompts: want 1 to {MAX_SCENES} scenes, got 0"),
        ([(0, "x")] * (MAX_SCENES + 1), f"got {MAX_SCENES + 1}"),
        ([(1, "x")], "prompts: want the first at chunk 0, got chunk 1"),
        ([(0, "x"), (2, "y"), (2, "z")], "prompts: want chunks in order, got 2 after 2"),
        ([(0, "x"), (3, "y"), (2, "z")], "got 2 after 3"),
        ([(0, "x"), (9, "y")], "want chunks below 9, which this video has, got 9; ask for more"),
        ([(0, "x"), (3, " ")], "prompt: want some words"),
        ([(0, "x"), (3, 7)], "prompt: want a text, got int"),
        ([(0, "x"), (True, "y")], "prompts: want a chunk's number, got True"),
        ([(0, "x"), "y"], "prompts: want pairs"),
        (["x", "y"], "prompts: want pairs"),
    ],
    ids=str,
)
def test_scenes_that_make_no_sense_are_refused(prompts, message):
    with pytest.raises(ValueError) as caught:
        scenes_of(prompts, 9)
    assert message in str(caught.value)


def test_a_refused_script_leaves_the_engine_free():
    engine = engine_of(chunks=2)
    with pytest.raises(ValueError, match="below 2"):
        engine.stream([(0, "one"), (2, "two")])
    assert len(list(engine.stream("one"))) == 2
