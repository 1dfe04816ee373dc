"""The sprites world judges whole videos, and strips show them."""

import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from runtime.bench.quality import strips
from runtime.bench.quality.prompts import held_out, tuning
from runtime.bench.quality.row import COLUMNS, REWARDED, RIGHT, Cost, Key, Row
from runtime.bench.quality.sprites_measures import measure
from runtime.bench.quality.sprites_world import SpritesWorld
from runtime.bench.quality.store import Store, save_frames
from runtime.bench.quality.worlds import WORLDS, Wishes, load_world
from runtime.bench.sprites.world import Scene, render
from runtime.settings import Settings
from runtime.types import Clip


def video(caption, frames=81):
    clip = render(Scene(caption, 20.0, (40.0, 50.0)), frames)
    return (clip * 255).round().to(torch.uint8)


@cache
def world():
    found = load_world("sprites", Wishes(Path()))
    found.texts(4)
    return found


@cache
def judged(wrong=False):
    """Of a clean video of prompt 0, or of one that shows prompt 0 in another shape."""
    caption = held_out(1)[0]
    if wrong:
        caption = replace(caption, shape="star" if caption.shape != "star" else "circle")
    return world().judge(video(caption), 0, 16)


def test_the_table_of_worlds_knows_it():
    assert type(world()) is SpritesWorld and world().name in WORLDS
    assert Settings().with_changes(world().changes).run.generator == "sprites"
    assert world().version == SpritesWorld().version


def test_prompts_are_the_fixed_lists():
    assert SpritesWorld().texts(3) == [caption.text for caption in held_out(3)]
    other = SpritesWorld.load(Wishes(Path(), split="tuning"))
    assert other.texts(3) == [caption.text for caption in tuning(3)]


def test_prompts_of_ones_own_are_refused():
    with pytest.raises(ValueError, match="--prompts-file: this world judges by its own captions"):
        SpritesWorld.load(Wishes(Path(), prompts_file=Path("mine.txt")))


def test_a_clean_video_is_right_in_every_column():
    found = judged()
    assert set(found.scores) == {*COLUMNS, RIGHT}
    assert found.scores[RIGHT] == 1.0 and all(found.right.values())
    assert found.seen["shape"] == held_out(1)[0].shape
    assert min(found.scores[name] for name in COLUMNS) > 0.5
    assert set(found.over_time) == {*COLUMNS, RIGHT}
    assert {len(values) for values in found.over_time.values()} == {2}
    assert found.over_time[RIGHT] == (1.0, 1.0)


def test_a_video_of_something_else_is_wrong_and_what_was_seen_is_told():
    found = judged(wrong=True)
    assert found.scores[RIGHT] == 0.0 and found.over_time[RIGHT] == (0.0, 0.0)
    assert [name for name, right in found.right.items() if not right] == ["shape"]
    assert found.seen["shape"] in ("star", "circle")
    assert found.scores["TA"] < judged().scores["TA"]


def test_columns_are_the_measures_and_the_video_rewards_own_numbers():
    caption = held_out(1)[0]
    frames = video(caption).float() / 255
    measured = measure(frames, caption).scores()
    assert {name: judged().scores[name] for name in measured} == pytest.approx(measured)
    told = world().reward.detail(Clip(frames[None], caption.text, 16, 0))[0].tolist()
    assert [judged().scores[name] for name in REWARDED] == pytest.approx(told)
    told = world().reward.detail(Clip(frames[None, :48], caption.text, 16, 0))[0].tolist()
    assert [judged().over_time[name][0] for name in REWARDED] == pytest.approx(told)


def test_the_reward_of_a_long_video_is_the_mean_over_windows_of_ten_chunks():
    caption = held_out(1)[0]
    first, second = video(caption), video(replace(caption, shape="cross", colour="green"))
    frames = torch.cat((first, second, second))[:150]
    found = world().judge(frames, 0, 16).scores
    clips = [frames[part].float() / 255 for part in (slice(0, 117), slice(33, 150))]
    told = [world().reward.detail(Clip(c[None], caption.text, 16, 0))[0] for c in clips]
    assert [found[name] for name in REWARDED] == pytest.approx(torch.stack(told).mean(0).tolist())
    assert not torch.allclose(told[0], told[1], atol=0.01)


def test_another_pace_is_refused():
    with pytest.raises(ValueError, match="fps: want 16, the pace of this world, got 24"):
        world().judge(torch.zeros(5, 3, 96, 96, dtype=torch.uint8), 0, 24)


def rows(folder):
    """Two methods on prompt 0, the second one wrong; and a row whose frames were not kept."""
    made = []
    for method, wrong in (("single", True), ("stream-t1", False), ("beam", False)):
        key = Key("sprites", 5.0, method, 0, 42)
        found = judged(wrong)
        file = save_frames(folder, key, video(held_out(1)[0], 33)) if method != "beam" else ""
        cost = Cost(7, 81, 0, 0, 1.0)
        made.append(
            Row(key, held_out(1)[0].text, found.scores, cost, found.right, found.seen, file=file)
        )
    return made


def test_a_strip_has_a_line_of_frames_for_every_method_that_kept_some(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (strip,) = strips.strips(rows(tmp_path), tmp_path, shown=5)
    assert strip.text == held_out(1)[0].text and strip.seconds == 5.0
    seen = judged(wrong=True).seen["shape"]
    assert strip.words == f"Plain streaming: seen shape: {seen}; Stream-T1: all right"
    picture = image.open(io.BytesIO(strip.png)).convert("RGB")
    left, top = strips.MARGIN + strips.LABEL, strips.MARGIN + strips.HEAD
    line = strips.HEIGHT + strips.FOOT
    assert picture.height == 2 * strips.MARGIN + strips.HEAD + 2 * line
    clip = video(held_out(1)[0], 33)
    for number in range(2):
        for column, frame in ((0, 0), (2, 16), (4, 32)):
            x, y = left + column * (96 + strips.GAP), top + number * line
            shown = picture.crop((x, y, x + 96, y + 96))
            exact = image.fromarray(clip[frame].movedim(0, -1).numpy())
            pixels = zip(shown.tobytes(), exact.tobytes(), strict=True)
            assert sum(abs(a - b) > 8 for a, b in pixels) < 200  # the palette has 256 colours


def test_the_command_writes_the_strip_that_was_asked_for(tmp_path, capsys):
    pytest.importorskip("PIL.Image")
    store = Store(tmp_path, {})
    store.add(rows(tmp_path))
    store.close()
    output = tmp_path / "strip.png"
    asked = [str(tmp_path), "-o", str(output), "--methods", "stream-t1"]
    assert strips.main(asked) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.endswith("; Stream-T1: all right\n")
    assert strips.main([*asked, "--prompt", "7"]) == 2
    assert "no frames were kept of such videos" in capsys.readouterr().err
