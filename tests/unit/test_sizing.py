"""The memory plan against what torch really allocates, against published sizes, and as advice."""

from dataclasses import replace

import pytest
import torch

from runtime.engine import Engine
from runtime.generators import load_generator
from runtime.generators.footprint import LiveBytes
from runtime.presets import preset
from runtime.rewards import REWARDS
from runtime.sizing import GIB, PHASES, free_memory, plan_memory, prompts_that_fit, reward_bytes

FULL = preset("wan-1.3b")


def nbytes(plan, start):
    found = [item.nbytes for item in plan.items if item.name.startswith(start)]
    assert found, f"no item of the plan begins with {start!r}"
    return sum(found)


def tensors_of(value, seen):
    """Every distinct storage that an object reaches through its modules."""
    for module in value if isinstance(value, list) else [value]:
        for tensor in (*module.parameters(), *module.buffers()):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(seen.values())


@pytest.fixture(scope="module")
def settings():
    return preset("sprites").with_changes({"run.dtype": "bfloat16", "seconds": 4.4})


@pytest.fixture(scope="module")
def engine(settings):
    return Engine(settings)


def test_weights_and_pool_are_what_an_engine_allocates(settings, engine):
    """Within a few per cent: buffers and alignment are not planned for."""
    plan, parts = plan_memory(settings), engine.parts.generator
    for name, module in (
        ("DiT", parts.dit),
        ("text encoder", parts.text.encoder),
        ("decoder, w", parts.decoder.vae),
    ):
        assert nbytes(plan, name) == pytest.approx(tensors_of(module, {}), rel=0.02), name
    assert nbytes(plan, "KV pool") == engine.pool.kv.nbytes
    assert f"KV pool, {engine.pool.blocks} blocks" in plan.table()


@pytest.mark.parametrize("how", ["fp8-row", "fp8-tensor"])
def test_rounded_weights_are_counted_as_they_lie(settings, how):
    changed = settings.with_changes({"run.linears": how})
    dit = load_generator("sprites", torch.device("cpu"), torch.bfloat16, linears=how).dit
    assert nbytes(plan_memory(changed), "DiT") == pytest.approx(tensors_of(dit, {}), rel=0.02)
    assert nbytes(plan_memory(changed), "DiT") < 0.7 * nbytes(plan_memory(settings), "DiT")


def test_histories_carry_what_the_plan_says(settings, engine):
    """The survivors of a real run, just before the end: their tensors by storage, each once."""
    records = []
    list(engine.stream("a red circle moving left", watch=records.append))
    survivors = records[-1].survivors
    frames, states = {}, {}
    for history in survivors:
        for t in (*history.frames, *(chunk.frames for chunk in history.unsettled)):
            frames[t.data_ptr()] = t.nbytes
        for t in history.decoder.caches:
            states[t.data_ptr()] = t.nbytes
    plan = plan_memory(settings)
    assert nbytes(plan, "histories, decoder states") == sum(states.values())
    planned = nbytes(plan, "histories, frames")  # as if nothing were shared or settled
    assert 0.4 * planned < sum(frames.values()) <= planned


def test_rewards_weigh_what_they_load(engine):
    for name in ("sprites-image", "sprites-video"):
        reward = {"sprites-image": engine.parts.image, "sprites-video": engine.parts.video}[name]
        modules = [v for v in vars(reward).values() if isinstance(v, torch.nn.Module)]
        assert reward_bytes(name) == pytest.approx(tensors_of(modules, {}), rel=0.02)
    assert reward_bytes("stub") == 0 and "stub" in REWARDS


def test_full_size_is_what_the_field_says():
    plan = plan_memory(FULL, 200 * GIB)
    assert plan.block_bytes / 2**20 == pytest.approx(823, abs=0.5)
    assert plan.history_blocks == 8
    assert nbytes(plan, "KV pool") == 17 * plan.block_bytes
    assert nbytes(plan, "DiT") == 2 * 1_418_996_800
    assert nbytes(plan, "text encoder") == pytest.approx(2 * 5.68e9, rel=0.01)  # UMT5-XXL's encoder
    assert plan.fits is True and plan.advice == ""


@pytest.mark.parametrize("name", ["wan-1.3b", "realtime", "longlive"])
def test_full_size_presets_fit_the_gpu_they_are_for(name):
    plan = plan_memory(preset(name), 79 * GIB)
    assert plan.fits, plan.table()


