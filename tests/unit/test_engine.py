"""The whole line: settled chunks in order, the same video for the same seed, both fidelities, any length."""

import gc

import pytest
import torch

from runtime.engine import Engine
from runtime.noise import PhiloxNoise
from runtime.plan import chunks_for
from runtime.search import within_horizon
from runtime.settings import PROMPT_CHARACTERS
from runtime.types import ChunkEvent, ChunkRecord, Draws
from tests.tiny import ByRow, SeedNoise, tiny_dit, tiny_engine, tiny_vae

KEEP_APART = {"image": ByRow(lambda chunk, rows: [0.0] * rows)}
ROUTES = {"memory.quality_threshold": -0.3, "memory.transition_threshold": 0.0}  # all three occur


def apart(chunk: int, rows: int) -> list[float]:
    """The first candidate of either half is best: two histories of two candidates never meet."""
    return [1.0 if row == 0 else 0.9 if row == rows // 2 else 0.0 for row in range(rows)]


def stream(engine: Engine) -> tuple[list[ChunkRecord], list[ChunkEvent]]:
    records: list[ChunkRecord] = []
    return records, list(engine.stream("a prompt", watch=records.append))


def decisions(records: list[ChunkRecord]) -> list:
    return [
        (record.kept, [(c.branch.rank, c.branch.seed, c.route) for c in record.candidates])
        for record in records
    ]


def noises(records: list[ChunkRecord]) -> torch.Tensor:
    return torch.cat([torch.stack([c.noise for c in record.candidates]) for record in records])


def video(events: list[ChunkEvent], what: str = "frames") -> torch.Tensor:
    return torch.cat([getattr(event, what) for event in events])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


# Settling.


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("policy", ["single", "best-of-n", "beam", "stream-t1"])
def test_a_video_has_the_frames_that_its_chunks_stand_for(policy, chunks):
    _, events = stream(tiny_engine(chunks, {"search.policy": policy}, decoder=tiny_vae()))
    assert [event.index for event in events] == list(range(chunks))
    assert video(events).shape == (12 * chunks - 3, 3, 4, 4)
    assert video(events).isfinite().all() and video(events).min() >= 0 and video(events).max() <= 1


def test_settled_chunks_arrive_while_later_ones_are_still_made():
    made, arrived = [], []
    for event in tiny_engine(12).stream("x", watch=lambda record: made.append(record.index)):
        arrived.append((event.index, made[-1]))
    assert [index for index, _ in arrived] == list(range(12))
    assert arrived[0][1] < 11, "nothing was shown before the last chunk was made"
    assert all(index <= newest for index, newest in arrived)


def test_a_lone_history_shows_every_chunk_at_once():
    made = []
    engine = tiny_engine(4, {"search.policy": "single"})
    for event in engine.stream("x", watch=lambda record: made.append(record.index)):
        assert event.index == made[-1]


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_horizon_settles_what_would_stay_open(horizon):
    made, lag = [], []
    changes = {"search.horizon_chunks": horizon}
    engine = tiny_engine(12, changes, video=ByRow(apart), **KEEP_APART)
    for event in engine.stream("x", watch=lambda record: made.append(record.index)):
        lag.append(made[-1] - event.index)
    assert len(lag) == 12 and max(lag) <= horizon


def test_without_agreement_nothing_is_shown_before_the_end():
    made = []
    engine = tiny_engine(8, video=ByRow(apart), **KEEP_APART)
    events = engine.stream("x", watch=lambda record: made.append(record.index))
    assert next(events).index == 0 and made == list(range(8))
    events.close()


@pytest.mark.parametrize("apart_too", [False, True])
@pytest.mark.parametrize("schedule", ["survivors", "released"])
def test_references_add_up_after_every_chunk(schedule, apart_too):
    changes = {**ROUTES, "search.horizon_chunks": 3, "run.schedule": schedule}
    parts = {"video": ByRow(apart), **KEEP_APART} if apart_too else {}
    engine = tiny_engine(12, changes, **parts)

    def recount(record: ChunkRecord) -> None:
        engine.pool.check([s.memory for s in within_horizon(record.survivors, 3)])

    assert len(list(engine.stream("x", watch=recount))) == 12
    engine.pool.check([])


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_survivor_keeps_no_loser_in_memory(fidelity, rows):
    """A row of a batch kept as a view would keep the whole batch."""
    changes = {"fidelity": fidelity, "run.batch_rows": rows}
    records, _ = stream(tiny_engine(3, changes, decoder=tiny_vae()))
    for survivor in records[-1].survivors:
        chunks = [x for chunk in survivor.unsettled for x in (chunk.latents, chunk.frames)]
        kept = [survivor.noise, *survivor.latents, *survivor.frames, *survivor.decoder.caches]
        for tensor in chunks + kept:
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


# The same seed gives the same video.


def test_the_same_seed_gives_the_same_video_bit_for_bit():
    dit = tiny_dit(dtype=torch.float32)
    engine = tiny_engine(8, ROUTES, dit=dit, decoder=tiny_vae())
    first_records, first = stream(engine)
    again_records, again = stream(engine)
    _, fresh = stream(tiny_engine(8, ROUTES, dit=dit, decoder=tiny_vae()))
    assert decisions(first_records) == decisions(again_records)
    for events in (again, fresh):
        assert same(video(events), video(first)) and same(
            video(events, "latents"), video(first, "latents")
        )


def test_another_seed_gives_another_video():
    _, one = stream(tiny_engine(3))
    _, other = stream(tiny_engine(3, {"search.seed": 43}))
    assert (video(one) - video(other)).abs().max() > 0.1


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_split_of_a_batch_changes_no_noise_and_no_decision(rows):
    whole_records, whole = stream(tiny_engine(8, ROUTES, dit=tiny_dit(dtype=torch.float32)))
    changes = {**ROUTES, "run.batch_rows": rows}
    split_records, split = stream(tiny_engine(8, changes, dit=tiny_dit(dtype=torch.float32)))
    assert decisions(split_records) == decisions(whole_records)
    assert same(noises(split_records), noises(whole_records))
    assert (video(split, "latents") - video(whole, "latents")).abs().max() < 1e-4


@pytest.mark.parametrize("policy", ["single", "best-of-n", "beam", "stream-t1"])
def test_the_released_schedule_does_the_same_work_in_another_order(policy):
    changes = {**ROUTES, "fidelity": "released", "search.policy": policy}
    records, events = stream(tiny_engine(8, changes))
    wasteful = tiny_engine(8, {**changes, "run.schedule": "released"})
    slow_records, slow = stream(wasteful)
    assert decisions(slow_records) == decisions(records)
    assert same(noises(slow_records), noises(records))
    assert (video(slow, "latents") - video(events, "latents")).abs().max() < 1e-12
    wasteful.pool.check([])


def test_the_last_chunks_keys_are_written_only_when_asked_for():
    for keep, blocks in ((False, 1), (True, 2)):
        engine = tiny_engine(2, {"search.policy": "single", "memory.keep_last": keep})
        records, _ = stream(engine)
        assert len(records[-1].survivors[0].memory.slots) == blocks


# Fidelities.


@pytest.mark.parametrize(("fidelity", "later"), [("paper", 12), ("released", 9)])
def test_an_image_reward_sees_the_chunk_as_its_fidelity_says(fidelity, later):
    records, events = stream(tiny_engine(3, {"fidelity": fidelity}, decoder=tiny_vae()))
    assert [len(record.frames[0]) for record in records] == [9, later, later]
    assert [len(event.frames) for event in events] == [9, 12, 12]  # the viewer sees one video
    for record, event in zip(records, events, strict=True):
        judged = any(same(frames, event.frames) for frames in record.frames)
        assert judged or fidelity == "released"


def test_no_seed_is_used_twice_in_the_paper_and_first_ones_are_when_released():
    for fidelity, repeats in (("paper", False), ("released", True)):
        records, _ = stream(tiny_engine(6, {"fidelity": fidelity}))
        seeds = [c.branch.seed for record in records for c in record.candidates]
        assert (len(set(seeds)) < len(seeds)) is repeats


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("schedule", ["survivors", "released"])
def test_a_video_of_one_chunk_works(fidelity, schedule):
    changes = {"fidelity": fidelity, "run.schedule": schedule}
    (record,), (event,) = stream(tiny_engine(1, changes))
    scores = record.candidates[record.kept[0]].scores
    assert scores.fused == scores.long and event.index == 0


@pytest.mark.parametrize("mode", ["blend", "slerp"])
def test_a_narrow_dtype_runs_through(mode):
    """Several merges in bfloat16, shadows included, both fidelities."""
    for fidelity in ("paper", "released"):
        changes = {
            **ROUTES,
            "memory.transition_threshold": 9.0,
            "fidelity": fidelity,
            "noise.mode": mode,
        }
        engine = tiny_engine(8, changes, dit=tiny_dit(dtype=torch.bfloat16))
        _, events = stream(engine)
        assert video(events, "latents").isfinite().all() and not engine.pool.shadows


# Length.


def held() -> tuple[int, int, int]:
    """Living tensors, the bytes of the storages under them, and objects of the runtime's own classes."""
    gc.collect()
    things = gc.get_objects()
    storages = [
        x.untyped_storage() for x in things if type(x) in (torch.Tensor, torch.nn.Parameter)
    ]
    own = sum(str(type(thing).__module__).startswith("runtime") for thing in things)
    return len(storages), sum({x.data_ptr(): x.nbytes() for x in storages}.values()), own


def together(chunk: int, rows: int) -> list[float]:
    """All candidates of the best history are better than the others': it alone has children."""
    return [1.0 - 0.1 * row + 0.5 * (chunk % 3 == 0) for row in range(rows)]


@pytest.mark.parametrize(("judge", "lag"), [(together, 1), (apart, 6)], ids=["meeting", "apart"])
def test_a_thousand_chunks_take_no_more_memory_than_a_hundred(judge, lag):
    """Two histories that would disagree forever included: the horizon settles them. All repeats after 84 chunks."""
    early, late = range(148, 160, 2), range(988, 1000, 2)
    changes = {"search.horizon_chunks": 6, "reward.window_chunks": 3}
    parts = {
        "image": ByRow(lambda chunk, rows: [float(chunk % 4 > 0)] * rows),
        "video": ByRow(judge),
        "noise": SeedNoise(torch.float32),
        "dit": tiny_dit(dtype=torch.float32),
    }
    engine = tiny_engine(1000, changes, steps=(1000,), **parts)
    sizes, routes, made, shown = {}, set(), 0, 0

    def watch(record: ChunkRecord) -> None:
        nonlocal made
        made = record.index
        routes.update(candidate.route for candidate in record.candidates)
        if made in early or made in late:
            sizes[made] = held()

    for event in engine.stream("x", watch=watch):
        assert event.index == shown and made - shown <= lag
        shown += 1
    assert shown == 1000 and event.latents.isfinite().all()
    assert [sizes[index] for index in early] == [sizes[index] for index in late]
    assert len(routes) > 1


# Edges.


@pytest.mark.parametrize(
    ("seconds", "fps", "stride", "chunks"),
    [
        (5.0, 16, 4, 7),
        (30.0, 16, 4, 40),
        (0.01, 16, 4, 1),
        (0.6, 16, 4, 1),
        (3.0, 2, 2, 1),
        (60, 16, 4, 80),
    ],
)
def test_seconds_become_whole_chunks(seconds, fps, stride, chunks):
    assert chunks_for(seconds, fps, stride) == chunks


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "want some words, got an empty text"),
        (" \n\t", "got an empty text"),
        ("x" * (PROMPT_CHARACTERS + 1), f"want at most {PROMPT_CHARACTERS} characters, got 4097"),
    ],
    ids=["empty", "blank", "long"],
)
def test_a_bad_prompt_is_refused_before_anything_is_done(prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny_engine(1).stream(prompt)
    tiny_engine(1).stream("x" * PROMPT_CHARACTERS)


def test_the_engine_draws_from_philox_by_seed_and_chunk():
    engine = tiny_engine(2, {"search.policy": "single"})
    records, _ = stream(engine)
    philox = PhiloxNoise(torch.device("cpu"), torch.float64, "torch")
    want = philox.draw(Draws((42, 1042), (0, 1), 0), engine.parts.generator.chunk_shape)
    assert same(noises(records), want)
