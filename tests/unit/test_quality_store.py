"""Rows survive what runs do to them: stops, cuts, second starts, other weights."""

import math
import re

import pytest
import torch

from runtime.bench.quality.store import (
    ROWS,
    TUNING,
    Store,
    load_frames,
    read,
    save_frames,
    tuning_rows,
)
from tests.video_row import row

HEADER = {"world": "sprites", "weights": {"sprites": "abc"}, "made": {"commit": "1"}}


def written(folder, rows, header=HEADER):
    store = Store(folder, header)
    store.add(rows)
    store.close()
    return folder / ROWS


def opened(folder, header=HEADER):
    store = Store(folder, header)
    store.close()
    return store.rows


def test_what_was_written_is_read(tmp_path):
    rows = [
        row("single", 0, {"VQ": 0.1 + 0.2, "TA": math.nan}, over_time={"VQ": (0.5, math.nan)}),
        row("stream-t1", 0, {"VQ": -0.5}, routes=("ema", "discard"), right={"shape": True}),
    ]
    written(tmp_path, rows)
    first, second = opened(tmp_path)
    assert second == rows[1] and first.scores["VQ"] == 0.1 + 0.2
    assert math.isnan(first.scores["TA"]) and math.isnan(first.over_time["VQ"][1])
    header, again = read(tmp_path)
    assert header["weights"] == {"sprites": "abc"} and again[1] == rows[1]


def test_a_row_is_on_disk_as_soon_as_it_is_added(tmp_path):
    store = Store(tmp_path, HEADER)
    store.add([row("single", 0)])
    assert len(read(tmp_path)[1]) == 1
    store.close()


def test_a_second_start_goes_on(tmp_path):
    written(tmp_path, [row("single", 0)])
    path = written(tmp_path, [row("single", 0, {"VQ": 9.0}), row("single", 1)])
    assert [r.key.prompt for r in opened(tmp_path)] == [0, 1]
    assert opened(tmp_path)[0].scores == {}  # what is there is not made again
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_half_written_last_line_is_dropped(tmp_path, left):
    path = written(tmp_path, [row("single", 0), row("single", 1)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
    assert [r.key.prompt for r in read(tmp_path)[1]] == [0]
    written(tmp_path, [row("single", 1, {"VQ": 0.5})])
    assert [r.scores for r in opened(tmp_path)] == [{}, {"VQ": 0.5}]


def test_a_half_written_header_is_no_header(tmp_path):
    (tmp_path / ROWS).write_bytes(b'{"format": 1, "wor')
    written(tmp_path, [row("single", 0)])
    assert len(opened(tmp_path)) == 1


def test_rows_of_other_weights_are_refused_by_name(tmp_path):
    written(tmp_path, [row("single", 0)])
    before = (tmp_path / ROWS).read_bytes()
    with pytest.raises(
        ValueError,
        match=r"made with other weights: want sprites = 'xyz', found sprites = 'abc'; name another --out",
    ):
        Store(tmp_path, {**HEADER, "weights": {"sprites": "xyz"}})
    assert (tmp_path / ROWS).read_bytes() == before


def test_another_commit_alone_is_not_refused(tmp_path):
    written(tmp_path, [row("single", 0)])
    assert len(opened(tmp_path, {**HEADER, "made": {"commit": "2"}})) == 1


def test_a_part_that_only_one_header_has_is_refused(tmp_path):
    written(tmp_path, [])
    with pytest.raises(ValueError, match="made with other measures: want 'b', found None"):
        Store(tmp_path, {**HEADER, "measures": "b"})


def test_a_spoilt_line_in_the_middle_is_told(tmp_path):
    path = written(tmp_path, [row("single", 0), row("single", 1)])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"key": 1}', lines[2]]) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}: line 2 is no row of this version")):
        read(tmp_path)


def test_two_runs_cannot_write_one_folder(tmp_path):
    first = Store(tmp_path, HEADER)
    with pytest.raises(ValueError, match="another run writes there; wait for it"):
        Store(tmp_path, HEADER)
    first.close()
    assert opened(tmp_path) == []


def test_a_folder_without_rows_has_nothing_to_show(tmp_path):
    with pytest.raises(ValueError, match="no rows there; run without --tables-only first"):
        read(tmp_path)


def test_frames_come_back_as_they_went(tmp_path):
    frames = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    one = row("stream-t1[noise.beta=-0.3]", 7)
    file = save_frames(tmp_path, one.key, frames)
    other = save_frames(tmp_path, row("stream-t1[noise.beta=0.3]", 7).key, frames)
    assert re.fullmatch(r"frames/[A-Za-z0-9._=-]+\.npz", file) and file != other
    assert torch.equal(load_frames(tmp_path, row("single", 7, file=file)), frames)


def test_frames_that_were_not_kept_are_told(tmp_path):
    with pytest.raises(ValueError, match="no frames of prompt 7 by single; raise --keep"):
        load_frames(tmp_path, row("single", 7))


def test_a_run_on_tuning_prompts_lies_below_and_its_frames_are_found(tmp_path):
    assert tuning_rows(tmp_path) == []
    frames = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    one = row("single", 0)
    written(
        tmp_path / TUNING,
        [row("single", 0, file=save_frames(tmp_path / TUNING, one.key, frames)), row("beam", 0)],
    )
    kept, bare = tuning_rows(tmp_path)
    assert torch.equal(load_frames(tmp_path, kept), frames) and bare.file == ""