def test_what_is_not_needed_at_once_is_not_added_up():
    plan = plan_memory(FULL, 200 * GIB)
    largest = max(plan.during(phase) for phase in PHASES[1:])
    assert plan.total == plan.during("always") + largest < sum(item.nbytes for item in plan.items)
    resident = plan_memory(FULL.with_changes({"run.offload_text": False}), 200 * GIB)
    added = resident.during("always") - plan.during("always")
    assert added == nbytes(plan, "text encoder")


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({"run.decoder_tile": 16}, "decoding, activations"),
        ({"run.batch_rows": 1}, "captured graphs"),
        ({"memory.max_sink_frames": 3}, "KV pool"),
        ({"search.histories": 1}, "histories, decoder states"),
        ({"search.expansions": 1}, "candidates, frames and states"),
        ({"run.linears": "fp8-row"}, "DiT"),
    ],
    ids=str,
)
def test_every_lever_moves_its_item(change, start):
    changed = plan_memory(FULL.with_changes(change), 200 * GIB)
    assert nbytes(changed, start) < nbytes(plan_memory(FULL, 200 * GIB), start)


def test_advice_is_the_first_single_change_that_is_enough():
    plain = FULL.with_changes({"run.offload_text": False})
    need = plan_memory(plain, 200 * GIB).total
    just_short = plan_memory(plain, int((need - GIB) / 0.9))
    assert just_short.fits is False
    assert just_short.advice == "it would fit with run.offload_text = True"
    assert just_short.advice in just_short.table() and "does not fit" in just_short.table()
    shorter = plan_memory(plain, int((need - 15 * GIB) / 0.9))
    assert shorter.advice.startswith("no single change is enough; it would fit with run.offload")
    assert "does not fit even with" in plan_memory(plain, 10 * GIB).advice


def test_advice_holds(settings):
    """Following it makes the plan fit, by re-planning with the change that it names."""
    plain = FULL.with_changes({"run.offload_text": False})
    free = int(plan_memory(plain, 1).total)
    name, value = plan_memory(plain, free).advice.removeprefix("it would fit with ").split(" = ")
    assert plan_memory(plain.with_changes({name: value == "True" or int(value)}), free).fits


def test_as_many_prompts_ride_as_fit_and_no_more():
    count = prompts_that_fit(FULL, 300 * GIB)
    assert count > 1
    for prompts, fits in ((count, True), (count + 1, False)):
        changed = FULL.with_changes({"run.prompts": prompts})
        assert plan_memory(changed, 300 * GIB).fits is fits
    assert prompts_that_fit(FULL, 30 * GIB) == 0
    auto = plan_memory(FULL.with_changes({"run.prompts": 0}), 300 * GIB)
    assert auto == replace(plan_memory(FULL.with_changes({"run.prompts": count}), 300 * GIB))


def test_free_memory_is_asked_of_the_device(settings):
    free = free_memory(settings.run)
    assert free is None or free > 1 << 20
    if free is not None:
        budget = plan_memory(settings).budget
        assert budget == pytest.approx(0.9 * free, rel=0.2)
        assert plan_memory(settings, 1000).budget == 900


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_plan_for_a_gpu_is_made_without_one():
    plan = plan_memory(FULL)
    assert plan.budget is None and plan.fits is None and "budget" not in plan.table()


def test_live_bytes_count_storages_once_and_forget_them():
    with torch.device("meta"), LiveBytes() as live:
        a = torch.empty(100, dtype=torch.float32)
        b = a.view(10, 10).t()  # no memory of its own
        assert live.now == 400
        a.add_(1)
        c = a + 1
        assert live.now == 800
        del a
        assert live.now == 800  # b still holds it
        del b, c
        assert live.now == 0 and live.most == 800


def test_the_plan_grows_with_the_survivors_that_the_policy_keeps():
    single = plan_memory(FULL.with_changes({"search.policy": "single"}), 200 * GIB)
    assert "KV pool, 9 blocks" in single.table() and "reward" not in single.table()


@pytest.mark.gpu
@pytest.mark.slow
def test_a_gpu_holds_what_was_planned_for_full_size():
    """Weights alone, drawn on the GPU; the text encoder in host memory."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    generator = load_generator(
        "wan-1.3b", device, torch.bfloat16, "auto", "random", offload_text=True
    )
    plan = plan_memory(FULL)
    want = nbytes(plan, "DiT") + nbytes(plan, "decoder, w")
    assert torch.cuda.memory_allocated() - before == pytest.approx(want, rel=0.02)
    assert generator.device.type == "cuda" and plan.budget is not None
