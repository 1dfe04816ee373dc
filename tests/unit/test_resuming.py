"""A video that stops between two chunks and goes on elsewhere is the video that never stopped, bit for bit."""

import json
import math
from dataclasses import replace

import pytest
import torch

from runtime import resuming
from runtime.engine import Engine
from runtime.packing import Packed, heard, told
from runtime.scenes import scenes_of
from tests.tiny import tiny_engine, tiny_vae

SCENES = [(0, "one"), (7, "two")]
CHUNKS = 11


def engine(**changes) -> Engine:
    return tiny_engine(CHUNKS, {"memory.quality_threshold": -1.0, **changes})


def whole(one: Engine) -> list:
    return list(one.stream(SCENES))


def until(one: Engine, stop: int) -> tuple[list, Packed]:
    """The events before chunk ``stop``, and the video there."""
    with one.pool.lease() as lease:
        line, events = one.begin(one.recipe, scenes_of(SCENES, CHUNKS), lease), []
        while line.index < stop:
            after = one.turn(one.ready([line]))
            (line,), events = after.lines, events + [event for _, event in after.settled]
        return events, resuming.pack(line, one.pool)


def rest(one: Engine, packed: Packed) -> list:
    with one.pool.lease() as lease:
        line, events = resuming.unpack(packed, one, lease), []
        assert {line.video.lease} == {lease}
        one.pool.check(history.memory for history in line.survivors)
        while not line.done:
            after = one.turn(one.ready([line]))
            (line,), events = after.lines, events + [event for _, event in after.settled]
        events += one.finish(line)
    one.pool.check([])
    return events


def assert_same(got: list, want: list) -> None:
    assert [event.index for event in got] == [event.index for event in want]
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.latents, other.latents)
        told = [(event.seed, event.route, str(event.scores)) for event in (one, other)]
        assert told[0] == told[1]


@pytest.mark.parametrize("stop", range(CHUNKS))
def test_a_video_goes_on_from_any_chunk_as_if_nothing_had_been(stop):
    head, packed = until(engine(), stop)
    assert packed.tree == json.loads(json.dumps(packed.tree, allow_nan=False))
    known = resuming.facts(packed)
    assert (known.index, known.settled, known.scenes) == (stop, len(head), tuple(SCENES))
    assert_same(head + rest(engine(), packed), whole(engine()))


@pytest.mark.parametrize(
    "changes",
    [
        {"search.policy": "single"},
        {"search.policy": "best-of-n", "search.histories": 3},
        {"search.policy": "beam", "search.histories": 4},
        {"search.policy": "halving", "search.draft_passes": 1},
        {"memory.ema_storage": "stochastic"},
        {"memory.rope": "relative"},
        {"fidelity": "released"},
    ],
    ids=str,
)
def test_so_does_every_kind_of_search_and_memory(changes):
    head, packed = until(engine(**changes), 8)
    assert_same(head + rest(engine(**changes), packed), whole(engine(**changes)))


def test_a_decoder_with_many_caches_goes_on_too():
    def one() -> Engine:
        return tiny_engine(CHUNKS, {"seconds": 33.0}, decoder=tiny_vae())

    head, packed = until(one(), 8)
    assert_same(head + rest(one(), packed), whole(one()))


def test_packed_values_are_nobody_elses():
    one = engine()
    _, packed = until(one, 6)
    kept = {name: tensor.clone() for name, tensor in packed.tensors.items()}
    whole(one)  # writes over the same blocks
    assert all(torch.equal(packed.tensors[name], tensor) for name, tensor in kept.items())


def test_a_shared_tensor_is_packed_once_and_shared_again():
    shared = 0
    for stop in range(2, CHUNKS):
        one = engine()
        _, packed = until(one, stop)
        with one.pool.lease() as lease:
            survivors = resuming.unpack(packed, one, lease).survivors
            first, second = (set(tree["frames"]) for tree in packed.tree["survivors"])
            mine, others = ({id(frames) for frames in s.frames} for s in survivors)
            assert len(mine & others) == len(first & second)
            chunks = {id(chunk) for s in survivors for chunk in s.unsettled}
            assert len(chunks) == len(packed.tree["chunks"])
            held = {slot.block for s in survivors for slot in s.memory.slots}
            assert one.pool.used == len(held)
            shared += len(first & second)
    assert shared


@pytest.mark.parametrize("number", [0.1, -1e-300, math.inf, -math.inf, math.nan])
def test_every_number_survives_json(number):
    back = heard(json.loads(json.dumps(told(number), allow_nan=False)))
    assert back == number or (math.isnan(back) and math.isnan(number))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree.pop("survivors"),
        lambda tree: tree.update(scenes="words"),
        lambda tree: tree.update(scene=[9]),
        lambda tree: tree["survivors"][0].update(noise="value.999"),
        lambda tree: tree["settings"].update(strange=1),
        lambda tree: tree["settings"]["search"].update(histories=2000),
    ],
)
def test_a_tree_that_is_no_video_is_refused_and_holds_nothing(spoil):
    one = engine()
    _, packed = until(one, 5)
    tree = json.loads(json.dumps(packed.tree))
    spoil(tree)
    with pytest.raises(ValueError), one.pool.lease() as lease:
        resuming.unpack(Packed(tree, packed.tensors), one, lease)
    one.pool.check([])


def test_identity_names_the_weights_and_what_changes_numbers_only():
    one = json.loads(resuming.identity(engine()))
    assert json.loads(resuming.identity(engine(**{"search.seed": 7, "run.prompts": 3}))) == one
    other = json.loads(resuming.identity(engine(**{"run.batch_rows": 1})))
    assert {name for name in one if one[name] != other[name]} == {"run.batch_rows"}
    changed = engine()
    with torch.no_grad():
        changed.parts.generator.dit.patch_embedding.weight[0, 0] += 1e-9
    assert json.loads(resuming.identity(changed))["weights"] != one["weights"]


def test_a_chunk_that_was_begun_ahead_cannot_be_packed():
    one = engine(**{"run.speculate": True})
    with one.pool.lease() as lease:
        line = one.begin(one.recipe, scenes_of("words", CHUNKS), lease)
        (line,) = one.turn(one.ready([line])).lines
        if line.ahead is None:
            line = replace(line, ahead=object())
        with pytest.raises(ValueError, match="run.speculate"):
            resuming.pack(line, one.pool)
