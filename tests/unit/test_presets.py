"""Presets are what the method's authors ran, and say what a machine lacks only when an engine is built."""

import pytest
import torch

from runtime.arguments import build_settings, parse
from runtime.engine import Engine
from runtime.generators import find_folder
from runtime.generators.folder import read_blueprint
from runtime.generators.published import CHECKPOINTS
from runtime.generators.schedule import Schedule
from runtime.presets import PRESETS, preset
from runtime.settings import Settings

FULL_SIZE = ["wan-1.3b", "longlive", "realtime"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_a_generator_whose_sizes_are_known(name):
    run = preset(name).run
    folder, _ = find_folder(run.generator, run.weights or "random")
    assert read_blueprint(folder).block_shape[0] > 0


def test_the_embedded_preset_opens_its_gate_and_changes_nothing_else():
    gate = {"memory.transition_threshold": preset("sprites").memory.transition_threshold}
    assert 0 < gate["memory.transition_threshold"] < Settings().memory.transition_threshold
    assert preset("sprites") == Settings().with_changes(gate)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_presets_search_and_remember_as_released(name):
    settings, default = preset(name), Settings()
    assert (settings.search, settings.noise, settings.memory) == (
        default.search,
        default.noise,
        default.memory,
    )
    search, memory = settings.search, settings.memory
    assert (search.histories, search.expansions, settings.noise.beta) == (2, 2, -0.1)
    assert (memory.window_frames, memory.sink_frames, memory.max_sink_frames) == (12, 3, 15)
    assert (settings.run.dtype, settings.run.device) == ("bfloat16", "cuda")
    assert (settings.reward.image, settings.reward.video) == ("hpsv3", "videoalign")
    recipe = read_blueprint(find_folder(settings.run.generator, "random")[0]).recipe
    assert (recipe.steps, recipe.shift, recipe.fps) == ((1000, 750, 500, 250), 5.0, 16)
    assert recipe.frame_size == (480, 832)


def test_only_realtime_trades_precision():
    for name in PRESETS:
        settings = preset(name)
        fast = (settings.run.linears, settings.reward.decoder, settings.reward.stride)
        assert fast == (("fp8-row", "tiny", 4) if name == "realtime" else ("dense", "full", 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_machine_without_a_gpu_says_so_when_the_engine_is_built(name):
    with pytest.raises(RuntimeError, match=r"run\.device: 'cuda' cannot be used here"):
        Engine(preset(name).with_changes({"run.weights": "random"}))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_published_checkpoint_has_a_preset_and_one_recipe(name):
    """The packaged sizes, for timing and planning, say what its conversion will write."""
    row, settings = CHECKPOINTS[name], preset(name)
    assert settings.run.generator == name
    recipe = read_blueprint(find_folder(name, "random")[0]).recipe
    assert (recipe.steps, recipe.shift) == (row.steps, row.shift)
    assert (recipe.fps, recipe.frame_size) == (row.fps, row.frame_size)


@pytest.mark.parametrize(
    ("name", "window", "sink", "most_sinks", "sinking", "window_chunks"),
    [
        ("longlive", 12, 3, 15, True, 3),
        ("self-forcing", 21, 3, 3, False, 6),
        ("causvid", 21, 3, 3, False, 6),
    ],
)
def test_presets_remember_as_their_checkpoints_were_trained(
    name, window, sink, most_sinks, sinking, window_chunks
):
    memory = preset(name).memory
    assert (memory.window_frames, memory.sink_frames) == (window, sink)
    assert (memory.max_sink_frames, memory.sinking) == (most_sinks, sinking)
    assert memory.window_chunks == window_chunks


def test_causvid_s_steps_are_those_it_was_trained_at():
    """Published as 1000, 757, 522 of a clock that shift 8 has warped already."""
    row = CHECKPOINTS["causvid"]
    schedule = Schedule.warped(row.steps, row.shift)
    assert [round(timestep) for timestep in schedule.timesteps] == [1000, 757, 522]
    assert CHECKPOINTS["self-forcing"].nested[0] == "generator_ema"


# --generator.


def asked(*arguments: str) -> Settings:
    return build_settings(parse([*arguments, "a prompt"]))


def test_a_generator_with_a_preset_brings_it():
    assert asked("--generator", "self-forcing") == preset("self-forcing")
    assert asked("--generator", "sprites") == asked() == preset("sprites")
    assert asked("--generator", "longlive", "--device", "cpu").run.device == "cpu"


def test_a_preset_that_is_named_stays(tmp_path):
    got = asked("--generator", "self-forcing", "--preset", "longlive")
    assert got == preset("longlive").with_changes({"run.generator": "self-forcing"})
    folder = str(tmp_path)
    assert asked("--generator", folder) == preset("sprites").with_changes({"run.generator": folder})
